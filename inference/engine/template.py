"""A model's chat template, rendered as its authors meant it, and nothing more.

Templates come inside model files, so they are hostile input: jinja2's ImmutableSandboxedEnvironment keeps them
from reaching Python, and the limits here keep single operations from eating the memory. Time is not bounded
here: rendering happens in a worker process, whose watchdog ends it (inference.engine.worker).

What templates expect beyond jinja2 (Hugging Face's `apply_chat_template`, transformers 4.50): `raise_exception`,
`strftime_now`, a `tojson` that keeps non-ASCII and takes `indent`, loop controls, `trim_blocks`, `lstrip_blocks`.
"""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.chat import Message

RESULT_CHARS_MAX = 64 * 1024 * 1024
"""Longest text that one operation or one rendering may make: above the request body's own limit."""

TEMPLATE_CHARS_MAX = 1024 * 1024

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int",
    "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round",
    "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
"""What templates use (read in the 71 that llama.cpp carries), less what can make gigabytes from a number."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TemplateError(Exception):
    """The template cannot be compiled or rendered, or refused these messages (`raise_exception`)."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class _Refused(Exception):
    """The template called raise_exception: it does not take these messages."""


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        """Raises TemplateError when `source` is no template."""
        if len(source) > TEMPLATE_CHARS_MAX:
            raise TemplateError(f"the chat template has {len(source):,} characters, limit {TEMPLATE_CHARS_MAX:,}")
        self._bos, self._eos = bos, eos
        # The optimizer would run constant expressions while compiling, outside the checks of rendering.
        environment = _Bounded(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[jinja2.ext.loopcontrols, _Generation]
        )
        environment.filters = {name: environment.filters[name] for name in FILTERS}
        environment.filters |= {"tojson": _tojson, "from_json": json.loads, "indent": _indent}
        environment.filters |= {"join": _join, "replace": _replace}
        environment.globals["raise_exception"] = _raise
        environment.globals.pop("lipsum", None)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error

    def render(self, messages: tuple[Message, ...], *, now: float, utc_offset_s: int) -> str:
        """The prompt for `messages`, ending where the assistant is to go on. Raises TemplateError.

        `now` (unix seconds) and `utc_offset_s` are the ingress's: the same prompt on every peer.
        """
        zone = datetime.timezone(datetime.timedelta(seconds=utc_offset_s))
        moment = datetime.datetime.fromtimestamp(now, zone)
        try:
            parts = []
            size = 0
            for part in self._template.generate(
                messages=[_as_dict(m) for m in messages],
                add_generation_prompt=True,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
                strftime_now=lambda form: moment.strftime(str(form)[:200]),
            ):
                size += len(part)
                if size > RESULT_CHARS_MAX:
                    raise TemplateError(f"the chat template made more than {RESULT_CHARS_MAX:,} characters")
                parts.append(part)
            return "".join(parts)
        except _Refused as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}", refused=True) from error
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(f"the model's chat template failed: {type(error).__name__}: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: transformers marks the assistant's text with it for training; here it shows its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox, with `*`, `**` and `%` kept from making gigabytes in one operation."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                repeats = isinstance(sequence, (str, list, tuple)) and isinstance(times, int)
                if repeats and len(sequence) * times > RESULT_CHARS_MAX:
                    raise TemplateError("the chat template repeats a text too often")
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and (abs(left) > 1 and right > 64):
                raise TemplateError("the chat template computes too large a number")
        elif isinstance(left, str):
            raise TemplateError("the chat template formats with %, which is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return _replace(owner, *args[:3])
            if name == "join":
                return _join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") == "format" and _WIDE.search(owner):
            raise TemplateError("the chat template formats with a width, which is not allowed")
        return super().wrap_str_format(value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # methods that can make gigabytes from a number
        if isinstance(obj, str) and attr in _UNBOUNDED:
            return False
        return super().is_safe_attribute(obj, attr, value)


_UNBOUNDED = {"ljust", "rjust", "center", "zfill", "expandtabs", "format_map", "translate", "encode"}
_WIDE = re.compile(r"\{[^}]*:[^}]*(\d{4}|\{)")  # a width of 1,000 and more, or one that is computed


def _join(values: Any, d: str = "", attribute: str | None = None) -> str:
    parts = [str(v.get(attribute, "") if attribute and isinstance(v, dict) else v) for v in values]
    if sum(map(len, parts)) + len(d) * len(parts) > RESULT_CHARS_MAX:
        raise TemplateError("the chat template joins too long a text")
    return str(d).join(parts)


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    if len(text) + (text.count(old) if old else len(text) + 1) * len(new) > RESULT_CHARS_MAX:
        raise TemplateError("the chat template replaces into too long a text")
    return text.replace(old, new, -1 if count is None else count)


def _as_dict(m: Message) -> dict[str, Any]:
    """A message as templates expect it: OpenAI's shape, absent fields left out."""
    out: dict[str, Any] = {"role": m.role}
    if isinstance(m.content, str):
        out["content"] = m.content
    elif m.content is None:
        out["content"] = ""
    else:
        out["content"] = "\n".join(p.text for p in m.content)
    if m.name is not None:
        out["name"] = m.name
    if m.tool_call_id is not None:
        out["tool_call_id"] = m.tool_call_id
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": _arguments(c.arguments)}}
            for c in m.tool_calls
        ]
    return out


def _arguments(text: str) -> Any:
    """Templates differ: most want the arguments as an object. Text that is no object stays text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_options: Any) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else None)
    if len(text) > RESULT_CHARS_MAX:
        raise TemplateError("the chat template makes too long a JSON text")
    return text


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    pad = " " * min(max(int(width), 0), 64)
    lines = str(text).split("\n")
    return "\n".join(pad + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))


def _raise(message: object) -> None:
    raise _Refused(str(message)[:500])
