"""The daemon as a service of systemd: the text of its unit, and the unit's way into and out of /etc/systemd/system.

Owns what the unit says and why. Must not know the daemon's options. Sources: systemd.service(5), systemd.kill(5),
systemd.resource-control(5), systemd.syntax(7).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from overlace.model.errors import Conflict, Internal, NotFound, Unavailable

NAME = "overlace.service"
UNIT = Path("/etc/systemd/system") / NAME
RUNNING = Path("/run/systemd/system")  # sd_booted(3)
MARK = "# Written by `overlace service install`. To change it: systemctl edit overlace"
_PLAIN = re.compile(r"[A-Za-z0-9_@.,:=/+-]+")


def quoted(word: str) -> str:
    """One word of a command line or an assignment, as systemd reads it back. Pure."""
    word = word.replace("%", "%%").replace("$", "$$")
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def unit_text(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The unit that runs `command`, a daemon in the foreground. Pure."""
    variables = "".join(
        # a $ is literal in Environment=
        f"Environment={quoted(f'{name}={value}').replace('$$', '$')}\n"
        for name, value in sorted(environment.items())
    )
    return f"""{MARK}
[Unit]
Description=Overlace: swarm of Linux and Windows container hosts
Wants=network-online.target
After=network-online.target docker.service
StartLimitIntervalSec=0

[Service]
Type=exec
{variables}ExecStart={" ".join(quoted(word) for word in command)}
Restart=always
RestartSec=2
# Containers, their monitors and the resolver of names outlive the daemon, which finds them again.
KillMode=process
Delegate=yes
TasksMax=infinity
OOMScoreAdjust=-500
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
"""


def install(text: str, unit: Path = UNIT) -> None:
    """Write the unit and have it started at boot. Raises Conflict for a unit that is not ours, Unavailable without
    systemd, Internal."""
    if unit.exists() and not unit.read_text().startswith(MARK):
        raise Conflict(f"{unit} was not written by overlace: remove it first, or keep it")
    if not unit.parent.is_dir():
        raise Unavailable(
            f"there is no {unit.parent}: this host has no systemd; run `overlace daemon` by its own means"
        )
    partial = unit.with_suffix(".new")
    partial.write_text(text)
    partial.replace(unit)
    _systemctl("enable", NAME)


def remove(unit: Path = UNIT) -> None:
    """Stop the daemon and take the unit away; containers go on. Raises NotFound, Conflict, Internal."""
    if not unit.exists():
        raise NotFound(f"there is no {unit}: overlace is not installed as a service")
    if not unit.read_text().startswith(MARK):
        raise Conflict(f"{unit} was not written by overlace: remove it by hand")
    if RUNNING.is_dir():
        _systemctl("stop", NAME)
    _systemctl("disable", NAME)
    unit.unlink()
    if RUNNING.is_dir():
        _systemctl("daemon-reload")


def start() -> None:
    """Raises Unavailable where systemd does not run, Internal with its words."""
    _need_systemd()
    _systemctl("daemon-reload")
    _systemctl("start", NAME)


def stop() -> None:
    """Stop the daemon; containers and traffic go on. Raises as `start`."""
    _need_systemd()
    _systemctl("stop", NAME)


def _need_systemd() -> None:
    if not RUNNING.is_dir():
        raise Unavailable("systemd does not run on this host: run `overlace daemon` by its own means")


def _systemctl(*words: str) -> None:
    try:
        subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unavailable(
            "there is no systemctl on this host: run `overlace daemon` by its own means"
        ) from None
    except subprocess.CalledProcessError as error:
        raise Internal(f"systemctl {' '.join(words)}: {error.stderr.strip()}") from None
