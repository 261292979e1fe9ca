"""Variables in compose files, and the files they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.compose.envfile import parse_dotenv, parse_env_file
from overlace.compose.interpolate import BadInterpolation, substitute
from overlace.compose.problems import Problems

from . import kit

ENV = {"SET": "value", "EMPTY": "", "OTHER": "o"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"), ("$SET", "value"), ("${SET}x", "valuex"), ("$SET-x", "value-x"), ("$$SET", "$SET"),
        ("$$$$", "$$"), ("$${SET}", "${SET}"), ("${NONE}", ""), ("$NONE.", "."), ("${NONE:-d}", "d"),
        ("${NONE-d}", "d"), ("${EMPTY:-d}", "d"), ("${EMPTY-d}", ""), ("${SET:-d}", "value"), ("${SET:+x}", "x"),
        ("${EMPTY:+x}", ""), ("${EMPTY+x}", "x"), ("${NONE+x}", ""), ("${SET:?no}", "value"), ("${EMPTY?no}", ""),
        ("${NONE:-${OTHER}}", "o"), ("${NONE:-${ALSO:-deep}}!", "deep!"), ("${NONE:-a b:c/d}", "a b:c/d"),
        ("${NONE:-$$5}", "$5"), ("${SET:-${NONE:?not asked}}", "value"), ("${SET:+${OTHER}}", "o"), ("${NONE:-}", ""),
    ],
)  # fmt: skip
def test_forms(text: str, expected: str) -> None:
    assert substitute(text, ENV.get) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$", "names no variable; write $$"), ("a $1", "names no variable"), ("${", "names no variable"),
        ("${SET", "after"), ("${SET:-x", "is not closed"), ("${SET!x}", "one of - ? +"), ("${-x}", "names no variable"),
        ("${NONE:?set it}", "NONE is not set: set it"), ("${EMPTY:?}", "EMPTY is empty: it is required"),
        ("${NONE?}", "NONE is not set"), ("${A:-" * 30 + "}" * 30, "too deeply"),
    ],
)  # fmt: skip
def test_mistakes(text: str, words: str) -> None:
    with pytest.raises(BadInterpolation) as caught:
        substitute(text, ENV.get)
    assert words in str(caught.value)


@given(st.text())
def test_escaped_text_stays(text: str) -> None:
    assert substitute(text.replace("$", "$$"), ENV.get) == text


@given(st.text(alphabet="${}:-?+AB"))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        substitute(text, {"A": "1"}.get)
    except BadInterpolation:
        pass


def test_unset_variables_are_named_with_their_place() -> None:
    _, problems = kit.read("services:\n  web:\n    image: app\n    command: run $NOBODY\n")
    assert str(problems.warnings[0]) == (
        "compose.yml:4:14: services.web.command: the variable NOBODY is not set; it is read as nothing"
    )
    [error] = kit.refused("services:\n  web:\n    image: ${IMAGE:?which one}\n")
    assert error == "compose.yml:3:12: services.web.image: the variable IMAGE is not set: which one"


def test_dotenv_is_read_under_the_environment() -> None:
    files = {"/project/.env": "TAG=1\nIMAGE=app\n"}
    text = "services: {web: {image: '$IMAGE:$TAG', environment: [TAG]}}"
    project, _ = kit.read(text, env={"TAG": "2"}, files=files)
    assert project.services["web"].container.image == "app:2"
    assert project.services["web"].container.env == ["TAG=2"]


def test_dotenv_grammar() -> None:
    text = (
        '\ufeff# comment\r\nA=1\nexport B = two # note\nC=\'lit $A\'\nD="$A\\n\\"q\\" \\$A"\nE=${A}-${B}\nF=\n'
        'G: yaml\nH=a#b\nMULTI="x\ny"\nLAST=z'
    )
    found = parse_dotenv(text, ".env", {}.get, problems := Problems())
    assert found == {
        "A": "1", "B": "two", "C": "lit $A", "D": '1\n"q" $A', "E": "1-two", "F": "", "G": "yaml", "H": "a#b",
        "MULTI": "x\ny", "LAST": "z",
    }  # fmt: skip
    assert problems.errors == []
    parse_dotenv("1BAD=x\nA='open\n", ".env", {}.get, problems)
    assert [str(e) for e in problems.errors] == [
        '.env:1:1: "1BAD=x" is no NAME=VALUE', ".env:2:1: A: the value begins with ' and no ' ends it",
    ]  # fmt: skip


def test_env_file_is_read_as_docker_reads_it() -> None:
    text = "A=1\n# c\n\n  B=two words # kept\nC\nD='q'\nNOTHERE\nE=a=b\n"
    found = dict(parse_env_file(text, "f", {"C": "outer"}.get, problems := Problems()))
    assert found == {"A": "1", "B": "two words # kept", "C": "outer", "D": "'q'", "E": "a=b"}
    assert "the quotes are part of the value" in str(problems.warnings[0])
    list(parse_env_file("A B=1\n=x\n", "f", {}.get, problems))
    assert len(problems.errors) == 2
