"""The containers' resolver as a process of its own, which outlives the daemon: one per daemon, not one per container."""
