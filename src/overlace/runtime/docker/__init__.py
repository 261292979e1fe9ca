"""A Docker Engine of this host as the container runtime.

Owns everything said to that engine. Its containers get no network from Docker: they start without one and held, our
endpoint is attached to the namespace Docker made for them, and only then does their program run.
"""
