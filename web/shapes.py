"""The shapes of JSON bodies, declared once as types: what a body is checked against, and what `/openapi.json` says.

A shape is what Python's typing can say: `TypedDict` (members that a newer caller adds are let pass), dataclass,
`Literal`, `list[...]`, `dict[str, ...]`, unions, `str`, `int`, `float`, `bool`, `Any`. Bounds stand beside a type:
`Annotated[str, Text(length_max=64)]`, `Annotated[float, Number(0, 100)]`, `Annotated[list[str], Many(20)]`.

Complaints are in the words of `inference.openai.fields`. Only the form is checked here; whether an id is anybody's is
for whoever acts. Reference for the schemas: JSON Schema 2020-12, which OpenAPI 3.1 uses.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypeVar, Union, cast, get_args, get_origin

from inference.openai.fields import (
    array_too_long,
    bad_value,
    checked_decimal,
    checked_integer,
    checked_string,
    missing,
    not_one_of,
    wrong_type,
)

T = TypeVar("T")

# JSON has no bounds for numbers; SQLite and every client keep 64 bits.
INTEGER_MAX = 2**63 - 1
DECIMAL_MAX = 1e18


@dataclass(frozen=True, slots=True)
class Text:
    """Bounds of a `str`. `is_line`: something that can be printed, not blank."""

    length_max: int | None = None
    is_line: bool = False
    pattern: str | None = None
    format: str | None = None  # said in the schema only


@dataclass(frozen=True, slots=True)
class Number:
    """Bounds of an `int` or `float`, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Many:
    """Bounds of a `list`."""

    length_max: int
    length_min: int = 0


_Bounds = Text | Number | Many


def checked(shape: type[T], value: object, param: str = "") -> T:
    """`value`, which has `shape`; a dict stays the dict it is. Raises InvalidRequest naming the member that has not."""
    _check(shape, value, param, None)
    return cast(T, value)


def _check(shape: Any, value: Any, param: str, bounds: _Bounds | None) -> None:
    origin = get_origin(shape)
    if origin in (Annotated, NotRequired):
        given = next((extra for extra in get_args(shape)[1:] if isinstance(extra, _Bounds)), bounds)
        _check(get_args(shape)[0], value, param, given)
    elif origin in (Union, types.UnionType):
        _check_union(get_args(shape), value, param, bounds)
    elif origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in get_args(shape)):
            raise not_one_of(param, value, tuple(str(allowed) for allowed in get_args(shape)))
    elif origin is list:
        _check_list(get_args(shape)[0], value, param, bounds)
    elif origin is dict:
        if not isinstance(value, dict):
            raise wrong_type(param, "an object", value)
        for name, part in value.items():
            _check(get_args(shape)[1], part, f"{param}.{name[:40]}", None)
    elif is_record(shape):
        _check_record(shape, value, param)
    else:
        _check_plain(shape, value, param, bounds)


def _check_plain(shape: Any, value: Any, param: str, bounds: _Bounds | None) -> None:
    number = bounds if isinstance(bounds, Number) else None
    if shape is Any:
        return
    if shape is bool:
        if not isinstance(value, bool):
            raise wrong_type(param, "a boolean", value)
    elif shape is int:
        low, high = (number.low, number.high) if number is not None else (-INTEGER_MAX, INTEGER_MAX)
        checked_integer(param, value, int(low), int(high))
    elif shape is float:
        low, high = (number.low, number.high) if number is not None else (-DECIMAL_MAX, DECIMAL_MAX)
        checked_decimal(param, value, low, high)
    elif shape is str:
        _check_text(value, param, bounds if isinstance(bounds, Text) else Text())
    else:
        raise TypeError(f"{shape!r} is no shape of JSON")


def _check_text(value: Any, param: str, bounds: Text) -> None:
    text = checked_string(param, value, bounds.length_max)
    if bounds.is_line and not text.strip():
        raise bad_value(param, "it is empty")
    if bounds.is_line and not text.strip().isprintable():
        raise bad_value(param, "it holds characters that cannot be printed")
    if bounds.pattern is not None and re.search(bounds.pattern, text) is None:
        raise bad_value(param, f"expected what matches {bounds.pattern}")


def _check_union(shapes: tuple[Any, ...], value: Any, param: str, bounds: _Bounds | None) -> None:
    """null, or the one that has the value's JSON type."""
    if value is None and type(None) in shapes:
        return
    others = [shape for shape in shapes if shape is not type(None)]
    fitting = [shape for shape in others if _json_type(shape) == _json_type_of(value)]
    _check((fitting or others)[0], value, param, bounds)


def _check_list(item: Any, value: Any, param: str, bounds: _Bounds | None) -> None:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    if isinstance(bounds, Many):
        if len(value) > bounds.length_max:
            raise array_too_long(param, len(value), bounds.length_max)
        if len(value) < bounds.length_min:
            raise bad_value(param, f"expected at least {bounds.length_min} of them, but got {len(value)}")
    for index, part in enumerate(value):
        _check(item, part, f"{param}[{index}]", None)


def _check_record(shape: Any, value: Any, param: str) -> None:
    if not isinstance(value, dict):
        raise wrong_type(param or "the request body", "an object", value)
    for name, (hint, is_required) in members_of(shape).items():
        path = f"{param}.{name}" if param else name
        if name in value:
            _check(hint, value[name], path, None)
        elif is_required:
            raise missing(path)


# -- reading the types


def is_record(shape: Any) -> bool:
    """True for a `TypedDict` and for a dataclass."""
    return typing.is_typeddict(shape) or (dataclasses.is_dataclass(shape) and isinstance(shape, type))


@functools.cache
def members_of(shape: Any) -> dict[str, tuple[Any, bool]]:
    """Each member of a record: its type, and whether it must be there."""
    hints = typing.get_type_hints(shape, include_extras=True)
    required = getattr(shape, "__required_keys__", hints.keys())  # those of `total=False` are left out of it
    return {name: (hint, name in required and get_origin(hint) is not NotRequired) for name, hint in hints.items()}


def _json_type(shape: Any) -> str:
    origin = get_origin(shape)
    if origin in (Annotated, NotRequired):
        return _json_type(get_args(shape)[0])
    if origin is Literal:
        return _json_type_of(get_args(shape)[0])
    if origin is list:
        return "array"
    if origin is dict or is_record(shape):
        return "object"
    return {str: "string", int: "number", float: "number", bool: "boolean"}.get(shape, "any")


def _json_type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    for kinds, name in (((int, float), "number"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kinds):
            return name
    return "null"


# -- writing the schemas

Named = Callable[[Any], dict[str, Any]]
"""What stands for a record in a schema: a reference to its definition, or the definition itself."""


def schema_of(shape: Any, named: Named) -> dict[str, Any]:
    """The JSON schema of `shape`; its records are what `named` makes of them."""
    origin, parts = get_origin(shape), get_args(shape)
    if origin is NotRequired:
        return schema_of(parts[0], named)
    if origin is Annotated:
        return _bounded(schema_of(parts[0], named), [extra for extra in parts[1:] if isinstance(extra, _Bounds)])
    if origin in (Union, types.UnionType):
        return _union([schema_of(part, named) for part in parts])
    if origin is Literal:
        return {"type": sorted({_schema_type(type(value)) for value in parts})[0], "enum": list(parts)}
    if origin is list:
        return {"type": "array", "items": schema_of(parts[0], named)}
    if origin is tuple:
        return {"type": "array", "items": schema_of(parts[0], named)}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(parts[1], named)}
    if is_record(shape):
        return named(shape)
    return {} if shape is Any else {"type": _schema_type(shape)}


def record_schema(shape: Any, named: Named) -> dict[str, Any]:
    """The definition of a `TypedDict` or a dataclass."""
    members = members_of(shape)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema_of(hint, named) for name, (hint, _) in members.items()},
        "required": [name for name, (_, is_required) in members.items() if is_required],
    }
    if shape.__doc__ and not shape.__doc__.startswith(("dict(", f"{shape.__name__}(")):
        schema["description"] = " ".join(shape.__doc__.split())
    return schema


def _schema_type(shape: Any) -> str:
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", dict: "object"}
    if shape not in names:
        raise TypeError(f"{shape!r} is no shape of JSON")
    return names[shape]


def _bounded(schema: dict[str, Any], bounds: list[_Bounds]) -> dict[str, Any]:
    found = dict(schema)
    for bound in bounds:
        if isinstance(bound, Number):
            is_whole = schema.get("type") == "integer"
            found["minimum"] = int(bound.low) if is_whole else bound.low
            found["maximum"] = int(bound.high) if is_whole else bound.high
        elif isinstance(bound, Many):
            found |= {"minItems": bound.length_min, "maxItems": bound.length_max}
        else:
            said = {"maxLength": bound.length_max, "pattern": bound.pattern, "format": bound.format}
            found |= {name: value for name, value in said.items() if value is not None}
            if bound.is_line:
                found["minLength"] = 1
                found.setdefault("pattern", r"\S")
    return found


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """`{"type": ["string", "null"], ...}` where that says it, `anyOf` elsewhere."""
    others = [schema for schema in schemas if schema != {"type": "null"}]
    if len(others) == 1 and len(schemas) == 2 and isinstance(others[0].get("type"), str):
        found = others[0] | {"type": [others[0]["type"], "null"]}
        if "enum" in found:
            found["enum"] = [*found["enum"], None]
        return found
    return {"anyOf": schemas}


# -- the query of a URL


def checked_query(shape: Any, query: Mapping[str, str]) -> None:
    """Raises InvalidRequest when a parameter that `shape` knows is not what it says; others are let pass."""
    for name, (hint, is_required) in members_of(shape).items():
        if name in query:
            _check(hint, _read(hint, query[name], name), name, None)
        elif is_required:
            raise missing(name)


def _read(hint: Any, text: str, param: str) -> Any:
    """The value that `text` stands for, where the type wants no text."""
    match _json_type(hint):
        case "number":
            if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text, re.ASCII):
                raise bad_value(param, "expected a number")
            return float(text) if "." in text else int(text)
        case "boolean":
            if text not in ("true", "false"):
                raise not_one_of(param, text, ("true", "false"))
            return text == "true"
        case _:
            return text
