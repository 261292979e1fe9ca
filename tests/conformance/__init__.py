"""Real clients (the docker CLIs of this machine, docker-py) against labs of real daemons."""
