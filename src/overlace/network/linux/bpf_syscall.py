"""bpf(2) by hand: maps, pins, links, test runs. Layouts are those of union bpf_attr in <linux/bpf.h>.

Owns the system call's encoding. Must not know what the maps mean.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT = 1, 2, 3, 4
_OBJ_PIN, _OBJ_GET, _TEST_RUN, _INFO = 6, 7, 10, 15
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 24, 26, 27
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34
TCX_INGRESS, TCX_EGRESS = 46, 47
_BATCH = 4096
_PER_CPU = (5, 6, 10)  # hash, array and LRU hash per processor: enum bpf_map_type
_FEW = 4  # fewer rows go one by one
_ENOTSUPP = 524  # the kernel's own, not in errno

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: bytes | ctypes.Array[ctypes.c_char], what: str) -> int:
    buffer = attr if isinstance(attr, ctypes.Array) else ctypes.create_string_buffer(attr, len(attr))
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"bpf(2): machine {platform.machine()} is not known here")
    result: int = _libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def possible_cpus() -> int:
    """How many values a per-processor map has."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


class Map:
    """An open map. Keys and values are bytes of exactly key_size and value_size; of a per-CPU map, the values of all
    processors one after the other."""

    def __init__(self, fd: int, name: str = "map") -> None:
        self.fd, self.name = fd, name
        info = object_info(fd, 80)
        self.type, self.id, self.key_size, self.value_size, self.max_entries = struct.unpack_from("5I", info)
        if self.type in _PER_CPU:  # the kernel gives the values of all processors, each on eight bytes
            self.value_size = (self.value_size + 7) // 8 * 8 * possible_cpus()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _element(
        self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0
    ) -> None:
        keys = ctypes.create_string_buffer(key, len(key))
        attr = struct.pack("IxxxxQQQ", self.fd, _address(keys), _address(value) if value else 0, flags)
        _bpf(command, attr, f"map {self.name}")

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None."""
        value = ctypes.create_string_buffer(self.value_size)
        try:
            self._element(_MAP_LOOKUP, key, value)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        self._element(_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def delete(self, key: bytes) -> None:
        """Remove; absent is fine."""
        try:
            self._element(_MAP_DELETE, key, None)
        except FileNotFoundError:
            pass

    def put_many(self, rows: Mapping[bytes, bytes]) -> None:
        """Write in batches. Raises OSError with the map's name; it says so when the map is full."""
        try:
            if len(rows) < _FEW:
                for key, value in rows.items():
                    self.update(key, value)
                return
            attr, _ = self._batch(b"".join(rows.keys()), b"".join(rows.values()), len(rows))
            _bpf(_UPDATE_BATCH, attr, f"map {self.name}, {len(rows)} updates")
        except OSError as e:
            if e.errno in (errno.E2BIG, errno.ENOSPC):
                raise OSError(e.errno, f"map {self.name} is full: it holds {self.max_entries} rows") from e
            raise

    def _batch(
        self, keys: bytes, values: bytes, count: int
    ) -> tuple[ctypes.Array[ctypes.c_char], tuple[object, ...]]:
        """The call's attributes, and the buffers they point into."""
        buffers = [ctypes.create_string_buffer(part, len(part)) if part else None for part in (keys, values)]
        where = [_address(buffer) if buffer else 0 for buffer in buffers]
        attr = ctypes.create_string_buffer(56)
        struct.pack_into("QQQQIIQQ", attr, 0, 0, 0, *where, count, self.fd, 0, 0)
        return attr, tuple(buffers)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Remove; absent ones are fine."""
        left = list(keys)
        while len(left) >= _FEW:
            attr, _ = self._batch(b"".join(left), b"", len(left))
            try:
                _bpf(_DELETE_BATCH, attr, f"map {self.name}, {len(left)} removals")
                return
            except OSError as e:
                if e.errno in (errno.EINVAL, _ENOTSUPP, errno.EOPNOTSUPP):  # type without batches
                    break
                if e.errno != errno.ENOENT:
                    raise
                left = left[struct.unpack_from("I", attr, 32)[0] + 1 :]  # it stops at one that is absent
        for key in left:
            self.delete(key)

    def _next(self, key: bytes | None) -> bytes | None:
        out = ctypes.create_string_buffer(self.key_size)
        keys = ctypes.create_string_buffer(key, len(key)) if key is not None else None
        attr = struct.pack("IxxxxQQQ", self.fd, _address(keys) if keys else 0, _address(out), 0)
        try:
            _bpf(_MAP_NEXT, attr, f"map {self.name}")
        except FileNotFoundError:
            return None
        return out.raw

    def count(self) -> int:
        """Rows there are."""
        try:
            return sum(count for count, _, _ in self._batches())
        except OSError as e:
            if e.errno not in (errno.EINVAL, _ENOTSUPP, errno.EOPNOTSUPP):  # type without batches
                raise
            return sum(1 for _ in self.items())

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every row, by batch where the map's type can, else key by key."""
        try:
            yield from self._batched()
        except OSError as e:
            if e.errno not in (errno.EINVAL, _ENOTSUPP, errno.EOPNOTSUPP):  # type without batches
                raise
            key = self._next(None)
            while key is not None:
                value = self.lookup(key)
                if value is not None:
                    yield key, value
                key = self._next(key)

    def _batched(self) -> Iterator[tuple[bytes, bytes]]:
        k, v = self.key_size, self.value_size
        for count, keys, values in self._batches():
            ks, vs = keys.raw, values.raw
            for i in range(count):
                yield ks[i * k : (i + 1) * k], vs[i * v : (i + 1) * v]

    def _batches(self) -> Iterator[tuple[int, ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]]:
        """(rows, keys, values), the buffers the same each time."""
        keys = ctypes.create_string_buffer(self.key_size * _BATCH)
        values = ctypes.create_string_buffer(self.value_size * _BATCH)
        token = ctypes.create_string_buffer(max(self.key_size, 8))
        first = True
        while True:
            attr = ctypes.create_string_buffer(56)
            struct.pack_into(
                "QQQQIIQQ", attr, 0, 0 if first else _address(token), _address(token), _address(keys),
                _address(values), _BATCH, self.fd, 0, 0,
            )  # fmt: skip
            done = False
            try:
                _bpf(_LOOKUP_BATCH, attr, f"map {self.name}")
            except FileNotFoundError:
                done = True
            first = False
            (count,) = struct.unpack_from("I", attr, 32)
            yield count, keys, values
            if done:
                return


def object_info(fd: int, size: int) -> bytes:
    """bpf_map_info, bpf_prog_info or bpf_link_info of an open object: its first `size` bytes."""
    info = ctypes.create_string_buffer(size)
    _bpf(_INFO, struct.pack("IIQ", fd, size, _address(info)), "object info")
    return info.raw


def program_id(fd: int) -> int:
    return int(struct.unpack_from("II", object_info(fd, 80))[1])


def link_target(fd: int) -> tuple[int, int]:
    """(program id, ifindex) of a tcx link; ifindex is 0 when the device is gone."""
    info = object_info(fd, 48)
    return int(struct.unpack_from("I", info, 8)[0]), int(struct.unpack_from("I", info, 16)[0])


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(str(path).encode())
    _bpf(_OBJ_PIN, struct.pack("QII", _address(name), fd, 0), f"pin {path}")


def get_pinned(path: Path) -> int:
    """Open a pin; raises FileNotFoundError when there is none."""
    name = ctypes.create_string_buffer(str(path).encode())
    return _bpf(_OBJ_GET, struct.pack("QII", _address(name), 0, 0), f"open pin {path}")


def create_tcx_link(program: int, ifindex: int, where: int = TCX_INGRESS) -> int:
    """Attach at tcx ingress, or egress; raises OSError(EINVAL) on kernels before 6.6."""
    attr = struct.pack("IIIIQQ", program, ifindex, where, 0, 0, 0)
    return _bpf(_LINK_CREATE, attr, f"tcx link on {ifindex}")


def create_cgroup_link(program: int, cgroup: int, kind: int) -> int:
    """Attach at a cgroup of v2, an open descriptor of its folder, beside what others attach there. `kind`: enum
    bpf_attach_type."""
    return _bpf(_LINK_CREATE, struct.pack("IIIIQQ", program, cgroup, kind, 0, 0, 0), "link at the cgroup")


def cgroup_target(link: int) -> tuple[int, int]:
    """(program id, cgroup id) of a link at a cgroup; the cgroup's is 0 when it is gone."""
    info = object_info(link, 48)
    return int(struct.unpack_from("I", info, 8)[0]), int(struct.unpack_from("Q", info, 16)[0])


def update_link(link: int, program: int) -> None:
    _bpf(_LINK_UPDATE, struct.pack("IIII", link, program, 0, 0), "link update")


def detach_link(link: int) -> None:
    _bpf(_LINK_DETACH, struct.pack("I", link), "link detach")


def run_program(program: int, frame: bytes, ifindex: int = 1, cb: int = 0) -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN on one frame: (return code, frame afterwards, reason the program left in cb[0]). `cb`: each word
    of it that whoever had the frame before left."""
    data = ctypes.create_string_buffer(frame, len(frame))
    out = ctypes.create_string_buffer(len(frame) + 512)
    context = ctypes.create_string_buffer(192)  # struct __sk_buff
    struct.pack_into("I", context, 40, ifindex)
    struct.pack_into("5I", context, 48, *[cb] * 5)
    result = ctypes.create_string_buffer(192)
    attr = ctypes.create_string_buffer(80)
    struct.pack_into(
        "IIIIQQIIIIQQIII", attr, 0, program, 0, len(frame), len(out), _address(data), _address(out), 1, 0,
        len(context), len(result), _address(context), _address(result), 0, 0, 0,
    )  # fmt: skip
    _bpf(_TEST_RUN, attr, "test run")
    code, _, size = struct.unpack_from("III", attr, 4)
    (reason,) = struct.unpack_from("I", result, 48)
    return code if code < 1 << 31 else code - (1 << 32), out.raw[:size], reason
