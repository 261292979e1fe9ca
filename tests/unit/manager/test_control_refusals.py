"""Bad service specs: Docker's status and words, measured against real daemons; ours where Docker has none."""

from __future__ import annotations

from typing import Any

import pytest
from control_kit import Kit, ports, spec, words

from overlace.model.errors import OverlaceError
from overlace.model.specs import NetworkSpec

RPC = "rpc error: code = InvalidArgument desc = "
FILE = {"Name": "f", "UID": "0", "GID": "0", "Mode": 292}


def secret(id: str, name: str, **file: Any) -> dict[str, Any]:
    return {"SecretID": id, "SecretName": name, "File": {**FILE, **file}}


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    (
        "policy",
        {"Labels": {"overlace.policy.allow-from": "db:tpc"}, "Networks": [{"Target": "back"}]},
        400,
        "label overlace.policy.allow-from: item 1 'db:tpc': 'tpc' is no protocol: write tcp, udp, sctp or icmp, "
        "for example tcp/80",
    ),
    # -- measured: engine-errors.md
    ("name", {"Name": "a b"}, 400, RPC + "name must be valid as a DNS name component"),
    ("name end", {"Name": "web-"}, 400, RPC + "name must be valid as a DNS name component"),
    ("long name", {"Name": "a" * 64}, 400, RPC + "name must be 63 characters or fewer"),
    ("no image", {"container": {"Image": ""}}, 400, RPC + "ContainerSpec: image reference must be provided"),
    (
        "bad image",
        {"container": {"Image": "BAD:IMG:x"}},
        400,
        RPC + 'ContainerSpec: "BAD:IMG:x" is not a valid repository/tag',
    ),
    (
        "constraint",
        {"template": {"Placement": {"Constraints": ["node.role"]}}},
        400,
        RPC + "constraint expected one operator from ==, !=",
    ),
    (
        "constraint key",
        {"template": {"Placement": {"Constraints": ["1bad==a"]}}},
        400,
        RPC + "key '1bad' is invalid",
    ),
    (
        "constraint value",
        {"template": {"Placement": {"Constraints": ["a1==a>b"]}}},
        400,
        RPC + "value 'a>b' is invalid",
    ),
    ("no network", {"template": {"Networks": [{"Target": "nosuchnet"}]}}, 400, "network nosuchnet not found"),
    (
        "host's network and another",
        {"template": {"Networks": [{"Target": "host"}, {"Target": "back"}]}},
        400,
        "conflicting options: network host is each host's own",
    ),
    (
        "host's network and ports",
        {"template": {"Networks": [{"Target": "host"}]}, "EndpointSpec": ports({"TargetPort": 80})},
        400,
        "conflicting options: port publishing and network host",
    ),
    (
        "none and a host's port",
        {
            "template": {"Networks": [{"Target": "none"}]},
            "EndpointSpec": ports({"TargetPort": 80, "PublishMode": "host"}),
        },
        400,
        "conflicting options: port publishing and network none",
    ),
    (
        "host's network and an alias",
        {"template": {"Networks": [{"Target": "host", "Aliases": ["x"]}]}},
        400,
        "network-scoped aliases are only supported for overlay networks, not for host",
    ),
    (
        "host's network and a sysctl",
        {
            "template": {"Networks": [{"Target": "host"}]},
            "container": {"Sysctls": {"net.ipv4.ip_forward": "1"}},
        },
        400,
        "sysctl 'net.ipv4.ip_forward' is not allowed in the host network namespace",
    ),
    (
        "ingress network",
        {"template": {"Networks": [{"Target": "ingress"}]}},
        400,
        RPC + 'Service cannot be explicitly attached to the ingress network "ingress"',
    ),
    (
        "cpu",
        {"template": {"Resources": {"Limits": {"NanoCPUs": 100}}}},
        400,
        RPC + "invalid cpu value 1e-07: Must be at least 0.001",
    ),
    (
        "memory",
        {"template": {"Resources": {"Reservations": {"MemoryBytes": 1000}}}},
        400,
        RPC + "invalid memory value 1000: Must be at least 4MiB",
    ),
    (
        "restart delay",
        {"template": {"RestartPolicy": {"Delay": -1}}},
        400,
        RPC + "TaskSpec: restart-delay cannot be negative",
    ),
    (
        "condition",
        {"template": {"RestartPolicy": {"Condition": "foo"}}},
        400,
        'invalid RestartCondition: "foo"',
    ),
    ("action", {"UpdateConfig": {"FailureAction": "foo"}}, 400, "unrecognized update failure action foo"),
    ("order", {"RollbackConfig": {"Order": "foo"}}, 400, "unrecognized update order foo"),
    (
        "ratio",
        {"UpdateConfig": {"MaxFailureRatio": 2}},
        400,
        RPC + "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
    ),
    ("two modes", {"Mode": {"Replicated": {}, "Global": {}}}, 400, "must specify only one service mode"),
    (
        "dnsrr and ingress",
        {"EndpointSpec": ports({"TargetPort": 80, "PublishedPort": 80}, mode="dnsrr")},
        400,
        RPC + "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    (
        "ports twice",
        {
            "EndpointSpec": ports(
                {"TargetPort": 80, "PublishedPort": 80}, {"TargetPort": 81, "PublishedPort": 80}
            )
        },
        400,
        RPC + "EndpointSpec: duplicate published ports provided",
    ),
    ("secret gone", {"container": {"Secrets": [secret("x", "y")]}}, 400, RPC + "secret not found: y"),
    (
        "secrets gone",
        {"container": {"Secrets": [secret("x", "y"), secret("z", "w", Name="g")]}},
        400,
        RPC + "secrets not found: y, w",
    ),
    (
        "config gone",
        {"container": {"Configs": [{"ConfigID": "x", "ConfigName": "y", "File": FILE}]}},
        400,
        RPC + "config not found: y",
    ),
    (
        "secret target",
        {"container": {"Secrets": [{"SecretID": "x", "SecretName": "y"}]}},
        400,
        RPC + "malformed secret reference, no target provided",
    ),
    (
        "mount twice",
        {"container": {"Mounts": [{"Type": "tmpfs", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a"}]}},
        400,
        RPC + "ContainerSpec: duplicate mount point: /a",
    ),
    (
        "interval",
        {"container": {"Healthcheck": {"Interval": 10}}},
        400,
        RPC + "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
    ),
    (
        "template",
        {"container": {"Env": ["A={{.Foo}}"]}},
        400,
        RPC
        + 'expanding env failed: expanding env "A={{.Foo}}": template: expansion:1:2: executing "expansion"'
        " at <.Foo>: can't evaluate field Foo in type *template.Context",
    ),
    # -- ours: refused when the service is created, with the field and what to do
    (
        "same secret file",
        {"container": {"Secrets": [secret("x", "y"), secret("z", "w")]}},
        400,
        "conflicting target: 'f'",
    ),
    (
        "owner",
        {"container": {"Secrets": [secret("x", "y", UID="root")]}},
        400,
        "File.UID 'root' is not a number",
    ),
    ("isolation", {"container": {"Isolation": "foo"}}, 400, 'invalid Isolation: "foo"'),
    (
        "mount type",
        {"container": {"Mounts": [{"Type": "foo", "Target": "/a"}]}},
        400,
        'invalid MountType: "foo"',
    ),
    (
        "mount root",
        {"container": {"Mounts": [{"Type": "tmpfs", "Target": "/"}]}},
        400,
        "root cannot be mounted over",
    ),
    (
        "bind source",
        {"container": {"Mounts": [{"Type": "bind", "Source": "data", "Target": "/a"}]}},
        400,
        "invalid mount source, must be an absolute path: data",
    ),
    (
        "volume name",
        {"container": {"Mounts": [{"Type": "volume", "Source": "/x", "Target": "/a"}]}},
        400,
        "invalid characters for a local volume name",
    ),
    (
        "options of another type",
        {"container": {"Mounts": [{"Type": "tmpfs", "Target": "/a", "BindOptions": {}}]}},
        400,
        "BindOptions do not go with type tmpfs",
    ),
    ("capability", {"container": {"CapabilityAdd": ["CAP_FLY"]}}, 400, 'unknown capability: "CAP_FLY"'),
    ("signal", {"container": {"StopSignal": "SIG HUP"}}, 400, "invalid signal: SIG HUP"),
    ("ulimit", {"container": {"Ulimits": [{"Name": "x"}]}}, 400, "invalid ulimit type: x"),
    (
        "ulimit order",
        {"container": {"Ulimits": [{"Name": "core", "Soft": 2, "Hard": 1}]}},
        400,
        "less than or equal",
    ),
    ("env", {"container": {"Env": ["=x"]}}, 400, "invalid environment variable: =x"),
    ("workdir", {"container": {"Dir": "x"}}, 400, "needs to be an absolute path"),
    ("hosts", {"container": {"Hosts": ["nohost"]}}, 400, 'invalid entry in Hosts: "nohost"'),
    ("nameserver", {"container": {"DNSConfig": {"Nameservers": ["dns"]}}}, 400, "DNSConfig.Nameservers: dns"),
    (
        "health test",
        {"container": {"Healthcheck": {"Test": ["foo"]}}},
        400,
        'unknown type "foo" in healthcheck',
    ),
    ("oom", {"container": {"OomScoreAdj": 2000}}, 400, "range for oom score adj is [-1000, 1000]"),
    (
        "protocol",
        {"EndpointSpec": ports({"TargetPort": 1, "Protocol": "foo"})},
        400,
        'invalid protocol "foo"',
    ),
    (
        "target port",
        {"EndpointSpec": ports({"TargetPort": 0, "PublishedPort": 1})},
        400,
        "invalid TargetPort 0",
    ),
    (
        "big port",
        {"EndpointSpec": ports({"TargetPort": 1, "PublishedPort": 70000})},
        400,
        "invalid PublishedPort 70000",
    ),
    ("endpoint mode", {"EndpointSpec": {"Mode": "foo"}}, 400, 'invalid EndpointSpec.Mode: "foo"'),
    (
        "preference",
        {"template": {"Placement": {"Preferences": [{"Spread": {"SpreadDescriptor": "cpu"}}]}}},
        400,
        "tasks spread over node.labels.X or engine.labels.X",
    ),
    ("empty spec", {"template": {"ContainerSpec": None}}, 400, "mismatched Runtime and *Spec fields"),
    # -- what is not there yet is said, never ignored
    (
        "job with an update config",
        {"Mode": {"ReplicatedJob": {}}, "UpdateConfig": {"Parallelism": 1}},
        400,
        "rpc error: code = InvalidArgument desc = Jobs may not have an update config",
    ),
    (
        "job with a rollback config",
        {"Mode": {"GlobalJob": {}}, "RollbackConfig": {"Parallelism": 1}},
        400,
        "Jobs may not have a rollback config",
    ),
    (
        "job with less than nothing at once",
        {"Mode": {"ReplicatedJob": {"MaxConcurrent": -1}}},
        400,
        "Maximum concurrent jobs must be non-negative",
    ),
    (
        "job with less than no completions",
        {"Mode": {"ReplicatedJob": {"TotalCompletions": -1}}},
        400,
        "Total completed jobs must be non-negative",
    ),
    ("plugin", {"template": {"Runtime": "plugin"}}, 501, "Runtime plugin is not supported yet"),
    (
        "generic",
        {"template": {"Resources": {"Reservations": {"GenericResources": [{"NamedResourceSpec": {}}]}}}},
        400,
        "Resources.Reservations.GenericResources[0]: reserve a number, not names",
    ),
    (
        "generic of none",
        {
            "template": {
                "Resources": {
                    "Reservations": {
                        "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 0}}]
                    }
                }
            }
        },
        400,
        "Value of gpu is 0; reserve 1 or more",
    ),
    (
        "credspec",
        {"container": {"Privileges": {"CredentialSpec": {"File": "x"}}}},
        501,
        "Privileges.CredentialSpec",
    ),
    (
        "seccomp",
        {"container": {"Privileges": {"Seccomp": {"Mode": "tight"}}}},
        400,
        'unknown security option seccomp mode: "tight"; use default, unconfined or custom',
    ),
    (
        "seccomp profile",
        {"container": {"Privileges": {"Seccomp": {"Mode": "custom", "Profile": "e30="}}}},
        400,
        "seccomp profile: unknown action ''",
    ),
    (
        "seccomp profile in no base64",
        {"container": {"Privileges": {"Seccomp": {"Mode": "custom", "Profile": "ä"}}}},
        400,
        "Privileges.Seccomp.Profile: expected base64 of a seccomp profile",
    ),
    (
        "seccomp profile without end",
        {"container": {"Privileges": {"Seccomp": {"Mode": "custom", "Profile": "W1tb" * 20000}}}},
        400,
        "Decoding seccomp profile failed",
    ),
    (
        "seccomp profile that is none",
        {"container": {"Privileges": {"Seccomp": {"Mode": "custom", "Profile": "bm8="}}}},
        400,
        "Decoding seccomp profile failed",
    ),
    (
        "selinux",
        {"container": {"Privileges": {"SELinuxContext": {"Role": "r"}}}},
        501,
        "Privileges.SELinuxContext.Role is not supported yet",
    ),
    (
        "credspec config",
        {"container": {"Privileges": {"CredentialSpec": {"Config": "abc"}}}},
        400,
        RPC
        + "CredentialSpec references config 'abc', but that config isn't in config references with RuntimeTarget",
    ),
    (
        "subpath",
        {
            "container": {
                "Mounts": [
                    {"Type": "volume", "Source": "vv", "Target": "/a", "VolumeOptions": {"Subpath": "../x"}}
                ]
            }
        },
        400,
        "subpath must be a relative path within the volume, not '../x'",
    ),
    (
        "volume option",
        {
            "container": {
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": "vv",
                        "Target": "/a",
                        "VolumeOptions": {"DriverConfig": {"Options": {"o": "addr=1.2.3.4"}}},
                    }
                ]
            }
        },
        400,
        'missing required option: "device"',
    ),
    (
        "tmpfs option",
        {
            "container": {
                "Mounts": [{"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"Options": [["uid", "7"]]}}]
            }
        },
        400,
        "invalid tmpfs option 'uid=7': only exec and noexec are allowed",
    ),
    (
        "forced read-only",
        {
            "container": {
                "Mounts": [
                    {
                        "Type": "bind",
                        "Source": "/s",
                        "Target": "/a",
                        "ReadOnly": True,
                        "BindOptions": {"ReadOnlyForceRecursive": True},
                    }
                ]
            }
        },
        400,
        "BindOptions.ReadOnlyForceRecursive needs Propagation rprivate",
    ),
    (
        "read-only of what can be written",
        {
            "container": {
                "Mounts": [
                    {
                        "Type": "bind",
                        "Source": "/s",
                        "Target": "/a",
                        "BindOptions": {"ReadOnlyNonRecursive": True},
                    }
                ]
            }
        },
        400,
        "BindOptions.ReadOnlyNonRecursive needs a mount that is ReadOnly",
    ),
    (
        "swap",
        {"template": {"Resources": {"SwapBytes": 5}}},
        400,
        "SwapBytes needs a memory limit",
    ),
    (
        "swappiness",
        {"template": {"Resources": {"MemorySwappiness": 101}}},
        400,
        "invalid MemorySwappiness 101",
    ),
    ("log driver", {"template": {"LogDriver": {"Name": "syslog"}}}, 501, "log driver syslog"),
    (
        "log option",
        {"template": {"LogDriver": {"Name": "json-file", "Options": {"tag": "x"}}}},
        501,
        "log option tag is not supported yet",
    ),
    (
        "log size",
        {"template": {"LogDriver": {"Options": {"max-size": "10 apples"}}}},
        400,
        "TaskTemplate.LogDriver: log option max-size: '10 apples' is not a size above 0; use a number with k, m or g",
    ),
    (
        "log files",
        {"template": {"LogDriver": {"Options": {"max-file": "0"}}}},
        400,
        "max-file: '0' is not a number",
    ),
    (
        "no such log option",
        {"template": {"LogDriver": {"Options": {"max-sice": "1m"}}}},
        400,
        "unknown log opt 'max-sice' for json-file log driver",
    ),
    (
        "npipe",
        {"container": {"Mounts": [{"Type": "npipe", "Target": "/a"}]}},
        501,
        "type npipe is not supported",
    ),
    (
        "volume driver",
        {
            "container": {
                "Mounts": [
                    {
                        "Type": "volume",
                        "Source": "vol",
                        "Target": "/a",
                        "VolumeOptions": {"DriverConfig": {"Name": "nfs"}},
                    }
                ]
            }
        },
        501,
        "volume driver nfs",
    ),
    (
        "sctp",
        {"EndpointSpec": ports({"TargetPort": 1, "PublishedPort": 2, "Protocol": "sctp"})},
        501,
        "publish 1:1/sctp",
    ),
    (
        "driver opts",
        {"template": {"Networks": [{"Target": "n", "DriverOpts": {"a": "b"}}]}},
        501,
        "DriverOpts for network n",
    ),
    (
        "runtime config",
        {"container": {"Configs": [{"ConfigID": "x", "ConfigName": "y", "Runtime": {}}]}},
        501,
        "a Runtime target",
    ),
]


@pytest.mark.parametrize(
    "members,status,text", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
async def test_bad_service(members: dict[str, Any], status: int, text: str) -> None:
    kit = Kit()
    await kit.ingress()
    before = kit.store.view().revision
    with pytest.raises(OverlaceError) as caught:
        await kit.control.create_service(spec(**members))
    said = words(caught.value)
    assert said == text if text.startswith(("rpc", "network")) and status == 400 else text in said
    assert caught.value.status == status
    assert kit.store.view().revision == before, "nothing half-created is left"


async def test_a_full_valid_spec_is_taken() -> None:
    """Everything the runtime honours at once, so that no rule above is too strict."""
    kit = Kit()
    await kit.ingress()
    network, _ = await kit.control.create_network(NetworkSpec(name="net"))
    full = spec(
        Labels={"tier": "front"},
        Mode={"Global": {}},
        UpdateConfig={"Parallelism": 2, "Delay": 1, "FailureAction": "rollback", "Order": "start-first"},
        EndpointSpec=ports(
            {"TargetPort": 80, "PublishedPort": 8080},
            {"TargetPort": 53, "PublishedPort": 53, "Protocol": "udp", "PublishMode": "host"},
        ),
        template={
            "Networks": [{"Target": "net", "Aliases": ["www"]}],
            "RestartPolicy": {"Condition": "on-failure", "Delay": 0, "MaxAttempts": 3, "Window": 5},
            "Resources": {"Limits": {"NanoCPUs": 1_000_000, "MemoryBytes": 4 << 20, "Pids": 10}},
            "Placement": {
                "Constraints": ["node.labels.zone != b"],
                "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                "MaxReplicas": 2,
            },
            "LogDriver": {"Name": "json-file", "Options": {"max-size": "10m", "max-file": "3"}},
        },
        container={
            "Env": [
                "A={{.Task.Slot}}",
                "B",
                'T={{index .Service.Labels "tier"}}',
                "L={{.Service.Labels.tier}}",
            ],
            "Hostname": "{{.Service.Name}}-{{.Task.Slot}}",
            "Mounts": [
                {"Type": "bind", "Source": "/srv/{{.Service.Name}}", "Target": "/srv", "ReadOnly": True},
                {
                    "Type": "volume",
                    "Source": "data",
                    "Target": "C:\\data",
                    "VolumeOptions": {"Labels": {"a": "b"}},
                },
                {"Type": "volume", "Target": "/own", "VolumeOptions": {"NoCopy": True}},
                {
                    "Type": "bind",
                    "Source": "/made",
                    "Target": "/made",
                    "BindOptions": {"CreateMountpoint": True},
                },
                {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 1 << 20, "Mode": 0o700}},
            ],
            "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000, "Retries": 2},
            "Privileges": {
                "NoNewPrivileges": True,
                "Seccomp": {"Mode": "unconfined"},
                "AppArmor": {"Mode": "disabled"},
                "SELinuxContext": {"Disable": True},
                "CredentialSpec": {},
            },
            "Isolation": "hyperv",
            "StopSignal": "SIGRTMIN+3",
            "StopGracePeriod": 0,
            "CapabilityAdd": ["CAP_NET_ADMIN"],
            "CapabilityDrop": ["ALL"],
            "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": -1}],
            "Hosts": ["10.1.1.1 db database"],
            "DNSConfig": {"Nameservers": ["1.1.1.1"], "Search": ["lan"]},
        },
    )
    id, warnings = await kit.control.create_service(full)
    stored = kit.service(id).spec
    assert warnings == []
    assert [n.target for n in stored.task_template.networks] == [network], "networks are kept by id"
