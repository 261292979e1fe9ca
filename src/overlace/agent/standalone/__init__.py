"""Standalone containers: those of `docker run`, which belong to this host and to no service."""
