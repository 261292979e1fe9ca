"""A plan carried out through the Engine API, in the order of depends_on.

Owns the writing calls and the waits between them. Every step is the plan's; after a crash or an interruption a new plan
holds what is left. Must not decide what to do.
"""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import click
import msgspec

from overlace.cli.compose_files import Stack
from overlace.cli.engine import EngineError
from overlace.cli.stack_state import Swarm, filtered, stored_service
from overlace.compose.desired import encode, scoped
from overlace.compose.plan import CREATE, REMOVE, REPLACE, UPDATE, Action, Plan
from overlace.compose.progress import CONVERGED, Verdict, judge
from overlace.compose.project import Dependency
from overlace.compose.versions import labels_of
from overlace.model.errors import FailedPrecondition, OverlaceError
from overlace.model.specs import ConfigReference, SecretReference, ServiceSpec

Json = dict[str, Any]
_POLL = 0.25  # seconds between two looks at a service
_STABLE = 5.0  # seconds a service must stay converged, as the docker CLI has it
_SETTLED = 3.0  # seconds after which tasks that all ended are taken not to be replaced
_TRIES = 5
_DOING = {CREATE: "Creating", UPDATE: "Updating", REPLACE: "Replacing", REMOVE: "Removing"}


class Deploy:
    """One deploy. `say` shows progress."""

    def __init__(
        self, swarm: Swarm, stack: Stack, plan: Plan, wait_timeout: float, say: Callable[[str], None]
    ) -> None:
        self._swarm = swarm
        self._stack = stack
        self._plan = plan
        self._timeout = wait_timeout
        self._say = say
        self._new_ids: dict[tuple[str, str], str] = {}  # (kind, name) -> id of what was made in this run

    def run(self) -> None:
        """Raises OverlaceError; what was done until then stays, and the next deploy goes on."""
        for action in self._of("service", REMOVE):
            self._remove(action)
        for action in self._of("network", CREATE):
            self._network(action)
        for kind in ("secret", "config"):
            for action in self._of(kind, CREATE, REPLACE, UPDATE):
                self._file(action)
        by_key = {action.key: action for action in self._of("service", CREATE, UPDATE, REPLACE)}
        for key in self._plan.order:
            if key in by_key:
                for name, dependency in self._stack.project.services[key].depends_on.items():
                    if name in self._stack.project.services:
                        self._await_dependency(key, name, dependency)
                self._service(by_key[key])
            else:
                self._refresh_auth(key)

    def converge(self) -> None:
        """Wait until every service of the file is where it should be. Raises OverlaceError naming those that are not."""
        failed = []
        for key in self._plan.order:
            try:
                self.wait(scoped(self._stack.name, key), CONVERGED, f"service {key}", _STABLE)
            except FailedPrecondition as error:
                failed.append(error.message)
        if failed:
            raise FailedPrecondition("\n".join(failed))

    def _of(self, kind: str, *verbs: str) -> list[Action]:
        return [action for action in self._plan.actions if action.kind == kind and action.verb in verbs]

    def _call(self, what: str, method: str, url: str, body: object = None, auth: str = "") -> Any:
        """Raises OverlaceError in the daemon's words, after what was tried."""
        try:
            return self._swarm.engine.call(
                method, url, body, headers={"X-Registry-Auth": auth} if auth else {}, timeout=60
            )
        except EngineError as error:
            raise OverlaceError(f"failed to {what}: {error.text or error.message}") from None

    # -- networks, secrets, configs --

    def _network(self, action: Action) -> None:
        assert action.network is not None
        self._say(f"Creating network {action.name}")
        self._call(f"create network {action.name}", "POST", "/networks/create", encode(action.network))

    def _file(self, action: Action) -> None:
        choice, kind = action.choice, action.kind
        assert choice is not None
        wished = msgspec.structs.replace(choice.wish.spec, name=action.name, labels=labels_of(choice))
        if action.verb == UPDATE:
            self._say(f"Updating {kind} {action.name}")
            url = f"/{kind}s/{action.id}/update?version={action.version}"
            body = {"Name": action.name, "Labels": wished.labels}
            if kind == "config":  # swarmkit compares it, there is no "left out"
                body["Data"] = encode(wished)["Data"]
            self._call(f"update {kind} {action.name}", "POST", url, body)
            return
        self._say(f"Creating {kind} {action.name}" + (f" ({action.why})" if action.why else ""))
        body = encode(wished)
        made = self._call(f"create {kind} {action.name}", "POST", f"/{kind}s/create", body)
        self._new_ids[kind, action.name] = made["ID"]

    def clean(self, *, wait: bool) -> None:
        """Remove the old versions nobody needs any more; with `wait`, give their users the time there is. Say which
        stay."""
        old = [action for kind in ("secret", "config") for action in self._of(kind, REMOVE)]
        deadline = time.monotonic() + self._timeout
        told: set[str] = set()
        while old:
            users = self._swarm.users_of_files()
            for action in [action for action in old if not users.get(action.id)]:
                self._remove(action)
                old.remove(action)
            by = {name for action in old for name in users[action.id]}
            if not wait or time.monotonic() >= deadline or any(self._is_stuck(name) for name in by):
                break
            for name in sorted(by - told):
                self._say(f"Waiting for the old tasks of {name}")
            told |= by
            time.sleep(_POLL)
        for action in old:
            names = ", ".join(sorted(users[action.id]))
            kept = f"the old version stays while {names} uses it; the next deploy removes it"
            self._say(f"Keeping {action.kind} {action.name}: {kept}")

    def _is_stuck(self, service: str) -> bool:
        """Its update goes no further by itself."""
        try:
            return self._look(service, CONVERGED).settled
        except OverlaceError:
            return False  # it has gone since: the next look says so

    def _remove(self, action: Action) -> None:
        self._say(f"Removing {action.kind} {action.name} ({action.why})")
        try:
            self._swarm.engine.call("DELETE", f"/{action.kind}s/{action.id}", timeout=60)
        except EngineError as error:
            if error.status != 404:  # gone already: as wished
                raise OverlaceError(f"failed to remove {action.kind} {action.name}: {error.text}") from None

    # -- services --

    def _with_ids(self, spec: ServiceSpec) -> ServiceSpec:
        """With the ids of the secrets and configs that were made in this run."""
        container = spec.task_template.container_spec
        assert container is not None
        secrets = [
            SecretReference(
                ref.secret_id or self._new_ids["secret", ref.secret_name], ref.secret_name, ref.file
            )
            for ref in container.secrets
        ]
        configs = [
            ConfigReference(
                ref.config_id or self._new_ids["config", ref.config_name],
                ref.config_name,
                ref.file,
                ref.runtime,
            )
            for ref in container.configs
        ]
        privileges = container.privileges
        runtime = [ref.config_id for ref in configs if ref.runtime is not None]
        if runtime and privileges is not None:
            privileges = {**privileges, "CredentialSpec": {"Config": runtime[0]}}
        container = msgspec.structs.replace(
            container, secrets=secrets, configs=configs, privileges=privileges
        )
        return msgspec.structs.replace(
            spec, task_template=msgspec.structs.replace(spec.task_template, container_spec=container)
        )

    def _service(self, action: Action) -> None:
        assert action.service is not None
        spec = self._with_ids(action.service)
        self._say(f"{_DOING[action.verb]} service {action.name}" + (f" ({action.why})" if action.why else ""))
        image = self._stack.project.services[action.key].container.image
        auth = self._swarm.auth(image)
        if action.verb == UPDATE:
            self._update(action, spec, auth)
            return
        if action.verb == REPLACE:
            self._call(f"remove service {action.name}", "DELETE", f"/services/{action.id}")
        made = self._call(f"create service {action.name}", "POST", "/services/create", encode(spec), auth)
        self._warn(made)

    def _update(self, action: Action, spec: ServiceSpec, auth: str) -> None:
        """An allocation or a status may have given the service a new version since; its spec must be the planned one."""
        version = action.version
        for attempt in range(_TRIES):
            try:
                url = f"/services/{action.id}/update?version={version}"
                headers = {"X-Registry-Auth": auth} if auth else {}
                answer = self._swarm.engine.call("POST", url, encode(spec), headers=headers, timeout=60)
            except EngineError as error:
                if "update out of sequence" not in error.text or attempt == _TRIES - 1:
                    raise OverlaceError(f"failed to update service {action.name}: {error.text}") from None
                there = stored_service(self._swarm.get(f"/services/{action.id}"))
                if there.spec != action.before:
                    raise FailedPrecondition(
                        f"service {action.name} was changed by someone else meanwhile; run it again"
                    ) from None
                version = there.version
            else:
                self._warn(answer)
                return

    def _warn(self, answer: Json | None) -> None:
        for warning in (answer or {}).get("Warnings") or []:
            click.echo(f"warning: {warning}", err=True)

    def _refresh_auth(self, key: str) -> None:
        """An unchanged service still gets the credentials that were asked for; a job would run again, so it does not."""
        service = self._stack.project.services[key]
        auth = self._swarm.auth(service.container.image)
        mode = service.service.mode
        if not auth or mode.replicated_job is not None or mode.global_job is not None:
            return
        name = scoped(self._stack.name, key)
        document = self._swarm.get(f"/services/{urllib.parse.quote(name)}")
        self._say(f"Sending the registry's credentials to service {name}")
        url = f"/services/{document['ID']}/update?version={document['Version']['Index']}"
        self._call(f"update service {name}", "POST", url, document["Spec"], auth)

    # -- waiting --

    def _await_dependency(self, key: str, name: str, dependency: Dependency) -> None:
        what = f"service {key}: depends_on {name} ({dependency.condition})"
        self.wait(scoped(self._stack.name, name), dependency.condition, what)

    def wait(self, service: str, condition: str, what: str, stable: float = 0) -> None:
        """Until the condition holds, for `stable` seconds. Raises FailedPrecondition when it does not within the time
        there is, or cannot."""
        started = time.monotonic()
        held: float | None = None
        stuck: float | None = None
        said = ""
        while True:
            verdict = self._look(service, condition)
            now = time.monotonic()
            if verdict.text != said and not (verdict.done and not said):
                self._say(f"{what}: {verdict.text}")
                said = verdict.text
            held = (held if held is not None else now) if verdict.done else None
            if held is not None and now - held >= stable:
                return
            stuck = (stuck if stuck is not None else now) if verdict.settled else None
            if stuck is not None and now - stuck >= _SETTLED:
                raise FailedPrecondition(
                    f"{what}: {verdict.text}, and no more will: {verdict.hopeless or 'all ended'}"
                )
            if now - started >= self._timeout:
                why = f"; {verdict.hopeless}" if verdict.hopeless else ""
                raise FailedPrecondition(
                    f"{what}: not within {self._timeout:g} s: {verdict.text}{why}. See `overlace why {service}`; what"
                    " was deployed stays, run it again to go on (--wait-timeout gives more time)"
                )
            time.sleep(_POLL)

    def _look(self, name: str, condition: str) -> Verdict:
        service = self._swarm.get(f"/services/{urllib.parse.quote(name)}")
        tasks = self._swarm.get(filtered("/tasks", service=service["ID"])) or []
        fresh = self._swarm.get(filtered("/tasks", service=service["ID"], **{"_up-to-date": "true"})) or []
        current = {task["ID"] for task in fresh}
        marked: list[Mapping[str, Any]] = [{**task, "UpToDate": task["ID"] in current} for task in tasks]
        return judge(condition, service, [dict(task) for task in marked])
