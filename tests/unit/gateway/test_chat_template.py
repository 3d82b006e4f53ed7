from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.common.errors import BatonError, ErrorReason
from services.gateway.text.chat_template import ChatTemplate, Message
from services.gateway.text.tool_calls import ToolFormat

USER: Message = {"role": "user", "content": "hi"}


def template(directory: Path, source: str, **config: object) -> ChatTemplate:
    (directory / "chat_template.jinja").write_text(source)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTemplate(directory)


def test_blocks_are_trimmed_and_special_tokens_are_variables(tmp_path: Path) -> None:
    source = "{{ bos_token }}\n  {% for m in messages %}\n[{{ m.content }}]{{ eos_token }}\n  {% endfor %}"
    made = template(tmp_path, source, bos_token={"content": "<s>"}, eos_token="</s>")
    assert made.render([USER, USER]) == "<s>\n[hi]</s>\n[hi]</s>\n"


def test_null_content_and_parts_become_text(tmp_path: Path) -> None:
    made = template(tmp_path, "{% for m in messages %}{{ m.role + ':' + m.content }};{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[Message] = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert made.render(messages) == "user:a\nb;assistant:;"


def test_other_parts_are_refused_by_place(tmp_path: Path) -> None:
    made = template(tmp_path, "x")
    with pytest.raises(BatonError, match=r"messages\[1\]\.content\[0\]") as caught:
        made.render([USER, {"role": "user", "content": [{"type": "image_url"}]}])
    assert caught.value.field == "messages[1].content[0]"


def test_a_template_may_refuse(tmp_path: Path) -> None:
    made = template(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(BatonError, match="roles must alternate") as caught:
        made.render([USER])
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT


def test_json_is_plain_and_time_is_there(tmp_path: Path) -> None:
    made = template(tmp_path, "{{ {'a': '<é>'} | tojson }} {{ strftime_now('%Y') | int > 2000 }}")
    assert made.render([USER]) == '{"a": "<é>"} True'


def test_generation_marks_and_loop_controls_pass(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    )
    assert template(tmp_path, source).render([USER, USER]) == "hi"


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    made = template(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(BatonError, match="refuses the conversation"):
        made.render([USER])


def test_the_default_of_several_named_templates_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate(tmp_path).render([USER]) == "plain"


def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(BatonError, match="no chat template"):
        ChatTemplate(tmp_path).render([USER])


def test_a_broken_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid"):
        template(tmp_path, "{% for %}")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOL_TEMPLATE = (
    "{% if not tools is defined %}{% set tools = none %}{% endif %}"
    "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
)


def test_tools_are_shown_and_arguments_are_objects(tmp_path: Path) -> None:
    made = template(tmp_path, TOOL_TEMPLATE)
    assert (made.takes_tools, made.tool_format) == (True, ToolFormat.HERMES)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    turn: Message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert made.render([USER, turn]) == 'user:hi;assistant:{"a": [1]};'
    assert made.render([USER], tools=[TOOL]) == f"<tool_call>[{json.dumps(TOOL)}]user:hi;"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"function": {"name": "f", "arguments": "{"}}, "function.arguments"),
        ({"function": {"name": "f", "arguments": "[" * 100_000}}, "function.arguments"),
        ({"id": "x"}, "function"),
    ],
)
def test_a_broken_call_is_refused_by_place(tmp_path: Path, call: Message, field: str) -> None:
    turn: Message = {"role": "assistant", "tool_calls": [call]}
    with pytest.raises(BatonError) as caught:
        template(tmp_path, TOOL_TEMPLATE).render([USER, turn])
    assert caught.value.field == f"messages[1].tool_calls[0].{field}"


def test_a_plain_template_takes_no_tools(tmp_path: Path) -> None:
    made = template(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert (made.takes_tools, made.tool_format, made.marks_reasoning) == (False, None, False)


def test_the_template_for_tools_is_taken_when_there_are_some(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "{{ tools | length }}"}, {"name": "default", "template": "-"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    made = ChatTemplate(tmp_path)
    assert made.takes_tools
    assert made.render([USER], tools=[TOOL, TOOL]) == "2"
    assert made.render([USER]) == "-"


def test_further_variables_reach_the_template_but_not_its_own(tmp_path: Path) -> None:
    made = template(tmp_path, "{% if think %}<think>{% else %}</think>{% endif %}")
    assert made.marks_reasoning
    assert made.render([USER], variables={"think": True}) == "<think>"
    with pytest.raises(BatonError) as caught:
        made.render([USER], variables={"messages": []})
    assert caught.value.field == "chat_template_kwargs.messages"


@pytest.mark.parametrize("source", ["{{ x.a.b }}", "{{ 1 // x }}", "{{ 'a'[x] + 1 }}", "{{ x() }}"])
def test_a_template_that_trips_over_a_variable_refuses(tmp_path: Path, source: str) -> None:
    with pytest.raises(BatonError, match="refuses the conversation"):
        template(tmp_path, source).render([USER], variables={"x": 0})
