"""Seccomp profiles in Docker's form, made into what one container gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.seccomp import check_profile, profile_for


def rule(name: str, **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", **more}


def names(*rules: dict[str, Any], capabilities: tuple[str, ...] = (), machine: str = "x86_64") -> list[str]:
    text = json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules)})
    made = profile_for(text, capabilities, machine, (5, 10))
    return [name for one in made["syscalls"] for name in one["names"]]


def test_rules_for_some_containers_only() -> None:
    admin = rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]})
    others = rule("clone", excludes={"caps": ["CAP_SYS_ADMIN"]})
    assert names(admin, others) == ["clone"]
    assert names(admin, others, capabilities=("CAP_SYS_ADMIN",)) == ["mount"]
    arm = rule("arm_sync", includes={"arches": ["arm64"]})
    assert names(arm) == [] and names(arm, machine="aarch64") == ["arm_sync"]
    new, old = rule("ptrace", includes={"minKernel": "4.8"}), rule("bpf", includes={"minKernel": "5.11"})
    assert names(new, old) == ["ptrace"]


def test_the_rest_is_handed_on() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        ],
        "syscalls": [
            {
                "name": "personality",
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
            {"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }
    assert profile_for(json.dumps(document), (), "x86_64", (6, 1)) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            },
            {"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        ],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"defaultAction": "ALLOW"}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_LOG",'
        ' "includes": {"minKernel": "new"}}]}',
    ],
)
def test_what_is_no_profile(text: str) -> None:
    with pytest.raises(InvalidArgument, match="seccomp profile"):
        check_profile(text)
