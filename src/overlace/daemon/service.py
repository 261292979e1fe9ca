"""`overlace service`: the daemon as a service of its host, under systemd or the service manager of Windows.

Owns the verbs and what the service is started with. Must not know how either manager is spoken to (systemd.py, scm.py).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from overlace.cli.daemon import DaemonOptions, check_options
from overlace.cli.daemon import daemon as daemon_command
from overlace.daemon import process, scm, systemd
from overlace.daemon.log_file import LogFile
from overlace.model.errors import InvalidArgument, Unavailable
from overlace.model.system import ON_WINDOWS

LOG = (
    "overlace.log"  # in the data root; on Windows, where a service has no console. systemd keeps the journal
)
_PROGRAM = ("-m", "overlace.cli.main")
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def daemon_options(arguments: Sequence[str]) -> DaemonOptions:
    """What `overlace daemon ARGUMENTS` would be started with. Raises InvalidArgument, click's UsageError."""
    return check_options(**daemon_command.make_context("overlace service install", list(arguments)).params)


def service_command(arguments: Sequence[str], windows: bool = ON_WINDOWS) -> list[str]:
    """The command that the service manager runs."""
    verb = ("service", "run") if windows else ("daemon",)
    return [sys.executable, *_PROGRAM, *verb, *arguments]


def environment() -> dict[str, str]:
    """What this program needs to be found: a service inherits nothing from us, and starts in another folder."""
    path = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))} if path else {}


@click.group()
def service() -> None:
    """The daemon as a service of this host: systemd's, or of Windows' service manager (`sc query overlace`)."""


@service.command(context_settings=_PASSED_ON)
@click.option("--print", "shown", is_flag=True, help="Only print what would be installed.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[DAEMON OPTIONS]...")
def install(shown: bool, arguments: tuple[str, ...]) -> None:
    """Have the host start the daemon at boot and whenever it fails, with these options of `overlace daemon`.

    `overlace daemon --help` has the options. Stopping the service, or removing it, ends no container and no traffic.
    """
    daemon_options(arguments)
    command = service_command(arguments)
    if ON_WINDOWS:
        if shown:
            raise InvalidArgument("--print shows a unit of systemd: leave it out on Windows")
        process.need_privileges()
        for refused in scm.install(command, environment()):
            click.echo(f"overlace: this Windows does not note {refused}", err=True)
    else:
        text = systemd.unit_text(command, environment())
        if shown:
            click.echo(text, nl=False)
            return
        process.need_privileges()
        systemd.install(text)
        if not systemd.RUNNING.is_dir():
            click.echo("installed; systemd does not run on this host: it will start at a boot with systemd")
            return
    click.echo("installed; it starts at boot, or now with: overlace service start")


@service.command()
def remove() -> None:
    """Stop the daemon and have the host start it no more; containers go on."""
    process.need_privileges()
    if ON_WINDOWS:
        scm.remove()
    else:
        systemd.remove()
    click.echo("removed")


@service.command()
def start() -> None:
    """Start the daemon."""
    process.need_privileges()
    if ON_WINDOWS:
        scm.start()
    else:
        systemd.start()


@service.command()
def stop() -> None:
    """Stop the daemon; containers and traffic go on."""
    process.need_privileges()
    if ON_WINDOWS:
        scm.stop()
    else:
        systemd.stop()


@service.command("run", hidden=True, context_settings=_PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_service(arguments: tuple[str, ...]) -> None:
    """What Windows' service manager runs."""
    if not ON_WINDOWS:
        raise Unavailable("systemd runs `overlace daemon` itself: see overlace service install --print")
    options = daemon_options(arguments)
    process.make_folder("--data-root", options.data_root)
    log = LogFile(Path(options.data_root) / LOG)
    sys.stdout = sys.stderr = log
    running = scm.Running(lambda: importlib.import_module("overlace.daemon").run(options))
    running.run()
    sys.exit(int(running.failed))
