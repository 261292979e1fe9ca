"""Placeholders people write in env, hostname and mounts."""

from __future__ import annotations

import pytest

from overlace.model.errors import InvalidArgument
from overlace.model.specs import ContainerSpec, Driver, Mount, VolumeOptions
from overlace.model.template import MAX_EXPANDED, Context, expand, expand_container

CONTEXT = Context(
    service_id="sid",
    service_name="web",
    service_labels={"tier": "front", "a.b": "dotted"},
    node_id="nid",
    node_hostname="host1",
    node_os="windows",
    node_architecture="x86_64",
    task_id="tid",
    task_name="web.3.tid",
    task_slot="3",
)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("plain {not} }} a template", "plain {not} }} a template"),
        ("{{.Service.ID}} {{.Service.Name}}", "sid web"),
        ("{{ .Node.ID }}/{{.Node.Hostname}}", "nid/host1"),
        ("{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}", "windows-x86_64"),
        ("{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}", "tid web.3.tid 3"),
        ("{{.Service.Labels.tier}}", "front"),
        ('{{index .Service.Labels "a.b"}}', "dotted"),
        ('[{{index .Service.Labels "nosuch"}}]', "[]"),
        ('{{join "-" .Service.Name .Task.Slot}}', "web-3"),
        ('{{.Service.Name | printf "%s-%d" "x"}}', "x-web"),
        ('{{printf "%q" (index .Service.Labels `tier`)}}', '"front"'),
        ("a {{- .Task.Slot -}} b", "a3b"),
        ("a{{/* nothing */}}b", "ab"),
        ("{{.Service.Labels}}", "map[a.b:dotted tier:front]"),
        ("{{if .Service.Name}}a{{end}}b", "ab"),
        ('{{if eq .Service.Name "db"}}a{{else}}b{{end}}', "b"),
        ('{{if eq .Service.Name "db"}}a{{else if eq .Task.Slot "3"}}b{{else}}c{{end}}', "b"),
        ('{{if eq .Service.Name "a" "web"}}{{if not true}}x{{else}}y{{end}}{{else}}{{.Foo}}{{end}}', "y"),
        ('{{if and .Service.Name (ne .Task.Slot "3")}}a{{end}}', ""),
        ('{{or (index .Service.Labels "nosuch") "none"}} {{len .Service.Name}} {{eq 1 1}}', "none 3 true"),
        ("a {{- if true -}} b {{- end}} c", "ab c"),
    ],
)
def test_expand(text: str, expected: str) -> None:
    assert expand(text, CONTEXT) == expected


def test_a_global_tasks_slot_is_its_node() -> None:
    assert expand("{{.Task.Slot}}", Context(node_id="nid")) == "nid"


@pytest.mark.parametrize(
    "text,words",
    [
        (
            "{{.Foo}}",
            'template: expansion:1:2: executing "expansion" at <.Foo>:'
            " can't evaluate field Foo in type *template.Context",
        ),
        ("x{{.Service.Foo}}", "can't evaluate field Foo"),
        ("{{.Service.Name.Foo}}", "can't evaluate field Foo in type string"),
        ("{{.Service.Labels.nosuch}}", 'map has no entry for key "nosuch"'),
        ("{{.Service.Name", "unclosed action"),
        ("{{}}", "missing value for command"),
        ("{{nosuch}}", 'function "nosuch" not defined'),
        ("{{if .Service.Name}}a", "an {{if}} has no {{end}}"),
        ("a{{end}}", "unexpected {{end}}"),
        ("{{if .Service.Name}}a{{end x}}", "unexpected 'x' in end"),
        ("{{if}}a{{end}}", "missing value for command"),
        ("{{if .Service.Name}}{{else x}}{{end}}", "unexpected 'x' in else"),
        ("{{if true}}{{else}}{{else}}{{end}}", "unexpected {{else}} after {{else}}"),
        ("{{eq .Service.Name}}", "missing argument for comparison"),
        ("{{range .Service.Labels}}", "{{range}} is not supported"),
        ("{{$x := 1}}", "variables are not supported"),
        ("{{.Service.Name .Task.ID}}", "can't give argument to non-function .Service.Name"),
        ("{{index .Service.Name 1}}", "index takes a map and a key"),
        ("{{(.Service.Name}}", "unclosed left paren"),
        ("{{.Service.Name)}}", 'unexpected ")"'),
        ('{{printf "%s"}}', "too few values"),
        ("{{.Service.Name | }}", "missing value for command"),
        ("a\n{{.Foo}}", "expansion:2:2"),
    ],
)
def test_bad_templates(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        expand(text, CONTEXT)
    assert words in caught.value.message


def test_expand_container() -> None:
    spec = ContainerSpec(
        env=["A={{.Task.Slot}}", "{{.B}}", "C"],
        hostname="{{.Service.Name}}-{{.Task.Slot}}",
        mounts=[
            Mount(
                type="volume",
                source="{{.Service.Name}}",
                target="/{{.Task.Slot}}",
                volume_options=VolumeOptions(
                    labels={"l": "{{.Node.ID}}"}, driver_config=Driver(options={"o": "{{.Task.ID}}"})
                ),
            )
        ],
    )
    made = expand_container(spec, CONTEXT)
    assert made.env == ["A=3", "{{.B}}", "C"], "only the value of an entry is a template"
    assert made.hostname == "web-3"
    [mount] = made.mounts
    assert (mount.source, mount.target) == ("web", "/3")
    assert mount.volume_options is not None and mount.volume_options.labels == {"l": "nid"}
    assert mount.volume_options.driver_config is not None
    assert mount.volume_options.driver_config.options == {"o": "tid"}


@pytest.mark.parametrize(
    "spec,words",
    [
        (ContainerSpec(env=["A={{.X}}"]), 'expanding env failed: expanding env "A={{.X}}": template: '),
        (ContainerSpec(hostname="{{.X}}"), "expanding hostname failed: template: "),
        (ContainerSpec(mounts=[Mount(source="{{.X}}")]), "expanding mounts failed: expanding mount source"),
    ],
)
def test_which_field_is_wrong(spec: ContainerSpec, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        expand_container(spec, CONTEXT)
    assert caught.value.message.startswith(words)


@pytest.mark.parametrize(
    "text,words",
    [
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "parentheses are nested too deeply"),
        ("{{" + "9" * 5000 + "}}", "integer overflow: 999"),
        ("{{9223372036854775808}}", "integer overflow"),
    ],
)
def test_what_would_end_the_reader_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        expand(text, CONTEXT)


def test_a_text_of_open_braces_is_read_once() -> None:
    with pytest.raises(InvalidArgument, match="unclosed action"):
        expand("{{ -" * 500_000, CONTEXT)  # with a search from each of them this takes days
    assert expand("{{- 1 -}} a {{- 2 -}}{{3}}{{ 4 }} }}", CONTEXT) == "1a234 }}"


@pytest.mark.parametrize(
    "text",
    [
        '{{secret "x"}}' * 20,
        "{{print" + ' (secret "x")' * 20 + "}}",
        '{{join ""' + ' (secret "x")' * 20 + "}}",
        '{{printf "' + "%s" * 20 + '"' + ' (secret "x")' * 20 + "}}",
    ],
)
def test_a_short_text_does_not_become_gigabytes(text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"longer than {MAX_EXPANDED} characters"):
        expand(text, CONTEXT, {"secret": lambda name: "s" * 500_000})
