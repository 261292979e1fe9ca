"""What is refused, named or warned of, with place, key, value and what to do."""

# ruff: noqa: E501  tables of texts and sentences
from __future__ import annotations

import pytest

from overlace.compose.keys import LEFT_OUT, REFUSED
from overlace.compose.shorthand import (
    BadValue,
    parse_cpus,
    parse_duration,
    parse_port,
    parse_size,
    parse_volume,
)
from overlace.compose.words import duration

from . import kit


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("comand: x", "compose.yml:4:5: services.web.comand: unknown key; did you mean command?"),
        ("zzz: x", "services.web.zzz: unknown key; remove it, or write it as x-…"),
        ("deploy: {replica: 2}", "services.web.deploy.replica: unknown key; did you mean replicas?"),
        ("deploy: {replicas: many}", 'compose.yml:4:24: services.web.deploy.replicas: a whole number belongs here, not the text "many"'),
        ("deploy: {replicas: -1}", "-1 is too small; the least is 0"),
        ("deploy: {mode: globl}", '"globl" is none of replicated, global, replicated-job, global-job'),
        ("deploy: {mode: global, replicas: 2}", "leave replicas out"),
        ("deploy: {mode: global-job, update_config: {}}", "jobs are not updated step by step"),
        ("deploy: {update_config: {max_failure_ratio: 2}}", "2 is no part of a whole"),
        ("deploy: {rollback_config: {failure_action: rollback}}", '"rollback" is none of pause, continue'),
        ("deploy: {resources: {limits: {cpus: a}}}", '"a" is not a number of CPUs'),
        ("deploy: {resources: {limits: {memory: 5q}}}", '"5q" is not a size'),
        ("deploy: {resources: {reservations: {devices: [{}]}}}", "a swarm hands out no devices"),
        ("stop_grace_period: 10", "a duration with its unit, like 10s, belongs here, not the number 10"),
        ("stop_grace_period: 1d", '"1d" is not a duration; write it with units'),
        ("hostname: 5", 'text belongs here, not the number 5; quote it: "5"'),
        ("user: 0777", 'quote it: "0777"'),
        ("environment: {A: true}", 'text, a number or nothing belongs here, not the boolean true; quote it: "true"'),
        ("environment: {A: [1]}", "not a list"),
        ("environment: 5", "a mapping, or a list of KEY=VALUE, belongs here, not the number 5"),
        ("tty: maybe", 'true or false belongs here, not the text "maybe"'),
        ("ports: ['80:x']", '"x" is not a port; a port is a number from 1 to 65535'),
        ("ports: [70000]", '"70000" is not a port'),
        ("ports: ['1-3:1-2']", "3 published ports for 2 of the container"),
        ("ports: ['3-1']", "ends before it begins"),
        ("ports: ['80/icmp']", '"icmp" is not a protocol'),
        ("ports: [1.5]", "a port belongs here, not the number 1.5"),
        ("ports: [{published: 80}]", "services.web.ports[0].target: name the container's port"),
        ("ports: 80", "a list belongs here, not the number 80"),
        ("volumes: ['aa:bb:cc:dd']", "too many colons"),
        ("volumes: ['a::b']", "nothing stands between two colons"),
        ("volumes: [{target: /x}]", "services.web.volumes[0].type: name its type"),
        ("volumes: [{type: bind, target: /x}]", "give its path"),
        ("volumes: [{type: tmpfs, target: /x, bind: {}}, /x]", "services.web.volumes: /x is mounted twice"),
        ("volumes: [{type: volume, target: /x, bind: {propagation: rslave}}]", "bind: does not go with type volume"),
        ("volumes: ['nosuch:/x']", 'services.web.volumes: undefined volume "nosuch"; add it under volumes'),
        ("networks: [nosuch]", 'undefined network "nosuch"'),
        ("networks: {default: {ipv4_address: 10.0.0.5}}", "the swarm gives every task its address"),
        ("secrets: [nosuch]", 'undefined secret "nosuch"'),
        ("configs: [{target: /x}]", "source names one of the configs"),
        ("depends_on: [webb]", "there is no service webb; did you mean web?"),
        ("depends_on: {web: {condition: healthy}}", '"healthy" is none of service_started'),
        ("depends_on: [web]", "services wait for each other in a circle: web -> web; break it"),
        ("healthcheck: {test: [curl, x]}", 'a list begins with NONE, CMD or CMD-SHELL, not "curl"'),
        ("healthcheck: {test: x, disable: true}", "given beside test; keep one of them"),
        ("ulimits: {nofile: {soft: 1}}", "services.web.ulimits.nofile: give both, soft and hard"),
        ("extra_hosts: [justname]", '"justname" is no NAME:ADDRESS'),
        ("extra_hosts: ['h:host-gateway']", "a task has no host-gateway"),
        ("security_opt: ['seccomp:unconfined']", '"seccomp:unconfined" cannot be honoured'),
        ("credential_spec: {config: a, file: b}", "give exactly one of config, file and registry"),
        ("env_file: no.env", "/project/no.env cannot be read"),
        ("memswap_limit: 1g", "give mem_limit too"),
        ("mem_limit: 1g\nmemswap_limit: 512m", "it counts memory and swap together"),
        ("cpus: 1\ndeploy: {resources: {limits: {cpus: 2}}}", "deploy.resources.limits.cpus is given too"),
        ("restart: sometimes", '"sometimes" is none of no, always'),
        ("scale: 3", "use deploy.replicas"),
        ("tmpfs: ['/x:uid=5']", "options uid cannot be honoured; a swarm has size and mode"),
        ("command: 'a \"b'", "No closing quotation"),
        ("pids_limit: 5\ndeploy: {resources: {limits: {pids: 6}}}", "pids_limit: deploy.resources.limits.pids is given too, and differs"),
    ],
)  # fmt: skip
def test_refusals(body: str, error: str) -> None:
    assert error in "\n".join(kit.refused_in_service(body))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("version: 3.8\nservices: {a: {image: x}}", 'compose.yml:1:10: version: quote it: "3.8"'),
        ('version: "2.4"\nservices: {a: {image: x}}', '"2.4" is not read'),
        ("services: {}", "services: there is none"),
        ("servics: {a: {image: x}}", "servics: unknown key; did you mean services?"),
        ("services: {a: {}}", "services.a.image: every service needs an image"),
        ("services: {a: {build: .}}", "it is not built here"),
        ("services: {a b: {image: x}}", '"a b" is no name'),
        ("services: {a: {image: x}}\nconfigs: {c: {}}", "nothing says where its data is; give one of file"),
        ("services: {a: {image: x}}\nsecrets: {c: {file: a, environment: B}}", "file and environment are given"),
        ("services: {a: {image: x}}\nnetworks: {n: {external: true, driver: overlay}}", "an external one is used as it is"),
        ("services: {a: {image: x}}\nnetworks: {n: {ipam: {config: [{subnet: x}]}}}", '"x" is not a network'),
        ("services: {a: {image: x}}\nnetworks: {n: {enable_ipv4: false}}", "an overlay always has IPv4"),
        ("services: {a: {image: x}}\nvolumes: {n: {external: {name: a}, name: b}}", "given beside name; keep name only"),
        ("services: {a: {image: x, depends_on: {b: {condition: service_completed_successfully}}}, b: {image: y}}", "b never completes"),
        ("services: {a: {image: x, depends_on: {b: {condition: service_healthy}}}, b: {image: y, healthcheck: {disable: true}}}", "b never becomes healthy"),
        ("services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [c]}, c: {image: x, depends_on: [a]}}", "a -> b -> c -> a"),
    ],
)  # fmt: skip
def test_refusals_of_a_whole_file(text: str, error: str) -> None:
    assert error in "\n".join(kit.refused(text))


def test_all_mistakes_are_told_at_once() -> None:
    errors = kit.refused_in_service("comand: x\ntty: maybe\ndeploy: {replicas: x}")
    assert len(errors) == 3 and all(error.startswith("compose.yml:") for error in errors)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_a_swarm_cannot_honour_is_refused_or_left_out_on_request(key: str) -> None:
    [error] = kit.refused_in_service(f"{key}: some")
    assert error.startswith("compose.yml:4:") and f"services.web.{key}: a swarm cannot honour it" in error
    text = f"services: {{web: {{image: app, {key}: some}}}}"
    _, problems = kit.read(text, leave_out=True)
    assert f"services.web.{key}: left out" in str(problems.warnings[0])
    kit.read(f"services: {{web: {{image: app, {key}: }}}}")  # asks for nothing


@pytest.mark.parametrize("key", sorted(LEFT_OUT))
def test_what_makes_no_difference_is_named(key: str) -> None:
    _, problems = kit.read(f"services: {{web: {{image: app, {key}: some}}}}")
    assert [str(p) for p in problems.warnings] == [
        f"compose.yml:1:{len(key) + 32}: services.web.{key}: left out: {LEFT_OUT[key]}"
    ]


def test_extensions_are_allowed_everywhere() -> None:
    text = "x-a: 1\nservices: {web: {image: app, x-b: 2, deploy: {x-c: 3, resources: {x-d: 4}}, healthcheck: {x-e: 5}}}\n"
    _, problems = kit.read(text + "networks: {n: {x-f: 6}}\nvolumes: {v: {x-g: 7}}")
    assert problems.warnings == []


def test_other_spellings() -> None:
    found = kit.one(
        "tty: 'yes'\ninit: on\nread_only: 'off'\ndeploy: {replicas: '3', resources: {limits: {cpus: .5}}}"
    )
    assert found["tty"] is True and found["init"] is True and "read_only" not in found
    assert found["deploy.replicas"] == 3 and found["deploy.resources.limits.cpus"] == "0.5"
    found = kit.one("ports: ['127.0.0.1:80:80', '[::1]:81:81']\nextra_hosts: {a: '::1'}\nrestart: no")
    assert found["ports.80:80/tcp"] == "ingress" and found["extra_hosts"] == ["::1 a"]


def test_limits_beside_deploy() -> None:
    found = kit.one(
        "mem_limit: 512m\nmem_reservation: 64m\nmemswap_limit: 1g\nmem_swappiness: 0\ncpus: 0.5\npids_limit: 9"
    )
    assert {k.removeprefix("deploy.resources."): v for k, v in found.items() if "resources" in k or "mem" in k} == {
        "limits.memory": "512m", "limits.cpus": "0.5", "limits.pids": 9, "reservations.memory": "64m", "swap": "512m",
        "mem_swappiness": 0,
    }  # fmt: skip
    assert kit.one("mem_limit: 1g\nmemswap_limit: -1")["deploy.resources.swap"] == "-1"
    same = kit.one("mem_limit: 1g\ndeploy: {resources: {limits: {memory: 1024m}, reservations: {cpus: '1'}}}")
    assert (
        same["deploy.resources.limits.memory"] == "1g" and same["deploy.resources.reservations.cpus"] == "1"
    )


def test_old_external_names() -> None:
    text = "services: {web: {image: app, secrets: [s], volumes: ['vol:/v']}}\nsecrets: {s: {external: {name: real}}}\n"
    project, _ = kit.read(text + "volumes: {vol: {external: true}}")
    found = kit.words(project)["web"]
    assert found["secrets.s"] == "real" and found["volumes./v"] == "volume vol"


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1m30s", 90 * 10**9),
        ("1.5h", 5400 * 10**9),
        ("300ms", 3 * 10**8),
        ("0", 0),
        ("2us", 2000),
        ("-1s", -(10**9)),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds
    assert parse_duration(duration(nanoseconds)) == nanoseconds


def test_sizes_cpus_ports_volumes() -> None:
    assert [parse_size(t) for t in ("5", "1k", "1.5g", "2mb", "3 KiB")] == [5, 1024, 3 * 2**29, 2**21, 3072]
    assert parse_cpus("0.25") == 250_000_000
    ports, address = parse_port("10.0.0.1:8000-8001:80-81/udp")
    assert address == "10.0.0.1" and [(p.published_port, p.target_port, p.protocol) for p in ports] == [
        (8000, 80, "udp"), (8001, 81, "udp"),
    ]  # fmt: skip
    assert [p.published_port for p in parse_port("9000-9002:80")[0]] == [9000, 9001, 9002]
    volume = parse_volume("C:\\a:D:\\b:ro,rslave")
    assert (volume.type, volume.source, volume.target, volume.read_only) == ("bind", "C:\\a", "D:\\b", True)
    for bad in ("", "x", "1e400x", "inf"):
        with pytest.raises(BadValue):
            parse_cpus(bad)
