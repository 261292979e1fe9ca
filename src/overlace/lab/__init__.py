"""Many hosts on one machine, in network namespaces: for trying, testing and benchmarking.

Owns the namespaces, bridge, registry and processes of a lab. Must not know how a daemon works inside:
it starts `overlace daemon`, speaks the Engine API to it, and can pull its plug.
"""

from overlace.lab.lab import Lab
from overlace.lab.layout import Host, LabPlan, LabView

__all__ = ["Host", "Lab", "LabPlan", "LabView"]
