"""`overlace plan`: what deploying a stack would create, change, replace or remove.

Owns how a plan is shown. What it says comes from overlace.compose.plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from overlace.cli.asking import host_option
from overlace.cli.compose_files import Stack, compose_options, read_stack
from overlace.cli.engine import Engine
from overlace.cli.stack_state import ALWAYS, CHANGED, NEVER, Swarm, tell
from overlace.compose.plan import CREATE, REMOVE, REPLACE, UPDATE, Action, Plan, show

_SIGNS = {CREATE: "+", UPDATE: "~", REPLACE: "-/+", REMOVE: "-"}
_NOUNS = {CREATE: "to create", UPDATE: "to change", REPLACE: "to replace", REMOVE: "to remove"}
CHANGES = 2  # exit status: a deploy would change something (as `terraform plan -detailed-exitcode`)


class _Command(click.Command):
    """Wrong usage is status 1 here: 2 says that something would change."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            setattr(error, "exit_code", 1)  # noqa: B010  its type says class variable
            raise


@click.command(cls=_Command)
@compose_options
@click.option(
    "--prune", is_flag=True, help="As `stack deploy --prune`: services not in the file are removed."
)
@click.option(
    "--resolve-image", type=click.Choice((ALWAYS, CHANGED, NEVER)), default=ALWAYS, show_default=True,
    help="Whether the registry is asked for an image's digest.",
)  # fmt: skip
@click.option(
    "--with-registry-auth", is_flag=True, help="Ask registries with the credentials of docker login."
)
@click.option("--format", "form", type=click.Choice(("text", "json")), default="text", show_default=True)
@click.argument("stack")
@host_option
def plan(
    stack: str,
    files: tuple[str, ...],
    env_files: tuple[str, ...],
    profiles: tuple[str, ...],
    leave_out_unsupported: bool,
    prune: bool,
    resolve_image: str,
    with_registry_auth: bool,
    form: str,
    host: str,
) -> None:
    """Say what `overlace stack deploy` would do to STACK, field by field. Nothing is changed.

    Exit status: 0 nothing would change, 2 something would, 1 there was an error.
    """
    found = read_stack(stack, files, env_files, profiles, leave_out_unsupported)
    if form == "text":
        tell(found.warnings)
    swarm = Swarm(Engine.of_user(host), registry_auth=with_registry_auth)
    made = swarm.plan(found, prune=prune, resolve_image=resolve_image)
    if form == "json":
        click.echo(json.dumps(as_json(made, found, swarm.warnings), indent=2))
    else:
        tell(swarm.warnings)
        click.echo("\n".join(lines(made)))
    sys.exit(CHANGES if made.changes_anything else 0)


def lines(plan: Plan) -> Iterator[str]:
    if not plan.actions:
        yield f"{plan.stack}: nothing would change."
    else:
        counts = [(verb, sum(a.verb == verb for a in plan.actions)) for verb in _SIGNS]
        yield f"{plan.stack}: " + ", ".join(f"{count} {_NOUNS[verb]}" for verb, count in counts if count)
    for action in plan.actions:
        yield ""
        yield from action_lines(action)
    if plan.notes:
        yield ""
        for note in plan.notes:
            yield f"! {note.path}: {note.text}"


def action_lines(action: Action) -> Iterator[str]:
    yield f"{_SIGNS[action.verb]} {action.kind} {action.name}" + (f"  ({action.why})" if action.why else "")
    for change in action.changes:
        if action.verb == CREATE:
            yield f"    {change.path}: {show(change.after)}"
        else:
            yield f"    {change.path}: {show(change.before)} -> {show(change.after)}"


def as_json(plan: Plan, stack: Stack, warnings: list[str]) -> dict[str, Any]:
    return {
        "stack": plan.stack,
        "changes": plan.changes_anything,
        "actions": [
            {
                "action": action.verb,
                "kind": action.kind,
                "key": action.key,
                "name": action.name,
                "why": action.why,
                "fields": [{"path": c.path, "before": c.before, "after": c.after} for c in action.changes],
            }
            for action in plan.actions
        ],
        "notes": [{"path": note.path, "text": note.text} for note in plan.notes],
        "warnings": [*map(str, stack.warnings), *warnings],
        "order": plan.order,
    }
