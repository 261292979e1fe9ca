"""The life of a service: created, listed, updated, rolled back, scaled, logged, removed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from .bed import Docker, Swarm, eventually

Image = Callable[[str], str]
QUICK = ("--update-monitor", "300ms", "--rollback-monitor", "300ms", "--restart-delay", "0s")


def test_create_attached_and_look(docker: Docker, swarm: Swarm, image: Image) -> None:
    """Without -d the CLI watches until the tasks run and stay."""
    said = docker(
        *("service", "create", "--name", "watched", "--replicas", "2", "--label", "tier=web"),
        *("--publish", "8700:80", "--env", "COLOR=red", *QUICK, image("app:1")),
    )
    id = said.split()[0]
    assert len(id) == 25 and re.search("verify: (Service converged|Service \\w+ converged)", said), said
    assert docker(
        "service", "ls", "--format", "{{.ID}} {{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}"
    ) == (f"{id[:12]} watched replicated 2/2 {image('app:1')} *:8700->80/tcp")
    assert docker("service", "ls", "-q", "--filter", "label=tier=web") == id[:12]
    assert docker("service", "ls", "-q", "--filter", "name=nosuch") == ""
    listed = docker.lines(
        "service", "ps", "watched", "--format", "{{.Name}} {{.Node}} {{.DesiredState}} {{.CurrentState}}"
    )
    assert [re.sub(r" (\d+|[Ll]ess|About).*", "", line) for line in sorted(listed)] in (
        ["watched.1 linux-1 Running Running", "watched.2 linux-2 Running Running"],
        ["watched.1 linux-2 Running Running", "watched.2 linux-1 Running Running"],
    )
    found = docker.one("service", "inspect", "watched")
    assert found["ID"] == id and found["Spec"]["Labels"] == {"tier": "web"}
    pinned = found["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert pinned.startswith(f"{image('app:1')}@sha256:"), "the digest is pinned"
    assert found["Spec"]["TaskTemplate"]["Placement"]["Platforms"] == [
        {"Architecture": "amd64", "OS": "linux"}
    ]
    assert found["Endpoint"]["Ports"][0]["PublishedPort"] == 8700 and found["Endpoint"]["VirtualIPs"]
    pretty = docker("service", "inspect", "--pretty", "watched")
    assert "Replicas:\t2" in pretty and "COLOR=red" in pretty and "PublishedPort = 8700" in pretty
    assert docker.one("service", "inspect", id[:8])["ID"] == id, "an id's beginning is enough"
    task = swarm.running("watched", 2)[0]
    assert docker.one("inspect", "--type", "task", task["ID"])["ServiceID"] == id

    said = docker("service", "update", "--env-add", "COLOR=blue", "watched")
    assert re.search("converged", said) and docker("service", "rollback", "watched")
    assert docker.one("service", "inspect", "watched")["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == [
        "COLOR=red"
    ]
    assert "converged" in docker("service", "scale", "watched=3")
    assert len(swarm.tasks("watched")) == 3

    assert docker("service", "rm", "watched") == "watched"
    assert docker("service", "ls", "-q") == ""
    assert "watched" in docker.refused("service", "inspect", "watched")
    assert swarm.refusal("GET", "/services/watched") == (404, "service watched not found")
    assert swarm.refusal("DELETE", "/services/watched") == (404, "service watched not found")


def test_updates(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("network", "create", "-d", "overlay", "added")
    docker("secret", "create", "key", "-", stdin="s3cr3t")
    docker(
        *("service", "create", "-d", "--name", "changing", *QUICK, "--env", "COLOR=red", "--secret", "key"),
        *("--update-order", "start-first", "--stop-signal", "KILL", image("app:1")),
    )
    [task] = swarm.running("changing")
    assert swarm.inside(task, "cat /run/secrets/key; cat /etc/version") == "s3cr3t1"

    def change(*options: str) -> dict[str, object]:
        nonlocal task
        before = task["ID"]
        docker("service", "update", "-d", *options, "changing")
        swarm.updated("changing")
        [task] = swarm.running("changing")
        assert task["ID"] != before, "the task was replaced"
        return dict(swarm.inspect(task))

    change("--image", image("app:2"))
    assert swarm.inside(task, "cat /etc/version") == "2"
    found = change(
        "--env-add", "COLOR=blue", "--env-add", "MORE=1", "--secret-rm", "key", "--hostname", "changed"
    )
    assert {"COLOR=blue", "MORE=1"} <= set(found["Config"]["Env"])  # type: ignore[index]
    assert swarm.inside(task, "hostname; ls /run/secrets 2>&1", check=False).splitlines()[0] == "changed"
    assert "key" not in swarm.inside(task, "ls /run/secrets 2>/dev/null", check=False)
    change("--network-add", "added", "--publish-add", "8702:80")
    assert [a["Network"]["Spec"]["Name"] for a in task["NetworksAttachments"]].count("added") == 1
    assert swarm.answers(f"http://{swarm.lab.host('windows-1').address}:8702/cgi-bin/who")["color"] == "blue"
    found = change(
        "--args", "sh -c 'echo changed args; exec sleep 1000'", "--publish-rm", "80", "--network-rm", "added"
    )
    assert found["Args"][-1] == "echo changed args; exec sleep 1000"  # type: ignore[index]
    assert swarm.curl(f"http://{swarm.lab.manager.address}:8702/cgi-bin/who") == "", "no longer published"
    change("--force")

    docker("service", "update", "-d", "--label-add", "a=b", "--replicas", "1", "changing")
    assert swarm.running("changing")[0]["ID"] == task["ID"], "a label or the same count replaces nothing"

    docker("service", "rollback", "-d", "changing")  # to before the label
    assert docker.one("service", "inspect", "changing")["Spec"]["Labels"] == {}
    history = docker.lines("service", "ps", "changing")
    assert len(history) > 3 and " changing.1 " in history[1] and " \\_ changing.1 " in history[2]


def test_rollback(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "back", *QUICK, "--env", "COLOR=old", image("app:1"))
    swarm.running("back")
    assert "does not have a previous spec" in docker.refused("service", "rollback", "-d", "back")
    docker("service", "update", "-d", "--env-add", "COLOR=new", "back")
    swarm.updated("back")
    docker("service", "rollback", "-d", "back")
    swarm.updated("back", "rollback_completed")
    [task] = swarm.running("back")
    assert "COLOR=old" in swarm.inspect(task)["Config"]["Env"]


def test_an_update_that_fails_goes_back_by_itself(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        *("service", "create", "-d", "--name", "careful", *QUICK, "--update-failure-action", "rollback"),
        *("--replicas", "2", image("app:1")),
    )
    swarm.running("careful", 2)
    docker("service", "update", "-d", "--args", "sh -c 'exit 7'", "careful")
    found = swarm.updated("careful", "rollback_completed")
    assert "update rolled back" in found["UpdateStatus"]["Message"] or found["UpdateStatus"]["Message"]
    assert all(swarm.inspect(task)["Path"] == "/app" for task in swarm.running("careful", 2))
    docker(
        "service", "update", "-d", "--update-failure-action", "pause", "--args", "sh -c 'exit 7'", "careful"
    )
    found = swarm.updated("careful", "paused")
    assert re.search(
        "update paused due to failure or early termination of task", found["UpdateStatus"]["Message"]
    )
    failed = docker("service", "ps", "careful", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}")
    assert "task: non-zero exit (7)" in failed


def test_scale(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "one", image("app:1"))
    docker("service", "create", "-d", "--name", "two", image("app:1"))
    [kept] = swarm.running("one")
    said = docker("service", "scale", "-d", "one=3", "two=2")
    assert "one scaled to 3" in said and "two scaled to 2" in said
    tasks = swarm.running("one", 3)
    assert kept["ID"] in {t["ID"] for t in tasks} and sorted(t["Slot"] for t in tasks) == [1, 2, 3]
    swarm.running("two", 2)
    docker("service", "scale", "-d", "one=0")
    assert swarm.running("one", 0) == []
    eventually(
        lambda: docker("service", "ls", "--filter", "name=one", "--format", "{{.Replicas}}") == "0/0",
        "the list shows none",
    )
    docker("service", "create", "-d", "--name", "everywhere", "--mode", "global", image("app:1"))
    assert "scale can only be used with replicated" in docker.refused(
        "service", "scale", "-d", "everywhere=2"
    )


def test_global(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker("service", "create", "-d", "--name", "everywhere", "--mode", "global", image("multi:1"))
    assert {host: len(tasks) for host, tasks in swarm.where("everywhere", 3).items()} == {
        "linux-1": 1,
        "linux-2": 1,
        "windows-1": 1,
    }
    assert docker("service", "ls", "--format", "{{.Mode}} {{.Replicas}}") == "global 3/3"
    docker("service", "create", "-d", "--name", "linuxes", "--mode", "global", image("app:1"))
    assert set(swarm.where("linuxes", 2)) == {"linux-1", "linux-2"}, "only where the image runs"
    docker("node", "update", "--availability", "drain", "linux-2")
    try:
        assert set(swarm.where("linuxes", 1)) == {"linux-1"}
    finally:
        docker("node", "update", "--availability", "active", "linux-2")
    assert set(swarm.where("linuxes", 2)) == {"linux-1", "linux-2"}
    docker("service", "update", "-d", "--constraint-add", "node.role==worker", "linuxes")
    eventually(lambda: set(swarm.where("linuxes", 1)) == {"linux-2"}, "a new constraint holds for what runs")


def test_logs(docker: Docker, swarm: Swarm, image: Image) -> None:
    script = 'n=0; while [ $n -lt 3 ]; do n=$((n+1)); echo "line $n of $(hostname)"; done; echo oops >&2; while :; do'
    script += ' sleep 1; [ -e /go ] && { echo "gone on"; rm /go; }; done'
    docker(
        *("service", "create", "-d", "--name", "talking", "--replicas", "2", "--stop-signal", "KILL"),
        *("--hostname", "{{.Node.Hostname}}", image("app:1"), "sh", "-c", script),
    )
    tasks = swarm.running("talking", 2)
    where = {swarm.host_of(task): task for task in tasks}

    def complete() -> list[str]:
        lines = docker("service", "logs", "talking").splitlines()
        assert len(lines) == 6, lines
        return lines

    lines = eventually(complete, "the lines of both tasks")
    for host, task in where.items():
        head = f"talking.{task['Slot']}.{task['ID'][:12]}@{host}"
        mine = [line.partition("|")[2].strip() for line in lines if line.startswith(head)]
        assert mine == [f"line {n} of {host}" for n in (1, 2, 3)], lines
    both = docker.said("service", "logs", "talking")
    assert both.count("oops") == 2, "stderr is told, too"
    raw = docker("service", "logs", "--raw", "talking").splitlines()
    assert sorted(raw) == sorted(f"line {n} of {host}" for n in (1, 2, 3) for host in where)
    assert len(docker("service", "logs", "--raw", "--tail", "1", "talking").splitlines()) in (0, 1, 2)
    stamped = docker("service", "logs", "-t", "talking").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ", line) for line in stamped), stamped

    task = tasks[0]
    host = swarm.host_of(task)
    alone = docker("service", "logs", "--raw", task["ID"]).splitlines()
    assert alone == [f"line {n} of {host}" for n in (1, 2, 3)], "the logs of one task"
    with docker.following("service", "logs", "-f", "--tail", "0", "talking") as follower:
        # a follower that starts late shows what comes from then on: ask until it does
        def told() -> bool:
            swarm.inside(task, "touch /go")
            try:
                return "gone on" in follower.wait_for(lambda line: "gone on" in line, "a line as it comes", 2)
            except AssertionError:
                return False

        eventually(told, "following shows new lines", 15)
    assert "no such task or service" in docker.refused("service", "logs", "nosuch")


def test_logs_follow_tasks_that_move(anydocker: Docker, swarm: Swarm, image: Image) -> None:
    """Who follows a service hears of tasks that come later, wherever they run; past tasks stay readable."""
    docker = anydocker
    docker(
        *("service", "create", "-d", "--name", "moving", "--constraint", "node.hostname==linux-1"),
        *("--stop-signal", "KILL", image("app:1"), "sh", "-c", 'echo "says $(cat /etc/version)"; sleep 1000'),
    )
    [first] = swarm.running("moving")
    with docker.following("service", "logs", "-f", "moving") as follower:
        follower.wait_for(
            lambda line: first["ID"][:12] in line and "@linux-1" in line, "the first task's line"
        )
        docker(
            *(
                "service",
                "update",
                "-d",
                "--constraint-rm",
                "node.hostname==linux-1",
                "--image",
                image("app:2"),
            ),
            *("--constraint-add", "node.hostname==linux-2", "--update-monitor", "300ms", "moving"),
        )
        line = follower.wait_for(lambda line: "says 2" in line, "a line of the task after it")
        assert "@linux-2" in line
    swarm.updated("moving")
    said = docker("service", "logs", "--raw", "moving").splitlines()
    assert sorted(said) == ["says 1", "says 2"], "the log of the task before is still there"
    [second] = swarm.running("moving")
    assert docker("service", "logs", "--raw", second["ID"]) == "says 2"
    assert docker("service", "logs", "--raw", "--since", second["Status"]["Timestamp"], "moving") in (
        "says 2",
        "",
    )


def test_restart_policies(docker: Docker, swarm: Swarm, image: Image) -> None:
    script = "echo up; while [ ! -e /stop ]; do sleep 0.1; done; exit $(cat /stop)"
    for name, options in (
        ("always", ("--restart-delay", "100ms")),
        (
            "failing",
            ("--restart-condition", "on-failure", "--restart-delay", "100ms", "--restart-max-attempts", "1"),
        ),
        ("never", ("--restart-condition", "none")),
    ):
        docker(
            "service",
            "create",
            "-d",
            "--name",
            name,
            "--stop-signal",
            "KILL",
            *options,
            image("app:1"),
            "sh",
            "-c",
            script,
        )
    first = {name: swarm.running(name)[0] for name in ("always", "failing", "never")}

    def end(task: dict[str, object], code: int) -> None:
        swarm.inside(task, f"echo {code} > /stop")

    def again(name: str) -> dict[str, object]:
        def probe() -> dict[str, object]:
            [task] = swarm.running(name, timeout=1)
            assert task["ID"] != first[name]["ID"]
            return task

        return eventually(probe, f"{name} runs again")

    def ended(name: str, state: str) -> None:
        def probe() -> bool:
            there = swarm.tasks(name, wanted=False)
            assert there[0]["Status"]["State"] == state, there[0]["Status"]
            return not swarm.tasks(name)

        eventually(probe, f"{name} ends as {state}")

    for name, code in (("always", 0), ("failing", 3), ("never", 3)):
        end(first[name], code)
    again("always")
    second = again("failing")
    ended("never", "failed")
    end(second, 3)  # its one attempt is used up
    ended("failing", "failed")
    listed = docker("service", "ps", "failing", "--format", "{{.CurrentState}} {{.Error}}", "--no-trunc")
    assert listed.count('"task: non-zero exit (3)"') + listed.count(" task: non-zero exit (3)") == 2, listed
    state = docker("service", "ps", "always", "-f", "desired-state=shutdown", "--format", "{{.CurrentState}}")
    assert state.startswith("Complete ")
    assert len(swarm.tasks("never", wanted=False)) == 1


def test_health(docker: Docker, swarm: Swarm, image: Image) -> None:
    docker(
        *("service", "create", "-d", "--name", "healthy", "--restart-delay", "0s"),
        *("--health-cmd", "test ! -e /sick", "--health-interval", "200ms", "--health-retries", "2"),
        *("--health-timeout", "2s", image("app:1")),
    )
    [task] = swarm.running("healthy")
    host, id = swarm.host_of(task), task["Status"]["ContainerStatus"]["ContainerID"]
    assert docker("inspect", "-f", "{{.State.Health.Status}}", id, host=host) == "healthy"
    assert "(healthy)" in docker("ps", "-f", f"id={id}", "--format", "{{.Status}}", host=host)
    swarm.inside(task, "touch /sick")

    def replaced() -> bool:
        [new] = swarm.running("healthy", timeout=1)
        return bool(new["ID"] != task["ID"])

    eventually(replaced, "an unhealthy container is replaced")
    said = docker("service", "ps", "healthy", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}")
    assert "unhealthy container" in said
    docker(
        *("service", "create", "-d", "--name", "sick", "--restart-condition", "none"),
        *("--health-cmd", "false", "--health-interval", "100ms", "--health-retries", "1", image("app:1")),
    )
    started = time.monotonic()
    eventually(
        lambda: [t["Status"]["State"] for t in swarm.tasks("sick", wanted=False)] == ["failed"],
        "what never becomes healthy never counts as running",
    )
    assert time.monotonic() - started < 20


def test_jobs(docker: Docker, swarm: Swarm, image: Image) -> None:
    def completed(name: str, count: int) -> list[dict[str, object]]:
        def probe() -> list[dict[str, object]]:
            there = swarm.tasks(name, wanted=False)
            states = [task["Status"]["State"] for task in there]
            assert states == ["complete"] * count, states
            return there

        return eventually(probe, f"{count} tasks of {name} complete")

    docker(
        *("service", "create", "-d", "--name", "batch", "--mode", "replicated-job", "--replicas", "4"),
        *("--max-concurrent", "2", image("app:1"), "sh", "-c", "echo done {{.Task.Slot}}"),
    )
    completed("batch", 4)
    assert docker("service", "ls", "-f", "name=batch", "--format", "{{.Mode}} {{.Replicas}}") == (
        "replicated job 0/2 (4/4 completed)"
    )
    assert sorted(docker("service", "logs", "--raw", "batch").splitlines()) == ["done {{.Task.Slot}}"] * 4
    docker("service", "create", "-d", "--name", "each", "--mode", "global-job", image("multi:1"), "true")
    assert len({task["NodeID"] for task in completed("each", 3)}) == 3
    docker("service", "update", "-d", "--force", "each")
    eventually(lambda: len(swarm.tasks("each", wanted=False)) == 6, "a forced job runs again")


def test_volumes(docker: Docker, swarm: Swarm, image: Image) -> None:
    """A named volume outlives its task, on the host where it is."""
    docker(
        *("service", "create", "-d", "--name", "keeps", "--constraint", "node.hostname==linux-2", *QUICK),
        *("--mount", "type=volume,src=kept,dst=/kept", image("app:1")),
    )
    [task] = swarm.running("keeps")
    swarm.inside(task, "echo precious > /kept/file")
    docker("service", "update", "-d", "--force", "keeps")
    swarm.updated("keeps")
    [after] = swarm.running("keeps")
    assert after["ID"] != task["ID"] and swarm.inside(after, "cat /kept/file") == "precious"
    assert docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}", host="linux-2") == "local kept"
    assert docker.one("volume", "inspect", "kept", host="linux-2")["Scope"] == "local"
    assert "volume is in use" in docker.refused("volume", "rm", "kept", host="linux-2")
    docker("service", "rm", "keeps")
    eventually(
        lambda: docker.run("volume", "rm", "kept", host="linux-2").returncode == 0,
        "the volume can be removed",
    )
    assert docker("volume", "ls", "-q", host="linux-2") == ""
