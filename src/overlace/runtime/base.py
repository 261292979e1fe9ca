"""The contract every container runtime offers to the agent.

Owns the words between agent and runtime: what a container should be, what it is, and the verbs.
Must not know swarm objects, networks or HTTP: the agent resolves those before it calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

ContainerStatus = Literal["created", "running", "exited", "dead"]
HealthStatus = Literal["starting", "healthy", "unhealthy"]


class Platform(msgspec.Struct, frozen=True):
    """A platform as an OCI image index names it (image-spec, descriptor `platform`)."""

    os: str
    architecture: str
    os_version: str = ""
    variant: str = ""


class RegistryAuth(msgspec.Struct, frozen=True):
    """Credentials for one registry, decoded from Docker's X-Registry-Auth header."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    server: str = ""


class Mount(msgspec.Struct, frozen=True):
    """One mount; `source` is a host path (bind) or a volume name (volume), absent for tmpfs.

    A volume without a name is the container's own and goes with it.
    """

    type: Literal["bind", "volume", "tmpfs"]
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = "rprivate"
    tmpfs_size: int = 0  # bytes, 0 = kernel default
    tmpfs_mode: int = 0o1777
    no_copy: bool = False  # volume: a fresh one stays empty, whatever the image has at `target`
    create_source: bool = False  # bind: make the source as a folder when it is not there
    recursive: bool = True  # bind: what is mounted below the source is there too
    # bind: whether what is mounted below is read-only as well; where the kernel can, never, or not without
    recursive_read_only: Literal["try", "no", "must"] = "try"
    subpath: str = ""  # volume: this folder or file of it instead of all
    volume_labels: dict[str, str] = {}  # of a volume that this mount makes
    volume_options: dict[str, str] = {}  # likewise: type, device and o of what is mounted as the volume
    tmpfs_exec: bool = False


class Volume(msgspec.Struct, frozen=True):
    """A volume as mounted: `path` is its folder on the host."""

    name: str
    target: str
    path: str
    read_only: bool = False


class StoredVolume(msgspec.Struct, frozen=True):
    """A volume this host keeps, mounted or not."""

    name: str
    path: str  # its folder on the host
    created_at: int  # ns
    labels: dict[str, str] = {}
    options: dict[str, str] = {}  # type, device, o of what is mounted there


class FileMount(msgspec.Struct, frozen=True):
    """A secret (kept on tmpfs only) or a config, placed as one file in the container."""

    target: str  # absolute path in the container
    data: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o444
    secret: bool = True


class Healthcheck(msgspec.Struct, frozen=True):
    """Docker's healthcheck, durations in nanoseconds; `test` as in the image config (`CMD`, `CMD-SHELL`, `NONE`)."""

    test: tuple[str, ...] = ()
    interval: int = 30_000_000_000
    timeout: int = 30_000_000_000
    start_period: int = 0
    start_interval: int = 5_000_000_000
    retries: int = 3


class Ulimit(msgspec.Struct, frozen=True):
    name: str
    soft: int
    hard: int


class ContainerConfig(msgspec.Struct, frozen=True):
    """All a runtime needs to create one container. None means: take the image's own value."""

    id: str  # 64 hex digits, chosen by the caller
    name: str
    image: str  # reference as pulled; digest included when the manager pinned it
    netns: (
        str  # path of the network namespace to join; "": a new one with loopback alone, "host": this host's
    )
    entrypoint: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    workdir: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    hostname: str = ""
    labels: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    files: tuple[FileMount, ...] = ()
    resolv_conf: str = ""
    hosts: tuple[tuple[str, str], ...] = ()  # (name, address), extra /etc/hosts lines
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False  # its standard input ends with that of the first who attaches
    read_only: bool = False
    init: bool = False
    stop_signal: str | None = None
    stop_grace: int = 10_000_000_000  # ns
    healthcheck: Healthcheck | None = None
    nano_cpus: int = 0
    memory: int = 0  # bytes
    pids: int = 0
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0
    no_new_privileges: bool = False
    seccomp: str = ""  # "": the runtime's own filter, `unconfined`: none, else a profile in Docker's JSON
    swap: int | None = None  # bytes besides `memory`, -1 without end; None: as much as memory
    swappiness: int = -1  # 0 to 100; -1: the host's
    isolation: str = ""  # of a Windows container: process, hyperv, or the host's default
    log_driver: Literal["json-file", "local", "none"] = "json-file"
    log_max_size: int = 0  # bytes of one log file, 0 = the runtime's default
    log_max_files: int = 0  # files of that size, the one being written included; 0 = the runtime's default


class HealthLog(msgspec.Struct, frozen=True):
    start: int
    end: int
    exit_code: int
    output: str


class HostFiles(msgspec.Struct, frozen=True):
    """Where on the host some of a container's own files are; empty: it has none."""

    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    log: str = ""


class Container(msgspec.Struct, frozen=True):
    """What a container is right now. Timestamps are ns since the epoch, 0 = never."""

    config: ContainerConfig  # `files` emptied: secrets are never given back
    status: ContainerStatus
    image_id: str
    created_at: int
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: int = 0
    finished_at: int = 0
    health: HealthStatus | None = None
    failing_streak: int = 0
    health_log: tuple[HealthLog, ...] = ()
    argv: tuple[str, ...] = ()  # the resolved command line
    volumes: tuple[Volume, ...] = ()  # those of its mounts and those its image declares
    host_files: HostFiles = HostFiles()


class Image(msgspec.Struct, frozen=True):
    """One image in the local store. `id` is `sha256:<hex>` of the image config."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]  # repo@sha256:…
    platform: Platform
    created: str  # RFC 3339, from the image config
    size: int  # bytes
    config: dict[str, object]  # the image config's `config` object (Env, Cmd, Entrypoint, …)
    layers: tuple[str, ...] = ()  # diff ids


class LogLine(msgspec.Struct, frozen=True):
    timestamp: int  # ns since the epoch
    stream: Literal["stdout", "stderr"]
    data: bytes  # with its newline, if the container wrote one


class LogOptions(msgspec.Struct, frozen=True):
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: int = 0  # ns since the epoch
    until: int = 0
    tail: int = -1  # lines, -1 = all


class Interface(msgspec.Struct, frozen=True):
    """Counters of one network interface, as the container sees them."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a container uses: times in ns since it was made, sizes in bytes, 0 for no limit."""

    cpu_total: int = 0
    cpu_user: int = 0
    cpu_kernel: int = 0
    system: int = 0  # of all the host's processors, idle or not
    memory: int = 0
    memory_limit: int = 0
    memory_stats: dict[str, int] = {}
    pids: int = 0
    pids_limit: int = 0
    io: tuple[tuple[int, int, str, int], ...] = ()  # (major, minor, read | write, bytes)
    interfaces: tuple[Interface, ...] = ()


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A program to run in a container besides its own; what is not said is as the container's."""

    argv: tuple[str, ...]
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    privileged: bool = False
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    size: tuple[int, int] | None = None  # (height, width) of its terminal, in cells


class ExecOutput(msgspec.Struct, frozen=True):
    stream: Literal["stdout", "stderr"]
    data: bytes


class Exec(Protocol):
    """A program started by `Runtime.exec`. One reader of `output` at a time; `close` when done with it."""

    @property
    def pid(self) -> int:
        """On this host; 0 when it is not known."""

    def output(self) -> AsyncIterator[ExecOutput]:
        """What it writes until it ends; a program that could not be run says why, on stderr."""

    async def write(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...

    def resize(self, height: int, width: int) -> None:
        """Raises Conflict when it has no terminal."""

    async def wait(self) -> int:
        """Its exit code: 128+n for signal n; 126, 127 when it could not be run, as a shell says."""

    async def close(self) -> None:
        """Let go of it, ended or not."""


PullProgress = Callable[[str, str], None]
"""Called with a layer's short id and Docker's word for how far it is: `Pulling fs layer`, `Download complete`,
`Pull complete`, `Already exists`."""


class Runtime(Protocol):
    """Verbs of a runtime. Errors are those of `overlace.model.errors`: NotFound, Conflict, InvalidArgument, Unavailable
    (a pull that failed, with the registry's own words), Internal (the runtime's stderr). All verbs are idempotent where
    that makes sense: create of an existing id with the same config, start of a running, stop of an exited one succeed."""

    async def open(self) -> None:
        """Find again what an earlier process left: running and exited containers, images, healthchecks to go on with."""

    async def close(self) -> None:
        """Let go of everything without stopping any container."""

    async def version(self) -> dict[str, str]: ...

    async def pull(
        self,
        reference: str,
        platform: Platform,
        auth: RegistryAuth | None = None,
        progress: PullProgress | None = None,
    ) -> Image:
        """Fetch for `platform` (index resolved by os/arch and, for windows, os.version); no-op when a digest is there.

        `progress` is called on the loop as the layers get on; it must not block.
        """

    async def images(self) -> list[Image]: ...

    async def image(self, name: str) -> Image:
        """By id, id prefix, reference (default tag `latest`) or digest."""

    async def remove_image(self, name: str, force: bool = False) -> list[str]: ...

    async def attach(self, container_id: str, early: bool = False) -> Exec:
        """Its own standard streams, from now on; several may look at once. `early`: of one that does not run yet, from
        its next start on, nothing missed; its streams end when that start fails.

        Raises NotFound, Conflict (it does not run)."""

    async def resize(self, container_id: str, height: int, width: int) -> None:
        """The size of its terminal, in cells. Raises NotFound, Conflict (it does not run, it has none)."""

    async def top(self, container_id: str, arguments: str) -> tuple[list[str], list[list[str]]]:
        """(titles, rows) of its processes, as `ps ARGUMENTS` on this host prints them. Raises NotFound, Conflict (it
        does not run), InvalidArgument."""

    async def usage(self, container_id: str) -> Usage | None:
        """What it uses now; None when it does not run. Raises NotFound."""

    async def volumes(self) -> list[StoredVolume]:
        """Every volume of this host, by name."""

    async def create_volume(
        self, name: str, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> StoredVolume:
        """One that is there already is given back as it is; no name: one is made up. Raises InvalidArgument."""

    async def remove_volume(self, name: str) -> int:
        """With its content; the bytes that were in its files. Raises NotFound; Conflict while a container has it, running
        or not."""

    async def create(self, config: ContainerConfig) -> Container: ...

    async def start(self, container_id: str) -> Container: ...

    async def stop(self, container_id: str, grace: int | None = None) -> Container:
        """Stop signal, then SIGKILL after `grace` ns (default: the container's own)."""

    async def kill(self, container_id: str, signal: str) -> None: ...

    async def exec(self, container_id: str, config: ExecConfig) -> Exec:
        """Run another program in it. Raises NotFound, Conflict (it does not run), InvalidArgument (user, folder)."""

    async def erase_files(self, container_id: str) -> None:
        """Take secrets and configs of one that has ended off this host; it cannot start again. Absent: no error.

        Raises Conflict while it runs."""

    async def remove(self, container_id: str, force: bool = False, volumes: bool = True) -> None:
        """Remove with its writable layer, secrets, logs and (`volumes`) anonymous volumes. Absent: no error."""

    async def rename(self, container_id: str, name: str) -> None:
        """Raises NotFound, Conflict (another has the name)."""

    async def inspect(self, container_id: str) -> Container: ...

    async def list(self) -> list[Container]: ...

    async def layer_size(self, container_id: str) -> int:
        """Bytes in the files of its own writable layer."""

    async def wait(self, container_id: str) -> Container:
        """Return when the container is not running (at once if so)."""

    def changes(self) -> AsyncIterator[str]:
        """Yield ids of containers whose status or health changed, from the moment of the call, until closed."""

    def logs(self, container_id: str, options: LogOptions) -> AsyncIterator[LogLine]: ...


@runtime_checkable
class Sandboxes(Protocol):
    """Further verbs of a runtime that makes its containers' network namespaces itself, as they start.

    Instead of `start` on a namespace given: `hold`, attach what the container shall have, `release`. A container that
    is held counts as created. Its config has no `netns`, and no name servers, which are not known before.
    """

    @property
    def gated(self) -> bool:
        """Whether `hold` keeps the program from running until `release`. Where it cannot (Windows) the program runs,
        without a network, from `hold` on: have all that may fail behind you, and attach at once. Hosts are then in the
        config."""

    async def hold(self, container_id: str) -> Path | None:
        """Have its network sandbox, as `NetworkDriver.attach` takes it: the path of a namespace, on Windows the id by
        which the host's HNS knows the container. None: not gated, and the program has ended already. Idempotent."""

    async def release(
        self, container_id: str, resolv_conf: str, hosts: Sequence[tuple[str, str]]
    ) -> Container:
        """Let its program run, with this resolv.conf and further (name, address) lines of /etc/hosts. Where it runs
        already both are known to it; from here on it counts as running. Idempotent."""
