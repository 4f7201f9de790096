"""Tests of rendering chat templates, friendly and hostile ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from inference.chat import Message, TextPart, ToolCall
from inference.engine.template import CHATML, MEMORY_BYTES_MAX, RESULT_CHARS_MAX, ChatTemplate, TemplateError

HELLO = (Message(role="user", content="Hello"),)


def rendered(source: str, messages: tuple[Message, ...] = HELLO, *, now: float = 0.0, offset: int = 0) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, now=now, utc_offset_s=offset)


def test_chatml_renders_every_role_and_opens_the_answer() -> None:
    messages = (Message(role="system", content="Be brief."), *HELLO)
    assert rendered(CHATML, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_content_in_parts_is_joined() -> None:
    parts = Message(role="user", content=(TextPart(text="one"), TextPart(text="two")))
    assert rendered("{{ messages[0].content }}", (parts,)) == "one\ntwo"


def test_earlier_tool_calls_reach_the_template_with_their_arguments_as_an_object() -> None:
    call = Message(role="assistant", content=None, tool_calls=(ToolCall(id="c", name="f", arguments='{"a": 1}'),))
    answer = Message(role="tool", content="2", tool_call_id="c")
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}:{{ c.function.arguments.a }}{% endfor %}{{ m.tool_call_id or '' }}{% endfor %}"
    )
    assert rendered(source, (call, answer)) == "f:1c"


@pytest.mark.parametrize(
    "written", ["{{ arguments }}", "{{ '' + arguments + '' }}", "{{ '' ~ arguments }}", "{{ arguments | tojson }}"]
)
def test_a_template_that_writes_arguments_as_text_writes_json(written: str) -> None:
    calls = (ToolCall(id="c", name="f", arguments='{"a": "ü", "b": [true]}'),)
    source = "{% set arguments = messages[0].tool_calls[0].function.arguments %}" + written
    assert rendered(source, (Message(role="assistant", content=None, tool_calls=calls),)) == '{"a": "ü", "b": [true]}'


def test_the_date_is_the_one_of_the_ingress() -> None:
    assert rendered("{{ strftime_now('%Y-%m-%d %H:%M') }}", now=0.0, offset=9 * 3600) == "1970-01-01 09:00"


def test_json_keeps_characters_and_order() -> None:
    assert rendered("{{ {'b': 'ü', 'a': 1} | tojson }}") == '{"b": "ü", "a": 1}'


def test_loop_controls_and_tokens_are_there() -> None:
    source = "{{ bos_token }}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert rendered(source) == "<s>01"


def test_generation_marks_of_training_show_their_body() -> None:
    assert rendered("a{% generation %}{{ 'b' }}{% endgeneration %}c") == "abc"


def test_a_refusal_of_the_template_is_told_apart_from_its_failure() -> None:
    with pytest.raises(TemplateError, match="roles must alternate") as refused:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert refused.value.refused
    with pytest.raises(TemplateError) as failed:
        rendered("{{ nothing.at.all }}")
    assert not failed.value.refused


@pytest.mark.parametrize("source", ["{% for %}", "{{ ", "{% unknown %}", "{{ x | nofilter }}", "x" * (1024 * 1024 + 1)])
def test_what_does_not_compile_says_so(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, bos="", eos="")


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ [].__class__.__base__.__subclasses__()[0] }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['os'].system('touch PWNED') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ self.__init__.__globals__.__builtins__.open('PWNED', 'w') }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ cycler.__init__.__globals__.os.popen('touch PWNED').read() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ().__class__.__bases__[0].__subclasses__() }}",
    "{{ range.__class__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ '%s' % messages.__class__ }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': messages}) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ [messages]|map('attr', '__class__')|list }}",
    "{{ messages.append('x') }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ config.items() }}",
    "{{ request.application.__globals__ }}",
    "{{ url_for.__globals__ }}",
    "{{ loop.__class__ }}",
    "{% set x = ''.__class__ %}{{ x() }}",
    "{{ (1).__class__.__subclasses__() }}",
    "{{ true.__class__.__mro__ }}",
    "{{ messages|tojson|attr('__class__') }}",
    "{{ messages.__getattribute__('__class__') }}",
    "{{ messages.sort() }}",
    "{{ strftime_now.__func__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_python(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident 7 (CVE-2024-34359 and its like): code in a model file must not run."""
    monkeypatch.chdir(tmp_path)
    try:
        text = rendered(source)
    except TemplateError:
        text = ""
    assert "class" not in text
    assert "root:" not in text
    assert not list(tmp_path.iterdir())


BOMBS = [
    "{{ 'x' * 10**12 }}",
    "{{ ('x' * 60000000) * 2 }}",
    "{{ [0] * 10**11 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x'|indent(10**10) }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(90000) %}{% for j in range(90000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{{ 'x'|format(10**10) * 10**9 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ [1]|batch(10**9, 'x')|list }}",
    "{{ [1]|slice(10**10)|list }}",
    "{{ lipsum(10**9) }}",
    "{{ 'ab'.replace('', 'x' * 60000000) }}",
    "{{ ('x' * 60000).join('y' * 60000) }}",
    "{{ ('x' * 60000)|list|join('y' * 60000) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ 1|round(10**9, 'ceil') }}",
    "{{ 1|round(-(10**9)) }}",
    "{{ ('{0}' * 20000000).format('x' * 60000000) }}",
    "{{ ('{0:>999}' * 8000000).format(1) }}",
    "{{ ('x\\n' * 30000000)|indent(64) }}",
    "{{ ('\u4e00' * 60000000)|list }}",
    "{{ ('[],' * 20000000)|from_json }}",
    "{% set ns = namespace(s='xy') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='xy') %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(n=3) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% set ns = namespace(n=3) %}{% for i in range(40) %}{% set ns.n = ns.n ** 64 %}{% endfor %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", BOMBS)
def test_no_template_eats_the_memory(source: str) -> None:
    """A worker's memory is the model's: one operation of a template must not take gigabytes."""
    try:
        text = rendered(source)
    except TemplateError as error:
        assert "MemoryError" not in str(error)
        return
    assert len(text) <= RESULT_CHARS_MAX


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's private memory")
def test_operations_that_are_each_allowed_cannot_add_up_to_gigabytes() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    count = MEMORY_BYTES_MAX // RESULT_CHARS_MAX + 1
    source = "".join(f"{{% set x{i} = 'x' * {RESULT_CHARS_MAX} %}}" for i in range(count))
    with pytest.raises(TemplateError, match="MemoryError"):
        rendered(source)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_what_python_cannot_compile_is_a_template_error_too() -> None:
    deep = "{% for i in messages %}" * 30 + "{% endfor %}" * 30
    with pytest.raises(TemplateError, match="does not compile"):
        ChatTemplate(deep, bos="", eos="")


def test_an_error_is_short_whatever_the_template_puts_in_it() -> None:
    with pytest.raises(TemplateError) as failed:
        rendered("{{ messages['x' * 1000000].y }}")
    assert len(str(failed.value)) <= 500


def test_operators_do_what_they_do_in_jinja() -> None:
    source = "{{ 'a' ~ 1 ~ none }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ 2 * 3 }} {{ 'ab' * 2 }} {{ 2 ** 10 }} {{ 7 % 4 }}"
    assert rendered(source) == "a1None ab [1, 2] 6 abab 1024 3"
    assert rendered("{{ 1.256|round(2) }} {{ 1.21|round(1, 'ceil') }} {{ 'abc'|list|length }}") == "1.26 1.3 3"
    assert rendered("{{ '{0} {1:>5}'.format('x', 2) }}") == "x     2"


@pytest.mark.parametrize("arguments", ['{"a": "\\ud800"}', "[" * 100_000, "9" * 5000, "no json"])
def test_arguments_that_are_no_sound_object_stay_text(arguments: str) -> None:
    """They are the caller's: no fault of the model's template, and no text that cannot be encoded."""
    call = Message(role="assistant", content=None, tool_calls=(ToolCall(id="c", name="f", arguments=arguments),))
    text = rendered("{{ messages[0].tool_calls[0].function.arguments|tojson }}", (call,))
    assert json.loads(text.encode()) == arguments
