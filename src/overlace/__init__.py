"""Overlace: a swarm of Linux and Windows container hosts over a native VXLAN overlay."""

__version__ = "0.1.0"
