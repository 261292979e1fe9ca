"""What the daemon tells monitoring systems: metrics."""
