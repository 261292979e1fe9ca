"""The embedded container runtime: skopeo and umoci for images, runc or crun under conmon for containers.

`OciRuntime` implements `overlace.runtime.base.Runtime`. Must not know swarm objects, networks or HTTP.
"""

from overlace.runtime.oci.runtime import OciRuntime

__all__ = ["OciRuntime"]
