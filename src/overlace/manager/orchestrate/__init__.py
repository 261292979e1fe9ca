"""Which tasks a service should have: replicas, one per node, restarts, updates, history; pure decisions over
a view.
"""
