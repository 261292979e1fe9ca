"""`overlace stack deploy`: a stack from compose files, in the order its services depend on each other.

Owns the command; the plan it carries out is the one `overlace plan` shows.
"""

from __future__ import annotations

import sys

import click

from overlace.cli.asking import host_option
from overlace.cli.compose_files import compose_options, read_stack
from overlace.cli.engine import Engine
from overlace.cli.stack_apply import Deploy
from overlace.cli.stack_state import ALWAYS, CHANGED, NEVER, Swarm, tell
from overlace.compose.shorthand import BadValue, parse_duration

_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT


@click.group()
def stack() -> None:
    """Deploy stacks from compose files; everything else about stacks is `docker stack`."""


def _seconds(ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value) / 10**9
    except BadValue as error:
        raise click.BadParameter(str(error)) from None


class _Command(click.Command):
    """Takes `--detach=false` and the like, as the docker CLI has them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [word for arg in args for word in _flag(arg)])


_FLAGS = {"-d": "--detach", "-q": "--quiet"}
_NOT = {"--detach": ["--no-detach"], "--prune": [], "--quiet": [], "--with-registry-auth": []}


def _flag(arg: str) -> list[str]:
    """`--flag=true` and `--flag=false` as click has them."""
    name, _, value = arg.partition("=")
    name = _FLAGS.get(name, name)
    if name not in _NOT or value.lower() not in ("true", "false", "1", "0", "t", "f"):
        return [arg]
    return [name] if value.lower() in ("true", "1", "t") else _NOT[name]


@stack.command(cls=_Command)
@compose_options
@click.option("--prune", is_flag=True, help="Remove the stack's services that are not in the file.")
@click.option(
    "--resolve-image", type=click.Choice((ALWAYS, CHANGED, NEVER)), default=ALWAYS, show_default=True,
    help="Whether the registry is asked for an image's digest and platforms.",
)  # fmt: skip
@click.option("--with-registry-auth", is_flag=True, help="Send the credentials of docker login to the hosts.")
@click.option(
    "-d", "--detach/--no-detach", "detach", default=None,
    help="Return when everything is asked for (and the conditions of depends_on were met), or when all services have"
    " converged. Left out: when everything is asked for and no task uses a replaced secret or config.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
@click.option(
    "--wait-timeout", default="5m", show_default=True, metavar="DURATION", callback=_seconds,
    help="How long to wait for each condition of depends_on, and without --detach for each service.",
)  # fmt: skip
@click.argument("name", metavar="STACK")
@host_option
def deploy(
    name: str,
    files: tuple[str, ...],
    env_files: tuple[str, ...],
    profiles: tuple[str, ...],
    leave_out_unsupported: bool,
    prune: bool,
    resolve_image: str,
    with_registry_auth: bool,
    detach: bool | None,
    quiet: bool,
    wait_timeout: float,
    host: str,
) -> None:
    """Deploy a new stack or update an existing one, of `docker stack deploy` too.

    Interrupted, it is finished by running it again. `docker stack rm` removes it.
    """
    found = read_stack(name, files, env_files, profiles, leave_out_unsupported)
    tell(found.warnings)
    swarm = Swarm(Engine.of_user(host), registry_auth=with_registry_auth)

    def say(text: str) -> None:
        if not quiet:
            click.echo(text)

    try:
        plan = swarm.plan(found, prune=prune, resolve_image=resolve_image)
        tell(swarm.warnings)
        tell(f"{note.path}: {note.text}" for note in plan.notes)
        if not plan.actions:
            say(f"Stack {name}: nothing to change")
        run = Deploy(swarm, found, plan, wait_timeout, say)
        run.run()
        if detach is False:
            run.converge()
        run.clean(wait=not detach)
    except KeyboardInterrupt:
        click.echo(f"interrupted: what was deployed of {name} stays; run it again to go on", err=True)
        sys.exit(_INTERRUPTED)
