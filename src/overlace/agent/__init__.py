"""The node's agent: runs the tasks the manager assigns to this host and reports what becomes of them."""
