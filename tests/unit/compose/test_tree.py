"""YAML as Go's yaml.v3 reads it, with the place of everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlace.compose.problems import ComposeError
from overlace.compose.tree import MAX_DEPTH, MAX_NODES, go_text, parse


def value(text: str) -> Any:
    return parse(f"a: {text}\n", "f.yml").mapping["a"].plain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("true", True), ("False", False), ("yes", "yes"), ("on", "on"), ("n", "n"), ("~", None), ("", None),
        ("null", None), ("22:22", "22:22"), ("12:30:45", "12:30:45"), ("190:20:30", "190:20:30"), ("0777", 511),
        ("0o17", 15), ("0x10", 16), ("0b11", 3), ("08", 8), ("1_000", 1000), ("-5", -5), ("+5", 5), ("1.50", 1.5),
        (".5", 0.5), ("1e3", 1000.0), ("1e400", "1e400"), ("2001-01-01", "2001-01-01"), ("'1'", "1"), ('"true"', "true"),
        ("!!str 1", "1"), ("!!int 7", 7), (".", "."), ("1.2.3", "1.2.3"), ("0o8", "0o8"), ("[1, a]", [1, "a"]),
        ("{b: {c: 1}}", {"b": {"c": 1}}), ("123456789012345678901234567890", 123456789012345678901234567890.0),
    ],
)  # fmt: skip
def test_scalars(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1"), (1.5, "1.5"), (1e6, "1e+06"), (1e5, "100000"), (0.00001, "1e-05"), (0.0001, "0.0001"),
        (123456789.5, "1.234567895e+08"), (1e21, "1e+21"), (-2.5, "-2.5"), (0.0, "0"), (7, "7"), (True, "true"),
        (1.2345678901234568e29, "1.2345678901234568e+29"), (float("inf"), "+Inf"), (None, ""),
    ],
)  # fmt: skip
def test_numbers_become_text_as_in_go(number: Any, text: str) -> None:
    assert go_text(number) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_text_of_a_number_is_that_number(number: float) -> None:
    assert float(go_text(number)) == number


def test_places_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nother: &o {x: 9, z: 3}\na:\n  <<: [*b, *o]\n  y: 5\n"
    root = parse(text, "f.yml")
    merged = root.mapping["a"]
    assert merged.plain() == {"x": 1, "y": 5, "z": 3}
    assert str(merged.mapping["y"].mark) == "f.yml:5:6" and str(merged.keys["y"]) == "f.yml:5:3"
    assert str(merged.mapping["x"].mark) == "f.yml:1:14", "where it was written, not where it is used"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yml:3:1: a: given twice, first at line 1; keep one"),
        ("a:\n  c: 1\n  c: 2\n", "f.yml:3:3: a.c: given twice"),
        ("a: [\n", "f.yml:2:1: this is not YAML"),
        ("a: \x01\n", "this is not YAML"),
        ("", "f.yml:1:1: the file is empty"),
        ("- a\n", "f.yml:1:1: a compose file is a mapping, this is a list"),
        ("a: {1: b}\n", 'f.yml:1:5: a: the key 1 is not text; quote it: "1"'),
        ("a: {[x]: b}\n", "a key must be text"),
        ("a: !!binary aGk=\n", "unknown tag tag:yaml.org,2002:binary"),
        ("a: !thing {}\n", "unknown tag !thing"),
        ("a: 1\n---\nb: 2\n", "this is not YAML"),
        ("a: &a [*a]\n", "an anchor is used inside itself"),
        ("a: {<<: 5}\n", "<< takes mappings, not the number 5"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ComposeError) as caught:
        parse(text, "f.yml")
    assert words in caught.value.message


def test_a_few_lines_do_not_become_billions() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ComposeError, match=f"more than {MAX_NODES} values"):
        parse("\n".join(rows), "f.yml")


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 5000, "- " * 5000 + "x", "[" * 101 + "]" * 101])
def test_depth_is_bounded(text: str) -> None:
    with pytest.raises(ComposeError, match=f"f.yml:2:.* nested more than {MAX_DEPTH} deep"):
        parse(f"a:\n {text}\n", "f.yml")


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000, "0o" + "7" * 5000, "1." + "0" * 5000])
def test_a_number_of_thousands_of_digits_is_text(digits: str) -> None:
    assert value(digits) == digits
