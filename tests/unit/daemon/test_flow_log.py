"""The flow log's file: whole JSON lines, rotated, and going on after what could not be written."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click.testing
import pytest

from overlace.cli.vfp import flows, follow_lines
from overlace.daemon import flow_log
from overlace.daemon.flow_log import FlowLogger
from overlace.model.errors import InvalidArgument
from overlace.network.vfp.flow_log import Happened
from overlace.network.vfp.flows import UnifiedFlow
from overlace.network.vfp.model import Packet


def flow(port: int, packets: int) -> UnifiedFlow:
    came = Packet("10.0.1.5", "10.0.1.6", 17, port, 53)
    return UnifiedFlow(
        point="GUID", ifindex=7, came=came, went=came, verdict="deliver", vni=0, from_provider="",
        provider_address="", to_ifindex=9, mac="", packets=packets, bytes=60 * packets, idle=0, generation=1,
        current=True, to_endpoint="OTHER",
    )  # fmt: skip


class Host:
    """What is asked of a NodeHost."""

    def __init__(self) -> None:
        self.driver = SimpleNamespace(switch=self)
        self.now: list[UnifiedFlow] = []
        self.dropped: dict[tuple[str, str], int] = {}

    async def flows(self) -> list[UnifiedFlow]:
        return self.now

    async def drops(self) -> dict[tuple[str, str], int]:
        return self.dropped


Start = Callable[[Path, Host], FlowLogger]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(flow_log, "SECONDS", 3600.0)  # looks when the test says
    made: list[FlowLogger] = []

    def build(path: Path, host: Host) -> FlowLogger:
        logger = FlowLogger(path, lambda: host)  # type: ignore[arg-type, return-value]
        logger.start()
        made.append(logger)
        return logger

    yield build
    for logger in made:
        await logger.stop()


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_lines_of_a_file(tmp_path: Path, start: Start) -> None:
    host, path = Host(), tmp_path / "made" / "flows.log"
    logger = start(path, host)
    host.now = [flow(1000, 3)]
    await logger.look()
    host.now, host.dropped = [flow(1001, 1)], {("shop", "drop_rate"): 4}
    await logger.look()
    said = read(path)
    assert [(x["event"], x.get("sport"), x["packets"]) for x in said] == [
        ("found", 1000, 3), ("opened", 1001, 1), ("ended", 1000, 3), ("limited", None, 4),
    ]  # fmt: skip
    assert str(said[0]["time"]).endswith("Z") and said[0]["bytes"] == 180 and said[0]["to"] == "OTHER"
    host.dropped = {("shop", "drop_rate"): 9}
    await logger.look()
    assert {k: v for k, v in read(path)[-1].items() if k != "time"} == {
        "event": "limited", "network": "shop", "reason": "drop_rate", "packets": 5,
    }  # fmt: skip


async def test_files_are_rotated_and_old_ones_go(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_log, "FILE_BYTES", 4000)
    host, path = Host(), tmp_path / "flows.log"
    logger = start(path, host)
    for turn in range(40):
        host.now = [flow(10 * turn + n, 1) for n in range(10)]
        await logger.look()
    files = sorted(tmp_path.iterdir())
    assert len(files) == flow_log.FILES + 1
    assert all(file.stat().st_size <= 4000 for file in files)
    assert all(read(file) for file in files), "no line is cut"


def fill_disk(logger: FlowLogger) -> None:
    assert logger._file is not None
    logger._file.close()
    logger._file.stream = open("/dev/full", "w")  # noqa: SIM115


def make_room(logger: FlowLogger) -> None:
    assert logger._file is not None
    with contextlib.suppress(OSError):
        logger._file.stream.close()
    logger._file.stream = None  # type: ignore[assignment]  # as before its first line


async def test_what_cannot_be_written_is_said(tmp_path: Path, start: Start) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=r"--flow-log .*choose another file"):
        FlowLogger(tmp_path / "file" / "flows.log", lambda: None).start()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match=r"it is a pipe; choose another file"):
        FlowLogger(tmp_path / "pipe", lambda: None).start()
    host = Host()
    logger = start(tmp_path / "flows.log", host)
    fill_disk(logger)
    host.now = [flow(1, 1)]
    with pytest.raises(OSError, match="No space left"):
        await logger.look()
    make_room(logger)
    host.now = [flow(1, 1), flow(2, 1)]
    await logger.look()
    assert [x["sport"] for x in read(tmp_path / "flows.log")] == [2], "it goes on"


def test_followed_on_a_terminal() -> None:
    shown = {"Port": "G", "Came": "10.0.1.5:1 > 10.0.1.2:80 tcp", "Went": "10.0.1.5:1 > 10.0.1.6:80 tcp", "Vni": 4097,
             "Verdict": "encapsulate", "From": "", "To": "192.0.2.2", "Service": ""}  # fmt: skip
    (line,) = follow_lines([Happened("opened", 2, 120, shown)], False)
    assert line == (
        "opened  10.0.1.5:1 > 10.0.1.2:80 tcp  encapsulate vni 4097  as 10.0.1.5:1 > 10.0.1.6:80 tcp to 192.0.2.2  "
        "packets 2  bytes 120"
    )
    given = shown | {
        "Came": shown["Went"],
        "Went": "",
        "Service": "10.0.1.2:80",
    }  # its socket was given the backend
    (line,) = follow_lines([Happened("opened", 2, 120, given)], False)
    assert line.startswith("opened  10.0.1.5:1 > 10.0.1.6:80 tcp") and "to 192.0.2.2 of 10.0.1.2:80 " in line
    (line,) = follow_lines([Happened("ended", 2, 120, shown)], True)
    assert json.loads(line)["Event"] == "ended" and json.loads(line)["To"] == "192.0.2.2"
    drop = Happened("dropped", 3, 0, {"network": "shop", "reason": "drop_policy"})
    (line,) = follow_lines([drop], False)
    assert line.startswith("dropped drop_policy  network shop  packets 3  (by an ACL")
    (line,) = follow_lines([drop], True)
    assert json.loads(line) == {"Event": "dropped", "Network": "shop", "Reason": "drop_policy", "Packets": 3}
    refused = click.testing.CliRunner().invoke(flows, ["--follow", "--rate"])
    assert refused.exit_code == 2 and "--follow goes with neither" in refused.output
