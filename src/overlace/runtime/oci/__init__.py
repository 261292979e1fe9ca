"""The embedded container runtime: skopeo and umoci for images, runc or crun under conmon for containers.

`runtime.OciRuntime` implements `overlace.runtime.base.Runtime`. Must not know swarm objects, networks or HTTP. This file
imports nothing: runtime/docker uses some of the modules on Windows, where others could not be imported.
"""
