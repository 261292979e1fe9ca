"""The `overlace` command: only what the docker CLI has no word for.

Owns the group, lazy loading and how an error is printed. Subcommands are named, not imported: the command
starts fast and this room stays below the daemon and the lab, which it starts.
"""

from __future__ import annotations

import importlib
import sys

import click

from overlace.model.errors import OverlaceError

COMMANDS = {
    "check": "overlace.cli.check:check",
    "daemon": "overlace.cli.daemon:daemon",
    "hns": "overlace.cli.hns:hns",
    "network": "overlace.cli.network:network",
    "lab": "overlace.lab.commands:lab",
    "plan": "overlace.cli.plan:plan",
    "policy": "overlace.cli.policy:policy",
    "service": "overlace.daemon.service:service",
    "stack": "overlace.cli.stack:stack",
    "trace": "overlace.cli.trace:trace",
    "vfp": "overlace.cli.vfp:vfp",
    "version": "overlace.cli.version:version",
    "why": "overlace.cli.why:why",
}


class LazyGroup(click.Group):
    """A group whose commands are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overlace", message="%(prog)s %(version)s")
def cli() -> None:
    """A swarm of Linux and Windows container hosts over a native VXLAN overlay, driven by the docker CLI.

    Everything docker has a word for is done with docker: point DOCKER_HOST at a daemon's socket.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Refusals are one line on stderr and exit code 1; wrong usage is 2, as click
    has it.
    """
    try:
        cli.main(args=argv, prog_name="overlace")
    except OverlaceError as error:
        print(f"overlace: {error.message}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
