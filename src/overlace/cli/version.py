"""`overlace version`."""

from __future__ import annotations

import platform
from importlib.metadata import version as distribution_version

import click


@click.command()
def version() -> None:
    """Print the versions of the program, Python and the kernel."""
    click.echo(f"overlace {distribution_version('overlace')}")
    click.echo(f"python   {platform.python_version()}")
    click.echo(f"kernel   {platform.system()} {platform.release()} {platform.machine()}")
