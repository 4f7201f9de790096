"""A model's chat template, rendered as its authors meant it, and nothing more.

Templates come inside model files, so they are hostile input: jinja2's ImmutableSandboxedEnvironment keeps them
from reaching Python, and the limits here keep single operations, and on Linux all of them together, from eating the
memory. Time is not bounded here: rendering happens in a worker process, whose watchdog ends it
(inference.engine.preparer).

What templates expect beyond jinja2 (Hugging Face's `apply_chat_template`, transformers 4.50): `raise_exception`,
`strftime_now`, a `tojson` that keeps non-ASCII and takes `indent`, loop controls, `trim_blocks`, `lstrip_blocks`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from inference.chat import Message

RESULT_CHARS_MAX = 64 * 1024 * 1024
"""Longest text that one operation or one rendering may make: above the request body's own limit."""

MEMORY_BYTES_MAX = 1024 * 1024 * 1024
"""What one rendering may add to the process: a few texts of RESULT_CHARS_MAX at four bytes a character."""

ITEMS_MAX = 1_000_000
"""Longest list that one operation may make: a message has parts and words, not millions of them."""

INTEGER_BITS_MAX = 4096
"""Numbers of templates count messages. Each product of larger ones takes longer than the last."""

FORMAT_WIDTH_MAX = 999

TEMPLATE_CHARS_MAX = 1024 * 1024

ERROR_CHARS_MAX = 500

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int",
    "items", "last", "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
"""What templates use (read in the 71 that llama.cpp carries), less what can make gigabytes from a number."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TemplateError(Exception):
    """The template cannot be compiled or rendered, or refused these messages (`raise_exception`)."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message[:ERROR_CHARS_MAX])
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
        environment.filters |= {"tojson": _tojson, "from_json": _from_json, "indent": _indent}
        environment.filters |= {"join": _join, "replace": _replace, "list": _list, "round": _round}
        environment.globals["raise_exception"] = _raise
        environment.globals.pop("lipsum", None)
        try:
            with _bounded_memory():
                self._template = environment.from_string(source)
        except Exception as error:  # Python compiles what jinja2 made of it, and has limits of its own
            raise TemplateError(f"the model's chat template does not compile: {error}") from error

    def render(self, messages: tuple[Message, ...], *, now: float, utc_offset_s: int) -> str:
        """The prompt for `messages`, ending where the assistant is to go on. Raises TemplateError.

        `now` (unix seconds) and `utc_offset_s` are the ingress's: the same prompt on every peer.
        """
        zone = datetime.timezone(datetime.timedelta(seconds=utc_offset_s))
        moment = datetime.datetime.fromtimestamp(now, zone)
        try:
            with _bounded_memory():
                chunks = self._template.generate(
                    messages=[_as_dict(m) for m in messages],
                    add_generation_prompt=True,
                    bos_token=self._bos,
                    eos_token=self._eos,
                    tools=None,
                    documents=None,
                    strftime_now=lambda form: moment.strftime(str(form)[:200]),
                )
                return _joined(chunks, "", "makes too long a text")
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
    """The sandbox, with its operators kept from making gigabytes, or numbers that take minutes, in one operation."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        _Tildes().visit(template)
        return template

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise TemplateError("the chat template formats with %, which is not allowed")
        if operator == "+" and isinstance(left, _SEQUENCES) and isinstance(right, _SEQUENCES):
            _check_length(left, len(left) + len(right))
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, _SEQUENCES) and isinstance(times, int):
                    _check_length(sequence, len(sequence) * times)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * right
            if abs(left) > 1 and bits > INTEGER_BITS_MAX:
                raise TemplateError("the chat template computes too large a number")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                return _replace(owner, *args[:3])
            if name == "join":
                return _join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form: str = value.__self__
        if _WIDE.search(form):
            raise TemplateError("the chat template formats with a width, which is not allowed")
        fields = form.count("{")

        def formatted(*args: Any, **kwargs: Any) -> str:
            longest = max((len(str(a)) for a in (*args, *kwargs.values())), default=0)
            _check_length(form, len(form) + fields * max(longest, FORMAT_WIDTH_MAX))
            return wrapped(*args, **kwargs)

        return formatted

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        # methods that can make gigabytes from a number
        if isinstance(obj, (str, int)) and attr in _UNBOUNDED:
            return False
        return super().is_safe_attribute(obj, attr, value)


class _Tildes(NodeTransformer):
    """Turns `a ~ b` into `[a, b] | join`, whose length is bounded."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        parts = jinja2.nodes.List(node.nodes, lineno=node.lineno)
        return jinja2.nodes.Filter(parts, "join", [], [], None, None, lineno=node.lineno)


_SEQUENCES = (str, list, tuple)
_UNBOUNDED = {
    "ljust", "rjust", "center", "zfill", "expandtabs", "format_map", "translate", "encode", "to_bytes", "from_bytes",
}  # fmt: skip
_WIDE = re.compile(r"\{[^}]*:[^}]*(\d{4}|\{)")  # wider than FORMAT_WIDTH_MAX, or a width that is computed


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    """Linux: MemoryError for what the process takes beyond MEMORY_BYTES_MAX while the block runs, in any thread.

    RLIMIT_DATA counts what is private and writable: neither mapped weights nor addresses that are only reserved.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _private_bytes() + MEMORY_BYTES_MAX
    bounds = [b for b in (limit, soft, hard) if b != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """What RLIMIT_DATA counts: the sixth number of statm, in pages (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _check_length(made: str | list[Any] | tuple[Any, ...], length: int) -> None:
    """Raises when one operation would make a text or list like `made` that is this long."""
    if length > (RESULT_CHARS_MAX if isinstance(made, str) else ITEMS_MAX):
        raise TemplateError(f"the chat template makes a text or list of {length:,} at once")


def _joined(parts: Iterable[str], separator: str, what: str) -> str:
    kept: list[str] = []
    size = 0
    for part in parts:
        size += len(part) + len(separator)
        if size > RESULT_CHARS_MAX:
            raise TemplateError(f"the chat template {what}: more than {RESULT_CHARS_MAX:,} characters")
        kept.append(part)
    return separator.join(kept)


def _join(values: Any, d: str = "", attribute: str | None = None) -> str:
    parts = (str(v.get(attribute, "") if attribute and isinstance(v, dict) else v) for v in values)
    return _joined(parts, str(d), "joins too long a text")


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    if len(text) + (text.count(old) if old else len(text) + 1) * len(new) > RESULT_CHARS_MAX:
        raise TemplateError("the chat template replaces into too long a text")
    return text.replace(old, new, -1 if count is None else count)


def _list(values: Iterable[Any]) -> list[Any]:
    items = list(islice(values, ITEMS_MAX + 1))
    _check_length(items, len(items))
    return items


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > 300:  # a float has no more digits; 10 ** precision is computed
        raise TemplateError("the chat template rounds to too many digits")
    return jinja2.filters.do_round(value, precision, method)


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
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return text
    return _Arguments(value) if isinstance(value, dict) else text


class _Arguments(dict[str, Any]):
    """Arguments for both kinds of template: an object with names, and JSON where it is written as text."""

    def __str__(self) -> str:
        return _tojson(self)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_options: Any) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 16) if indent else None)
    if len(text) > RESULT_CHARS_MAX:
        raise TemplateError("the chat template makes too long a JSON text")
    return text


def _from_json(text: str) -> Any:
    if len(text) > ITEMS_MAX:
        raise TemplateError("the chat template parses too long a JSON text")
    return json.loads(text)


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    text, pad = str(text), " " * min(max(int(width), 0), 64)
    _check_length(text, len(text) + (text.count("\n") + 1) * len(pad))
    lines = text.split("\n")
    return "\n".join(pad + line if (i or first) and (line or blank) else line for i, line in enumerate(lines))


def _raise(message: object) -> None:
    raise _Refused(str(message)[:500])
