"""Carrying out a plan: races with others, credentials, waits that cannot be met. The daemon is scripted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from overlace.cli.compose_files import Stack
from overlace.cli.engine import Engine, EngineError
from overlace.cli.stack_apply import Deploy
from overlace.cli.stack_state import Swarm
from overlace.compose.desired import encode
from overlace.compose.load import Loader, Source
from overlace.compose.plan import Action, Plan
from overlace.compose.problems import Problems
from overlace.compose.project import HEALTHY
from overlace.compose.read import Reading, read_project
from overlace.model.errors import FailedPrecondition, OverlaceError
from overlace.model.specs import ContainerSpec, ServiceSpec, TaskSpec

Answer = Any | EngineError | Callable[[], Any]
STALE = EngineError("stale", 500, "rpc error: code = Unknown desc = update out of sequence")


class Scripted(Engine):
    """Answers by method and beginning of the path; a list is used up one by one."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__("unix:///nowhere")
        self.answers = answers
        self.calls: list[tuple[str, str, Any, str]] = []

    def call(self, method: str, url: str, body: object = None, **more: Any) -> Any:
        self.calls.append((method, url, body, (more.get("headers") or {}).get("X-Registry-Auth", "")))
        for start, answer in self.answers.items():
            if f"{method} {url}".startswith(start):
                found = (
                    answer.pop(0)
                    if isinstance(answer, list) and answer and start.startswith("POST")
                    else answer
                )
                if isinstance(found, EngineError):
                    raise found
                return found
        raise AssertionError(f"{method} {url} was not expected")

    def made(self, start: str) -> list[str]:
        return [f"{method} {url}" for method, url, *_ in self.calls if f"{method} {url}".startswith(start)]


class NoFiles:
    def text(self, path: str) -> str:
        raise FileNotFoundError(path)

    def exists(self, path: str) -> bool:
        return False


def deploy(
    engine: Engine, plan: Plan, text: str = "services: {web: {image: app}}", timeout: float = 0
) -> Deploy:
    problems = Problems()
    loader = Loader(NoFiles(), {}, problems)
    root = loader.load([Source("compose.yml", text, "/project")])
    project = read_project(root, Reading(problems, NoFiles(), loader.lookup))
    problems.check()
    return Deploy(Swarm(engine), Stack("st", project, [], []), plan, timeout, lambda text: None)


def spec(image: str) -> ServiceSpec:
    return ServiceSpec(name="st_web", task_template=TaskSpec(container_spec=ContainerSpec(image=image)))


def document(image: str, version: int) -> dict[str, Any]:
    return {"ID": "id", "Version": {"Index": version}, "Spec": encode(spec(image))}


def update() -> Plan:
    action = Action(
        verb="update",
        kind="service",
        key="web",
        name="st_web",
        id="id",
        version=5,
        service=spec("app:2"),
        before=spec("app:1"),
    )
    return Plan("st", [action], [], ["web"])


def test_a_version_that_moved_on_by_itself_is_followed() -> None:
    engine = Scripted(
        {"POST /services/id/update": [STALE, {"Warnings": None}], "GET /services/id": document("app:1", 9)}
    )
    deploy(engine, update()).run()
    assert engine.made("POST") == ["POST /services/id/update?version=5", "POST /services/id/update?version=9"]


def test_someone_elses_change_is_not_overwritten() -> None:
    engine = Scripted({"POST /services/id/update": [STALE], "GET /services/id": document("app:7", 9)})
    with pytest.raises(
        FailedPrecondition, match="st_web was changed by someone else meanwhile; run it again"
    ):
        deploy(engine, update()).run()


def test_a_refusal_is_told_in_the_daemons_words() -> None:
    engine = Scripted({"POST /services/id/update": [EngineError("x", 400, "port 80 is taken")]})
    with pytest.raises(OverlaceError, match="failed to update service st_web: port 80 is taken"):
        deploy(engine, update()).run()


def test_what_is_gone_already_is_removed() -> None:
    engine = Scripted({"DELETE /services/id": EngineError("x", 404, "service id not found")})
    action = Action(verb="remove", kind="service", key="old", name="st_old", id="id", why="not in the file")
    deploy(engine, Plan("st", [action], [], [])).run()
    assert engine.made("DELETE") == ["DELETE /services/id"]


def test_credentials_reach_unchanged_services_but_run_no_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted({"GET /services/st_web": document("app:1", 3), "POST /services/id/update": {}})
    text = "services: {web: {image: app}, job: {image: app, deploy: {mode: replicated-job}}}"
    run = deploy(engine, Plan("st", [], [], ["web", "job"]), text)
    monkeypatch.setattr(run._swarm, "auth", lambda image: "credentials")
    run.run()
    [(_, url, body, auth)] = [call for call in engine.calls if call[0] == "POST"]
    assert (url, auth) == ("/services/id/update?version=3", "credentials")
    assert body == document("app:1", 3)["Spec"], "as it is, nothing else changes"


def test_a_condition_that_is_not_met_in_time_says_why() -> None:
    service = {**document("app", 1), "Spec": {"Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {}}}
    task = {
        "ID": "t1",
        "Slot": 1,
        "DesiredState": "running",
        "Status": {"State": "pending", "Err": "no suitable node"},
    }
    engine = Scripted({"GET /services/st_db": service, "GET /tasks": [task]})
    with pytest.raises(FailedPrecondition) as caught:
        deploy(engine, Plan("st", [])).wait("st_db", HEALTHY, "service web: depends_on db")
    assert "not within 0 s: 0 of 1 tasks running; task 1 pending: no suitable node" in caught.value.message
    assert "overlace why st_db" in caught.value.message


@pytest.mark.parametrize("wait", [True, False])
def test_old_versions_go_when_no_task_uses_them(wait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted({"DELETE /secrets/old": None})
    action = Action(verb="remove", kind="secret", key="pw", name="st_pw", id="old", why="replaced by st_pw-1")
    said: list[str] = []
    run = deploy(engine, Plan("st", [action], [], []), timeout=60)
    run._say = said.append
    users = [{"old": {"st_web"}}, {}]
    monkeypatch.setattr(run._swarm, "users_of_files", lambda: users.pop(0))
    monkeypatch.setattr(run, "_is_stuck", lambda name: False)
    run.clean(wait=wait)
    assert engine.made("DELETE") == (["DELETE /secrets/old"] if wait else [])
    assert said[0] == ("Waiting for the old tasks of st_web" if wait else said[0])
    assert wait or "the old version stays while st_web uses it; the next deploy removes it" in said[0]
