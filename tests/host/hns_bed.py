"""A served HNS and its clients: the same cases run over every backend and every way in.

Owns starting and ending `overlace hns serve`, and `Hcn`, a client written as hcsshim is: open, act, query, close.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from overlace.network.linux.netns import run_inside

NULL = "00000000-0000-0000-0000-000000000000"
PLURAL = {"Network": "Networks", "Endpoint": "Endpoints", "Namespace": "Namespaces",
          "LoadBalancer": "LoadBalancers", "SdnRoute": "SdnRoutes"}  # fmt: skip


class Answer(NamedTuple):
    hr: int
    handle: int = 0
    result: str | None = None
    record: str | None = None


class Boundary(Protocol):
    """The C calls, whatever carries them."""

    def call(
        self, operation: str, handle: int = 0, guid: str = "-", document: str | None = None
    ) -> Answer: ...


class Refused(Exception):
    def __init__(self, hr: int, text: str) -> None:
        super().__init__(f"{hr:#010x} {text}")
        self.hr, self.text = hr, text


class Wire:
    """The serve protocol itself, from inside a network namespace."""

    def __init__(self, port: int, where: Path | None = None) -> None:
        self.port, self.where = port, where

    def connect(self) -> socket.socket:
        def body() -> socket.socket:
            return socket.create_connection(("127.0.0.1", self.port), timeout=30)

        return run_inside(self.where, body) if self.where else body()

    def call(self, operation: str, handle: int = 0, guid: str = "-", document: str | None = None) -> Answer:
        data = document.encode() if document is not None else b""
        length = len(data) if document is not None else -1
        with self.connect() as connection:
            connection.sendall(f"{operation} {handle} {guid} {length}\n".encode() + data)
            return read_answer(connection)


def free_port(where: Path | None) -> int:
    """One that stays the same over restarts."""

    def body() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])

    return run_inside(where, body) if where else body()


def read_answer(connection: socket.socket) -> Answer:
    with connection.makefile("rb") as stream:
        hr, handle, *sizes = stream.readline().decode().split()
        assert len(hr) == 8
        texts = [stream.read(int(n)).decode() if int(n) >= 0 else None for n in sizes]
        return Answer(int(hr, 16), int(handle), texts[0], texts[1])


class Hcn:
    """HCN as its Go client uses it: every handle is closed, every failure raised."""

    def __init__(self, boundary: Boundary) -> None:
        self.boundary = boundary

    def do(self, operation: str, handle: int = 0, guid: str = "-", document: Any = None) -> Answer:
        text = document if document is None or isinstance(document, str) else json.dumps(document)
        answer = self.boundary.call(operation, handle, guid, text)
        if answer.hr >> 31:
            assert answer.record is not None, f"{operation} failed with {answer.hr:#x} and no record"
            record = json.loads(answer.record)
            assert record["Success"] is False and record["ErrorCode"] == answer.hr
            assert record["Error"].endswith(" ")
            raise Refused(answer.hr, record["Error"])
        assert answer.record is None  # a client takes any record for a failure
        return answer

    def enumerate(self, kind: str, **filters: Any) -> list[str]:
        query = {"SchemaVersion": {"Major": 2, "Minor": 0}, "Flags": 0}
        if filters:
            query["Filter"] = json.dumps(filters)  # type: ignore[assignment]
        answer = self.do("Enumerate" + PLURAL[kind], document=query)
        return list(json.loads(answer.result or "null"))

    def with_handle(self, kind: str, guid: str, act: Callable[[int], Any]) -> Any:
        handle = self.do("Open" + kind, guid=guid).handle
        try:
            return act(handle)
        finally:
            self.do("Close" + kind, handle)

    def get(self, kind: str, guid: str, **query: Any) -> dict[str, Any]:
        wanted = json.dumps(query) if query else ""
        return self.with_handle(kind, guid, lambda h: self._query(kind, h, wanted))

    def _query(self, kind: str, handle: int, query: str = "") -> dict[str, Any]:
        found = json.loads(self.do("Query" + kind, handle, document=query).result or "null")
        assert isinstance(found, dict)
        return found

    def create(self, kind: str, document: dict[str, Any], guid: str = NULL) -> dict[str, Any]:
        """As hcsshim: an all-zero GUID, the id in the document if any."""
        body = {"SchemaVersion": {"Major": 2, "Minor": 0}, **document}
        handle = 0
        if kind == "Endpoint":
            handle = self.do("OpenNetwork", guid=str(document["HostComputeNetwork"])).handle
        try:
            made = self.do("Create" + kind, handle, guid, body).handle
        finally:
            if handle:
                self.do("CloseNetwork", handle)
        try:
            return self._query(kind, made)
        finally:
            self.do("Close" + kind, made)

    def modify(self, kind: str, guid: str, document: Any) -> dict[str, Any]:
        def act(handle: int) -> dict[str, Any]:
            self.do("Modify" + kind, handle, document=document)
            return self._query(kind, handle)

        return self.with_handle(kind, guid, act)  # type: ignore[no-any-return]

    def policies(self, kind: str, guid: str, request: str, *policies: dict[str, Any]) -> dict[str, Any]:
        settings = {"Policies": list(policies)}
        return self.modify(
            kind, guid, {"ResourceType": "Policy", "RequestType": request, "Settings": settings}
        )

    def attach(self, namespace: str, endpoint: str, request: str = "Add") -> dict[str, Any]:
        body = {"ResourceType": "Endpoint", "RequestType": request, "Settings": {"EndpointId": endpoint}}
        return self.modify("Namespace", namespace, body)

    def delete(self, kind: str, guid: str) -> None:
        self.do("Delete" + kind, guid=guid)

    def hnscall(self, method: str, path: str, body: Any = "") -> Any:
        text = body if isinstance(body, str) else json.dumps(body)
        answer = json.loads(self.do("HNSCall", document=f"{method} {path}\n{text}").result or "null")
        if not answer["Success"]:
            raise Refused(int(answer["ErrorCode"]), answer["Error"])
        return answer.get("Output")

    def clear(self) -> None:
        for kind in ("SdnRoute", "LoadBalancer", "Endpoint", "Namespace", "Network"):
            for guid in self.enumerate(kind):
                self.delete(kind, guid)


class Served:
    """One `overlace hns serve` process."""

    def __init__(
        self, folder: Path, backend: str = "model", where: Path | None = None, *options: str
    ) -> None:
        self.folder, self.backend, self.where, self.options = folder, backend, where, options
        self.process: subprocess.Popen[str] | None = None
        self.wire = Wire(free_port(where), where)
        self.hcn = Hcn(self.wire)
        self.start()

    def start(self) -> None:
        inside = ["nsenter", f"--net={self.where}"] if self.where else []
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-m", "overlace.cli.main", "hns", "serve", "--port", str(self.wire.port),
             "--backend", self.backend, "--exec-root", str(self.folder / "run"), *self.options],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout
        first = self.process.stdout.readline()
        assert first == f"hns 127.0.0.1:{self.wire.port}\n", first

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> None:
        process = self.process
        if process is None:
            return
        assert process.stdout
        os.kill(process.pid, number)
        process.wait(30)
        process.stdout.close()
        self.process = None


# -- documents -----------------------------------------------------------------------------------------------


def overlay(name: str = "flannel.4096", vsid: int = 4096, third: int = 3, **more: Any) -> dict[str, Any]:
    """As flannel writes it."""
    subnet = {
        "IpAddressPrefix": f"10.244.{third}.0/24",
        "Policies": [{"Type": "VSID", "Settings": {"IsolationId": vsid}}],
        "Routes": [{"NextHop": f"10.244.{third}.1", "DestinationPrefix": "0.0.0.0/0"}],
    }
    ipams = [{"Type": "Static", "Subnets": [subnet]}]
    return {"Name": name, "Type": "Overlay", "Flags": 8, "Ipams": ipams, **more}


def pa(address: str) -> dict[str, Any]:
    return {"Type": "ProviderAddress", "Settings": {"ProviderAddress": address}}


def mapping(internal: int, external: int, protocol: int = 6) -> dict[str, Any]:
    settings = {"Protocol": protocol, "InternalPort": internal, "ExternalPort": external}
    return {"Type": "PortMapping", "Settings": settings}


def local(
    network: str, host: str, address: str = "", *policies: dict[str, Any], **more: Any
) -> dict[str, Any]:
    configs = {"IpConfigurations": [{"IpAddress": address, "PrefixLength": 24}]} if address else {}
    return {"Name": f"ep-{address}", "HostComputeNetwork": network, "Policies": [pa(host), *policies],
            **configs, **more}  # fmt: skip


def remote(network: str, host: str, address: str, mac: str) -> dict[str, Any]:
    return {
        "Name": f"peer-{address}", "HostComputeNetwork": network, "Flags": 1, "MacAddress": mac,
        "IpConfigurations": [{"IpAddress": address, "PrefixLength": 24}], "Policies": [pa(host)],
    }  # fmt: skip
