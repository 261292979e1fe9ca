"""The images of the conformance tests, made of local files: busybox, a web server, who it is.

Owns their names and platforms. `/cgi-bin/who` answers a JSON document: node, slot, version, platform, client's address.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from pathlib import Path

from overlace.lab.layout import WINDOWS_BUILD
from overlace.runtime.base import Platform
from overlace.runtime.oci.mkimage import Variant, busybox_rootfs, push, write_layout

LINUX = Platform(os="linux", architecture="amd64")
# emulated: a Windows image's payload is a Linux program here
WINDOWS = Platform(os="windows", architecture="amd64", os_version=WINDOWS_BUILD)
OLD_WINDOWS = Platform(os="windows", architecture="amd64", os_version="10.0.17763.5458")
NEW_WINDOWS = Platform(os="windows", architecture="amd64", os_version="10.0.26100.1742")
ARM = Platform(os="linux", architecture="arm64")

IMAGES: dict[str, tuple[Platform, ...]] = {
    "app:1": (LINUX,),
    "app:2": (LINUX,),
    "win:1": (WINDOWS,),
    "oldwin:1": (OLD_WINDOWS,),
    "newwin:1": (NEW_WINDOWS,),
    "multi:1": (LINUX, WINDOWS),
    "arm:1": (ARM,),
}

# As process 1 a shell ignores what it does not trap. Told to stop, it takes no new connection and ends those it has.
_APP = b"""#!/bin/sh
trap 'kill $server $udp; sleep 0.2; exit 0' TERM INT
echo "app $(cat /etc/version) says hello"
/udp &
udp=$!
httpd -f -p 80 -h /www &
server=$!
wait $server
"""
_WHO = b"""#!/bin/sh
client=${REMOTE_ADDR##*:}
printf 'Content-Type: application/json\\r\\n\\r\\n'
printf '{"host": "%s", "version": "%s", "platform": "%s", "client": "%s", "color": "%s"}\\n' \\
    "$(hostname)" "$(cat /etc/version)" "$(cat /etc/platform)" "${client%]}" "$COLOR"
"""

_UDP = r"""
/* Answers every datagram with this host's name and the address it came from. */
#include <arpa/inet.h>
#include <stdio.h>
#include <unistd.h>

int main(void) {
    struct sockaddr_in from, here = {.sin_family = AF_INET, .sin_port = htons(53)};
    char name[64], in[512], out[256];
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (struct sockaddr *)&here, sizeof here) || gethostname(name, sizeof name)) return 1;
    for (;;) {
        socklen_t size = sizeof from;
        if (recvfrom(s, in, sizeof in, 0, (struct sockaddr *)&from, &size) < 0) return 1;
        int n = snprintf(out, sizeof out, "%s %s", name, inet_ntoa(from.sin_addr));
        sendto(s, out, n, 0, (struct sockaddr *)&from, size);
    }
}
"""


def push_images(registry: str) -> None:
    """Build and push them all."""
    with tempfile.TemporaryDirectory(prefix="overlace-conformance-") as scratch:
        root = Path(scratch)
        (root / "udp.c").write_text(_UDP)
        subprocess.run(["gcc", "-O2", "-static", "-o", root / "udp", root / "udp.c"], check=True, timeout=60)
        asyncio.run(_push_images(root, registry))


async def _push_images(root: Path, registry: str) -> None:
    for image, platforms in IMAGES.items():
        variants = []
        for number, platform in enumerate(platforms):
            files: dict[str, Path | bytes] = {
                "app": _APP,
                "udp": root / "udp",
                "www/cgi-bin/who": _WHO,
                "etc/version": image.rpartition(":")[2].encode() + b"\n",
                "etc/platform": platform.os.encode() + b"\n",
                "etc/image": image.encode() + b"\n",  # no two images are the same
            }
            rootfs = busybox_rootfs(root / f"{image.replace(':', '-')}-{number}", files)
            config = {"Cmd": ["/app"], "Env": ["PATH=/bin"], "ExposedPorts": {"80/tcp": {}}}
            variants.append(Variant(platform, rootfs, config))
        tag = image.replace(":", "-")
        write_layout(root / "layout", variants, tag)
        await push(root / "layout", tag, f"{registry}/{image}")
