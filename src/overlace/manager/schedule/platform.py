"""Which platforms a node runs: operating system, architecture and, for Windows, the build.

Owns Microsoft's host and image compatibility. Must not know tasks'
other needs.
"""

from __future__ import annotations

from collections.abc import Sequence

from overlace.model.architecture import fold_architecture
from overlace.model.objects import NodeDescription
from overlace.model.specs import Platform

# Windows releases from which on the kernel ABI is stable (Windows Server 2022, 2025), ascending.
STABLE_BUILDS = (20348, 26100)


def windows_build(version: str) -> tuple[int, int, int] | None:
    """(major, minor, build) of `10.0.20348.2527`; None when it is not such a version."""
    parts = version.split(".")
    if len(parts) < 3:
        return None
    try:
        return int(parts[0]), int(parts[1]), int(parts[2])
    except ValueError:
        return None


def windows_compatible(host: str, image: str, hyperv: bool) -> bool:
    """Whether a Windows host of version `host` can run an image of version `image`.

    Process isolation (the kernel is shared): before Windows Server 2022 (build 20348) host and image must be
    the same build; from it on, a host also runs images back to the stable release before its own (a Server
    2025 host runs Server 2022 images; no host runs a newer image). Hyper-V isolation (own kernel): image not
    newer than host. Source: Microsoft, "Windows container version compatibility"
    (virtualization/windowscontainers/deploy-containers/ version-compatibility), and the rule moby applies
    through hcsshim's osversion package. An image that does not say its version is taken to fit.
    """
    of_image = windows_build(image)
    if of_image is None:
        return True
    of_host = windows_build(host)
    if of_host is None:
        return False
    if hyperv:
        return of_image <= of_host
    if of_host[:2] != of_image[:2]:
        return False
    host_build, image_build = of_host[2], of_image[2]
    if host_build < STABLE_BUILDS[0]:
        return host_build == image_build
    oldest = max((build for build in STABLE_BUILDS if build < host_build), default=STABLE_BUILDS[0])
    return oldest <= image_build <= host_build


def runs_platform(about: NodeDescription, platform: Platform, isolation: str) -> bool:
    """Whether the node runs an image of this platform; empty members of `platform` match anything."""
    if platform.os and platform.os.lower() != about.os.lower():
        return False
    if platform.architecture and fold_architecture(platform.architecture) != fold_architecture(
        about.architecture
    ):
        return False
    if about.os.lower() != "windows" or platform.os.lower() != "windows":
        return True
    hyperv = isolation == "hyperv"
    if ("hyperv" if hyperv else "process") not in about.isolation:
        return False
    return windows_compatible(about.os_version, platform.os_version, hyperv)


def runs_any(about: NodeDescription, platforms: Sequence[Platform], isolation: str) -> bool:
    """No platforms named means any node, as Docker has it (swarmkit scheduler PlatformFilter)."""
    return not platforms or any(runs_platform(about, platform, isolation) for platform in platforms)


def platform_words(platform: Platform) -> str:
    words = f"{platform.os or 'any'}/{platform.architecture or 'any'}"
    return f"{words} {platform.os_version}" if platform.os_version else words
