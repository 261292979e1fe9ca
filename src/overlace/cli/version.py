"""`overlace version`."""

from __future__ import annotations

import platform

import click

from overlace import __version__


@click.command()
def version() -> None:
    """Print the versions of the program, Python and the kernel."""
    click.echo(f"overlace {__version__}")
    click.echo(f"python   {platform.python_version()}")
    click.echo(f"kernel   {platform.system()} {platform.release()} {platform.machine()}")
