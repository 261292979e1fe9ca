"""`overlace lab …`: the command line of the lab.

Owns options, what is printed and exit codes. Must not do: the work is in lab.py.
"""

from __future__ import annotations

import os
import signal

import click
import msgspec

from overlace.lab import netns
from overlace.lab.lab import Lab, say_on_stderr
from overlace.lab.layout import DEFAULT_NAME, UNDERLAY_MTU, WINDOWS_PYTHON, RuntimeKind
from overlace.model.errors import Conflict, InvalidArgument


@click.group()
def lab() -> None:
    """Many hosts on this machine, for trying, testing and benchmarking.

    Each host is a network namespace with its own daemon, address, image store and state folder; a bridge
    joins them. Windows hosts are emulated: no Windows kernel, their containers are Linux processes. Those of
    --windows-python have the agent run by a real Windows Python under Wine (scripts/windows installs it).
    """


_name_argument = click.argument("name", default=DEFAULT_NAME, required=False)


def _print_json(lab: Lab) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(lab.view())).decode())


def _print_table(lab: Lab) -> None:
    silent = "" if lab.registry_answers() else " (does not answer)"
    click.echo(f"lab {lab.name}, registry {lab.registry}{silent}")
    rows = [("HOST", "OS", "ROLE", "ADDRESS", "DAEMON", "DOCKER_HOST")]
    for host in lab.view().hosts:
        if not netns.exists(host.netns):
            state = "switched off"
        elif host.docker_host is None:
            state = "-"
        elif host.pid is None:
            state = "not running"
        else:
            state = f"pid {host.pid}" + ("" if lab.answers(host.name) else ", does not answer")
        system = f"{host.os} (emulated)" if host.emulated else host.os
        if host.windows_python:
            system = f"{host.os} (Wine)"
        rows.append((host.name, system, host.role, host.address, state, host.docker_host or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for host in lab.view().hosts:
        if host.windows_python:
            click.echo(f"{host.name}: {WINDOWS_PYTHON}")


@lab.command()
@_name_argument
@click.option("--linux", default=2, show_default=True, help="Linux hosts.")
@click.option("--windows", type=int, help="Emulated Windows hosts.  [default: 1; 0 with --ipv6-underlay]")
@click.option(
    "--windows-python",
    default=0,
    show_default=True,
    help="Windows hosts whose agent runs under a Windows Python (Wine), with HNS and Docker Engine played by Linux.",
)
@click.option("--managers", default=1, show_default=True, help="How many of the Linux hosts are managers.")
@click.option("--no-swarm", is_flag=True, help="Start the daemons only; make no swarm of them.")
@click.option("--mtu", default=UNDERLAY_MTU, show_default=True, help="MTU of the underlay, bytes.")
@click.option(
    "--runtime",
    type=click.Choice(["oci", "docker"]),
    default="oci",
    show_default=True,
    help="What runs containers on the Linux hosts; docker: each has a Docker Engine of its own.",
)
@click.option(
    "--ipv6-underlay",
    is_flag=True,
    help="Hosts reach each other over IPv6: managers, and the tunnels of their networks. Without Windows hosts.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the lab as JSON.")
def up(
    name: str,
    linux: int,
    windows: int | None,
    windows_python: int,
    managers: int,
    no_swarm: bool,
    mtu: int,
    runtime: RuntimeKind,
    ipv6_underlay: bool,
    as_json: bool,
) -> None:
    """Build the lab NAME and make its hosts one swarm. What fails is taken down again."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed half-way: take down what was built
    made = Lab.up(
        name,
        linux=linux,
        windows=(0 if ipv6_underlay else 1) if windows is None else windows,
        windows_python=windows_python,
        managers=managers,
        form_swarm=not no_swarm,
        mtu=mtu,
        runtime=runtime,
        ipv6_underlay=ipv6_underlay,
        say=say_on_stderr,
    )
    if as_json:
        _print_json(made)
    else:
        _print_table(made)
        click.echo(f"\nexport DOCKER_HOST={made.manager.docker_host}    # then: docker node ls")


@lab.command()
@_name_argument
@click.option("--json", "as_json", is_flag=True, help="Print the lab as JSON.")
def status(name: str, as_json: bool) -> None:
    """Show the hosts of lab NAME."""
    found = Lab.open(name)
    (_print_json if as_json else _print_table)(found)


@lab.command("ls")
def ls() -> None:
    """Name the labs there are."""
    for name in Lab.names():
        click.echo(name)


class _ExecCommand(click.Command):
    """`--` splits lab and host from the command; click itself would drop it and could not tell them apart."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args and "--help" not in args[: args.index("--")]:
            at = args.index("--")
            ctx.obj = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


@lab.command("exec", cls=_ExecCommand, options_metavar="")
@click.argument("where", nargs=-1, metavar="[NAME] HOST -- COMMAND…")
@click.pass_context
def exec_(ctx: click.Context, where: tuple[str, ...]) -> None:
    """Run COMMAND on a host; DOCKER_HOST there is the host's own daemon. `switch` is the underlay's
    bridge. Network and host name are the host's; files are this machine's, /sys/class/net included: `ip link`
    shows the host's interfaces.
    """
    argv = ctx.obj or ()
    if not argv or len(where) not in (1, 2):
        raise InvalidArgument("say which host and what to run: overlace lab exec [NAME] HOST -- COMMAND…")
    found, host = _find(where)
    words = found.command(host, argv)
    os.execvpe(words[0], words, found.environment(host))


def _find(where: tuple[str, ...]) -> tuple[Lab, str]:
    if len(where) > 2:
        raise InvalidArgument(f"{' '.join(where)}: say [NAME] HOST, no more")
    name, host = where if len(where) == 2 else (DEFAULT_NAME, where[0])
    if len(where) == 1 and host in Lab.names():
        raise InvalidArgument(f"{host} is a lab: say which of its hosts, {host} HOST")
    return Lab.open(name), host


@lab.command()
@click.argument("where", nargs=-1, required=True, metavar="[NAME] HOST")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is written.")
def logs(where: tuple[str, ...], follow: bool) -> None:
    """Print the log of HOST's daemon; `registry` has one too."""
    found, host = _find(where)
    path = found.log(host)
    os.execvp("tail", ["tail", "-n", "+1", *(["-F"] if follow else []), path])


@lab.command()
@click.argument("where", nargs=-1, required=True, metavar="[NAME] HOST")
def kill(where: tuple[str, ...]) -> None:
    """Cut HOST's power: its daemon, containers and link are gone at once; its disk stays."""
    found, host = _find(where)
    found.kill_host(host)


@lab.command()
@click.argument("where", nargs=-1, required=True, metavar="[NAME] HOST")
def start(where: tuple[str, ...]) -> None:
    """Switch HOST on again."""
    found, host = _find(where)
    found.start_host(host)


@lab.command()
@click.argument("where", nargs=-1, required=True, metavar="[NAME] HOST")
@click.option("--engine", "part", flag_value="engine", help="Its Docker Engine instead (or what plays it).")
@click.option("--hns", "part", flag_value="hns", help="Its HNS instead (of a host with a Windows Python).")
@click.option("--crash", is_flag=True, help="End it by SIGKILL.")
def restart(where: tuple[str, ...], part: str | None, crash: bool) -> None:
    """Restart HOST's daemon alone; its containers and their traffic go on."""
    found, host = _find(where)
    found.restart(host, part or "daemon", signal.SIGKILL if crash else signal.SIGTERM)


@lab.command()
@_name_argument
@click.option("--all", "every", is_flag=True, help="Take every lab down.")
def down(name: str, every: bool) -> None:
    """Take lab NAME away with all it holds: processes, namespaces, mounts, BPF pins, state."""
    for each in Lab.names() if every else [name]:
        Lab.remove(each)
        say_on_stderr(f"lab {each} is gone")


@lab.command()
@_name_argument
def images(name: str) -> None:
    """Build the images of examples/shop and push them to the registry of lab NAME."""
    from overlace.lab.shop import push_images

    for image, digest in push_images(Lab.open(name).registry).items():
        click.echo(f"{image}  {digest}")


@lab.command()
@click.option("--keep", is_flag=True, help="Leave the lab up at the end.")
@click.option("--name", default="demo", show_default=True, help="The lab to make.")
@click.option(
    "--runtime",
    type=click.Choice(["oci", "docker"]),
    default="oci",
    show_default=True,
    help="What runs containers on the Linux hosts.",
)
@click.option(
    "--windows-python", is_flag=True, help="Have windows-1's agent run under a Windows Python (Wine)."
)
def demo(keep: bool, name: str, runtime: RuntimeKind, windows_python: bool) -> None:
    """Show a mixed swarm at work: what `make demo` runs."""
    from overlace.lab.demo import run_demo

    if name in Lab.names():
        raise Conflict(f"lab {name} is up already, from an earlier demo: overlace lab down {name}")
    raise SystemExit(run_demo(name, keep, runtime, windows_python))
