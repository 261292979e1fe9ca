"""Loads the eBPF object, adopts what an earlier daemon pinned, and attaches programs to interfaces.

Owns the pins of one instance: <bpffs>/overlace/<instance>/{maps,progs,links}/. Pins are what keeps traffic
going while no daemon runs. Must not know what the maps mean, except `layout` (what an upgrade compares).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from . import bpf_syscall as bpf
from .build import ensure_built
from .carry import KEPT, carry_rows, keep_maps, let_go
from .family import V4, V6, Family
from .maps import layout_of
from .netlink import Netlink

BPFFS = Path("/sys/fs/bpf")
PROGRAMS = ("from_container", "to_container", "from_underlay", "from_vxlan", "from_host", "from_edge")
# At a container's interface, and what is behind the interface's name in the pin of their link.
PORT_PROGRAMS = {"from_container": "", "to_container": "-in"}
AT_EGRESS = ("to_container",)
MAPS = (
    "layout",
    "config",
    "networks",
    "endpoints",
    "ports",
    "subnets",
    "exceptions",
    "routes",
    "reaches",
    "choices",
    "frontends",
    "backends",
    "access_lists",
    "address_sets",
    "members",
    "affinities",
    "limits",
    "floods",
    "flood_meters",
    "meters",
    "allowed",
    "hits",
    "turns",
    "flows",
    "fragments",
    "generation",
    "unified_flows",
    "newcomers",
    "watched",
    "counters",
    "prober_of",
    "traces",
    "drops",
    "paths",
    "six_programs",
    # of IPv6, see bpf/address.h
    "networks6",
    "endpoints6",
    "ports6",
    "subnets6",
    "routes6",
    "exceptions6",
    "floods6",
    "own_addresses",
    "own_addresses6",
    "reaches6",
    "choices6",
    "frontends6",
    "backends6",
    "access_lists6",
    "address_sets6",
    "members6",
    "affinities6",
    "allowed6",
    "flows6",
    "fragments6",
    "unified_flows6",
    "traces6",
)
# The programs for IPv6, by their number in `six_programs`; pinned with a 6 behind their names.
SIX_PROGRAMS = ("from_container", "from_underlay", "from_vxlan", "from_outside", "to_container")
# The programs of the socket level, and where they are attached (enum bpf_attach_type): those of socket.c, of socket6.c.
SOCKET_PROGRAMS = (
    {"connect4": 10, "connect_mapped": 11, "peer4": 29, "peer_mapped": 30},
    {"connect6": 11, "peer6": 30},
)
SOCKET_LINK = "socket-"  # before the program's name
_BPF_FS_MAGIC = 0xCAFE4A11


class LoadError(RuntimeError):
    """The kernel or libbpf refused the object; the message says which step."""


def ensure_bpffs() -> None:
    """Mount bpffs where it is absent."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs, f_type first
    if libc.statfs(str(BPFFS).encode(), buffer) == 0:
        (kind,) = struct.unpack_from("l", buffer)
        if kind == _BPF_FS_MAGIC:
            return
    if libc.mount(b"bpf", str(BPFFS).encode(), b"bpf", 0, b"mode=0700") != 0:
        error = ctypes.get_errno()
        raise LoadError(f"mount bpffs on {BPFFS}: {os.strerror(error)}")


def kernel_has_tcx() -> bool:
    """True from Linux 6.6 on."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (6, 6)


class Loader:
    """Programs and maps of one instance. `tcx`: attach by tcx links (kernel 6.6) or, False, by clsact
    filters. `sizes`: rows of maps that shall hold another number than bpf/maps.h says. `hosts`: what tunnels run over."""

    def __init__(
        self,
        instance: str,
        tcx: bool | None = None,
        sizes: Mapping[str, int] | None = None,
        hosts: Family = V4,
    ) -> None:
        self._sizes = dict(sizes or {})
        self._hosts = hosts
        self.root = BPFFS / "overlace" / instance
        self.maps: dict[str, bpf.Map] = {}
        self.programs: dict[str, int] = {}
        self.tcx = kernel_has_tcx() if tcx is None else tcx
        self._renewed = False
        self.left: dict[
            str, str
        ] = {}  # what a switch could not take over from the old layout's maps, and why

    @property
    def links(self) -> Path:
        return self.root / "links"

    def open(self) -> bool:
        """Adopt the pinned programs and maps, or load them. True when the maps were made anew (and are
        empty).

        The maps are kept across a change of the programs alone. After a change of the layout `is_switching` holds:
        fill the new maps, then carry_connections(), attach, carry_connections(), finish_switch(). Raises LoadError;
        BuildError when the object must be built and clang is missing.
        """
        ensure_bpffs()
        self._remove_gone()
        paths = ensure_built(over_ipv6=self._hosts is V6)
        code = b"".join(path.read_bytes() for path in paths)
        digest = int.from_bytes(hashlib.blake2b(code, digest_size=8).digest(), "little")
        layout, loaded = self._pinned_layout()
        wanted = layout_of(self._hosts)
        fresh = layout != wanted or self.is_switching
        if fresh:
            self._step_aside(layout)
        for part in ("maps", "progs", "links"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        self._renewed = fresh or loaded != digest or not self._adopt()
        if self._renewed:
            self._load(*paths[:2])
            self.maps["layout"].update(struct.pack("I", 0), struct.pack("Q", wanted))
            self.maps["layout"].update(struct.pack("I", 1), struct.pack("Q", digest))
        return fresh

    # the socket level

    def open_sockets(self) -> None:
        """After open(): the programs of the socket level, adopted or loaded. Raises LoadError when the kernel refuses
        them; the packet level does without."""
        names = [name for programs in SOCKET_PROGRAMS for name in programs]
        pins = self.root / "progs"
        if all(name in self.programs for name in names):
            return
        if not self._renewed and all((pins / name).exists() for name in names):
            self.programs |= {name: bpf.get_pinned(pins / name) for name in names}
            return
        objects = ensure_built(over_ipv6=self._hosts is V6)
        for path, programs in zip(objects[2:], SOCKET_PROGRAMS, strict=True):
            self._load_object(path, tuple(programs), "")

    def attach_sockets(self, cgroup: Path) -> None:
        """Have the programs at a cgroup of v2, for what is in it and below. Raises OSError, then none is attached."""
        try:
            for programs in SOCKET_PROGRAMS:
                for name, kind in programs.items():
                    self._ensure_at(cgroup, name, kind)
        except OSError:
            self.detach_sockets()
            raise

    def detach_sockets(self) -> None:
        """Take the socket level away; connections it gave a backend go on."""
        for name in self.link_names():
            if name.startswith(SOCKET_LINK):
                self.detach(name)

    def _ensure_at(self, cgroup: Path, program: str, kind: int) -> None:
        path, fd = self.links / f"{SOCKET_LINK}{program}", self.programs[program]
        if self._carries(path, fd, bpf.cgroup_target, cgroup.stat().st_ino):  # a cgroup's id, kernfs(5)
            return
        folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link = bpf.create_cgroup_link(fd, folder, kind)
        finally:
            os.close(folder)
        try:
            bpf.pin(link, path)
        finally:
            os.close(link)

    # another layout: the old programs go on with the old maps until the new maps are filled

    @property
    def is_switching(self) -> bool:
        """True between open() on pins of another layout and finish_switch(): links still carry the old programs."""
        return (self.root / "old").is_dir()

    def _step_aside(self, layout: int) -> None:
        """Make room for new maps. What an unfinished switch had made goes, its old maps stay."""
        if not layout and not self.is_switching:
            self.drop_pins()
            return
        if not self.is_switching:
            os.rename(self.root / "maps", self.root / "old")
        for part in ("maps", "progs"):
            _remove_pins(self.root / part)
        (self.root / "maps").mkdir(exist_ok=True)
        keep_maps(self.root / "old", self.root / "maps")

    def carry_connections(self) -> None:
        """Bring to the new maps what the old ones know of connections and the new ones do not. Called once before the
        links are switched, for connections to go on, and once after, for those that began meanwhile. `left` says what
        could not be brought over."""
        self.left |= carry_rows(self.root / "old", self.maps)

    def finish_switch(self) -> None:
        """The old maps go. They live on for as long as a link has the old programs."""
        os.rename(self.root / "old", self.root / "gone")  # from here on the new maps are what is adopted
        self._remove_gone()

    def _remove_gone(self) -> None:
        _remove_pins(self.root / "gone")
        if (self.root / "gone").is_dir():
            (self.root / "gone").rmdir()

    def _pinned_layout(self) -> tuple[int, int]:
        try:
            layout = bpf.Map(bpf.get_pinned(self.root / "maps" / "layout"), "layout")
        except FileNotFoundError:
            return 0, 0
        try:
            version, digest = (layout.lookup(struct.pack("I", i)) or bytes(8) for i in (0, 1))
            return struct.unpack("Q", version)[0], struct.unpack("Q", digest)[0]
        finally:
            layout.close()

    def _adopt(self) -> bool:
        try:
            for name in (*PROGRAMS, *(f"{name}6" for name in SIX_PROGRAMS)):
                self.programs[name] = bpf.get_pinned(self.root / "progs" / name)
            for name in MAPS:
                self.maps[name] = bpf.Map(bpf.get_pinned(self.root / "maps" / name), name)
        except FileNotFoundError:
            self.close()
            return False
        return True

    def _load(self, path: Path, path6: Path) -> None:
        """IPv6's programs first: none of IPv4's is ever without them."""
        self._load_object(path6, SIX_PROGRAMS, "6")
        self._load_object(path, PROGRAMS, "")
        missing = [name for name in MAPS if name not in self.maps]
        if missing:
            raise LoadError(f"{path.name} has no map {missing[0]}: build it again")
        for number, name in enumerate(SIX_PROGRAMS):
            program = struct.pack("I", self.programs[f"{name}6"])
            self.maps["six_programs"].update(struct.pack("I", number), program)

    def _load_object(self, path: Path, programs: tuple[str, ...], suffix: str) -> None:
        """The object's maps and programs, pinned; a map that another object has pinned is shared."""
        lib = _libbpf()
        obj = lib.bpf_object__open_file(str(path).encode(), None)
        if not obj:
            raise LoadError(f"libbpf cannot open {path}: {os.strerror(ctypes.get_errno())}")
        try:
            handles = {name: lib.bpf_object__find_map_by_name(obj, name.encode()) for name in MAPS}
            there = {name: handle for name, handle in handles.items() if handle}
            for name, handle in there.items():
                if name in self._sizes:
                    lib.bpf_map__set_max_entries(handle, self._sizes[name])
                pin = self.root / "maps" / name
                if name in KEPT and (
                    why := let_go(pin, lib.bpf_map__key_size(handle), lib.bpf_map__value_size(handle))
                ):
                    self.left[name] = why
                lib.bpf_map__set_pin_path(handle, str(pin).encode())
            error = lib.bpf_object__load(obj)
            if error:
                raise LoadError(f"the kernel refused {path.name}: {os.strerror(-error)}")
            for name in there.keys() - self.maps.keys():
                fd = os.dup(lib.bpf_object__find_map_fd_by_name(obj, name.encode()))
                self.maps[name] = bpf.Map(fd, name)
            for name in programs:
                handle = lib.bpf_object__find_program_by_name(obj, name.encode())
                self.programs[name + suffix] = fd = os.dup(lib.bpf_program__fd(handle))
                pinned = self.root / "progs" / (name + suffix)
                pinned.unlink(missing_ok=True)
                bpf.pin(fd, pinned)
        finally:
            lib.bpf_object__close(obj)

    def ensure_attached(self, netlink: Netlink, ifindex: int, program: str, name: str) -> None:
        """Have `program` at `ifindex`, under the link pin `name`. Replaces another program in place and a link whose
        device is gone. Before kernel 6.6: a clsact filter, which lives with its device."""
        fd = self.programs[program]
        path = self.links / name
        egress = program in AT_EGRESS
        if self.tcx:
            if self._carries(path, fd, bpf.link_target, ifindex):
                return
            link = bpf.create_tcx_link(fd, ifindex, bpf.TCX_EGRESS if egress else bpf.TCX_INGRESS)
            try:
                bpf.pin(link, path)
            finally:
                os.close(link)
            return
        netlink.ensure_clsact(ifindex, fd, f"overlace_{program}", egress=egress)

    def ensure_port(self, netlink: Netlink, ifindex: int, name: str) -> None:
        """Have the programs of a container's host-side interface, which has this name."""
        for program, suffix in PORT_PROGRAMS.items():
            self.ensure_attached(netlink, ifindex, program, name + suffix)

    def detach_port(self, name: str) -> None:
        """Take them off; absent is fine."""
        for pin in port_links(name):
            self.detach(pin)

    def _carries(self, path: Path, fd: int, look: Callable[[int], tuple[int, int]], where: int) -> bool:
        """Whether the link pinned there, if any, is at `where`; then it has program `fd` from now on, else it is gone.
        `look`: (program id, where) of a link."""
        try:
            link = bpf.get_pinned(path)
        except FileNotFoundError:
            return False
        try:
            attached, target = look(link)
            if target == where:
                if attached != bpf.program_id(fd):
                    bpf.update_link(link, fd)
                return True
        finally:
            os.close(link)
        self.detach(path.name)
        return False

    def detach(self, name: str) -> None:
        """Take the link pinned as `name` off its device; absent is fine."""
        path = self.links / name
        try:
            link = bpf.get_pinned(path)
        except FileNotFoundError:
            return
        try:
            bpf.detach_link(link)
        except OSError as e:
            if e.errno not in (errno.ENOLINK, errno.ENODEV):  # its device is gone, and so is the attachment
                raise  # the pin is the only way to it: it stays
        finally:
            os.close(link)
        path.unlink(missing_ok=True)

    def link_names(self) -> set[str]:
        """Every pinned link."""
        try:
            return set(os.listdir(self.links))
        except FileNotFoundError:
            return set()

    def look(self) -> dict[str, tuple[int, int]]:
        """By name of the pinned link: the program's id, and the ifindex or cgroup where it is attached, 0: nowhere."""
        found = {}
        for name in self.link_names():
            try:
                link = bpf.get_pinned(self.links / name)
            except FileNotFoundError:
                continue
            try:
                found[name] = (bpf.cgroup_target if name.startswith(SOCKET_LINK) else bpf.link_target)(link)
            finally:
                os.close(link)
        return found

    def close(self) -> None:
        """Let go of all descriptors; pins and attachments stay."""
        for item in self.maps.values():
            item.close()
        for fd in self.programs.values():
            os.close(fd)
        self.maps, self.programs = {}, {}

    def drop_pins(self) -> None:
        """Detach every link and remove every pin."""
        for name in self.link_names():
            self.detach(name)
        for part in ("links", "progs", "maps", "old", "gone"):
            _remove_pins(self.root / part)

    def destroy(self) -> None:
        """Remove everything of this instance from bpffs."""
        self.close()
        if self.root.is_dir():
            self.drop_pins()
            shutil.rmtree(self.root)
        try:
            self.root.parent.rmdir()
        except OSError:
            pass  # another instance lives there


def port_links(name: str) -> set[str]:
    """Pins of the links at a container's host-side interface of this name."""
    return {name + suffix for suffix in PORT_PROGRAMS.values()}


def _remove_pins(folder: Path) -> None:
    if folder.is_dir():
        for pinned in folder.iterdir():
            pinned.unlink()


def _libbpf() -> ctypes.CDLL:
    name = ctypes.util.find_library("bpf") or "libbpf.so.1"
    try:
        lib = ctypes.CDLL(name, use_errno=True)
    except OSError as e:
        raise LoadError(f"libbpf (1.0 or newer) is needed to load the eBPF programs: {e}") from e
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for function, result, arguments in (
        ("bpf_object__open_file", pointer, [text, pointer]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__find_map_by_name", pointer, [pointer, text]),
        ("bpf_map__set_pin_path", ctypes.c_int, [pointer, text]),
        ("bpf_map__key_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__value_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__set_max_entries", ctypes.c_int, [pointer, ctypes.c_uint32]),
        ("bpf_object__find_map_fd_by_name", ctypes.c_int, [pointer, text]),
        ("bpf_object__find_program_by_name", pointer, [pointer, text]),
        ("bpf_program__fd", ctypes.c_int, [pointer]),
        ("libbpf_set_print", pointer, [pointer]),
    ):
        bound = getattr(lib, function)
        bound.restype, bound.argtypes = result, arguments
    lib.libbpf_set_print(None)
    return lib
