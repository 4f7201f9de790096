"""Frozen dataclasses as msgpack frames, with types, sizes and ranges checked on the way in.

A frame is an array: a tag that names the class, then the fields in order. Fields behind those known are ignored,
missing ones take their defaults, so fields may be added at the end. Anything else wrong is a CodecError, and nothing
else is ever raised. Integers are 0 ... 2^63 - 1; the types a field may have are those of `_check_of`.
Source: the msgpack specification; the checks are ours.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import msgpack

FRAME_BYTES_MAX = 1 << 20
TEXT_BYTES_MAX = 4096
ITEMS_MAX = 8192
INT_MAX = (1 << 63) - 1
FLOAT_MAX = 1e15

# Gives the value as the field wants it, or raises CodecError.
Check = Callable[[Any], Any]
T = TypeVar("T")


class CodecError(Exception):
    """Bytes that are no frame of ours, or a frame that would be too long."""


class Codec:
    """The frames of a table tag -> class."""

    def __init__(self, classes: Mapping[int, type]) -> None:
        self._tags = {cls: tag for tag, cls in classes.items()}
        self._decoders = {tag: _dataclass_check(cls) for tag, cls in classes.items()}
        assert len(self._tags) == len(classes)

    def encode(self, message: object) -> bytes:
        """The frame. Values of wrong types are a programming error, and what is too long a CodecError."""
        data: bytes = msgpack.packb([self._tags[type(message)], *_fields(message)], default=_fields)
        if len(data) > FRAME_BYTES_MAX:
            raise CodecError(f"a frame of {len(data)} bytes, {FRAME_BYTES_MAX} is the limit")
        return data

    def decode(self, data: bytes) -> object:
        """The message, or CodecError."""
        frame = _unpacked(data)
        if type(frame) is not tuple or not frame or type(frame[0]) is not int:
            raise CodecError("not an array that begins with a tag")
        decoder = self._decoders.get(frame[0])
        if decoder is None:
            raise CodecError(f"unknown tag {frame[0]}")
        return decoder(frame[1:])


def pack(value: object) -> bytes:
    """A dataclass by itself, without a tag, for files and signed bytes."""
    data: bytes = msgpack.packb(_fields(value), default=_fields)
    return data


def unpack(cls: type[T], data: bytes) -> T:
    """What `pack` packed. Raises CodecError."""
    value = _dataclass_check(cls)(_unpacked(data))
    assert isinstance(value, cls)
    return value


def _unpacked(data: bytes) -> Any:
    if len(data) > FRAME_BYTES_MAX:
        raise CodecError(f"a frame of {len(data)} bytes, {FRAME_BYTES_MAX} is the limit")
    try:
        return msgpack.unpackb(data, use_list=False, raw=False, max_map_len=0, max_ext_len=0, max_array_len=ITEMS_MAX)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"not msgpack as we write it: {type(error).__name__}") from None


_FIELDS_OF: dict[type, Callable[[Any], tuple[Any, ...]]] = {}


def _fields(message: Any) -> tuple[Any, ...]:
    fields_of = _FIELDS_OF.get(type(message))
    if fields_of is None:
        names = [field.name for field in dataclasses.fields(message)]
        # attrgetter of one name gives no tuple
        fields_of = (
            operator.attrgetter(*names) if len(names) > 1 else lambda each: tuple(getattr(each, n) for n in names)
        )
        _FIELDS_OF[type(message)] = fields_of
    return fields_of(message)


# --- one check per type, made once ---------------------------------------------------------------------------------


def _integer(value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= INT_MAX:
        raise CodecError("not an integer of 0 to 2^63 - 1")
    return value


def _float(value: Any) -> Any:
    # nan fails the comparison too
    if type(value) not in (float, int) or not -FLOAT_MAX <= value <= FLOAT_MAX:
        raise CodecError("not a number")
    return float(value)


def _text(value: Any) -> Any:
    if type(value) is not str or len(value) > TEXT_BYTES_MAX:
        raise CodecError(f"not a text of up to {TEXT_BYTES_MAX} characters")
    return value


def _truth(value: Any) -> Any:
    if type(value) is not bool:
        raise CodecError("neither true nor false")
    return value


def _octets(value: Any) -> Any:
    if type(value) is not bytes:
        raise CodecError("not bytes")
    return value


def _nothing(value: Any) -> Any:
    if value is not None:
        raise CodecError("not nil")


_SCALARS: dict[Any, Check] = {
    int: _integer,
    float: _float,
    str: _text,
    bool: _truth,
    bytes: _octets,
    type(None): _nothing,
}


def _check_of(kind: Any) -> Check:
    """int, float, str, bool, bytes, None, tuple[X, ...], tuple[X, Y], a dataclass, X | None, Literal."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _dataclass_check(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return _one_of(arguments)
    if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
        columns = typing.get_args(arguments[0])
        if typing.get_origin(arguments[0]) is tuple and all(kind in (str, int, bytes) for kind in columns):
            return _plain_rows(columns)
        return _many(_check_of(arguments[0]))
    if origin is tuple:
        return _row(arguments)
    if origin in (types.UnionType, typing.Union) and len(arguments) == 2 and type(None) in arguments:
        return _optional(_check_of(next(each for each in arguments if each is not type(None))))
    raise TypeError(f"no frame can hold {kind}")


def _one_of(allowed: tuple[Any, ...]) -> Check:
    kinds = {(type(each), each) for each in allowed}

    def check(value: Any) -> Any:
        # the type too: True == 1 == 1.0; and what cannot be hashed (a tuple of tuples can) is refused first
        if type(value) not in (str, int, bool) or (type(value), value) not in kinds:
            raise CodecError("none of the values it may be")
        return value

    return check


def _many(item: Check) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not tuple:
            raise CodecError("not an array")
        return tuple([item(each) for each in value])

    return check


def _row(kinds: tuple[Any, ...]) -> Check:
    checks = tuple(_check_of(kind) for kind in kinds)

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) < len(checks):
            raise CodecError("not a row of what it should hold")
        return tuple([each(part) for each, part in zip(checks, value, strict=False)])

    return check


def _plain_rows(kinds: tuple[Any, ...]) -> Check:
    """Many rows such as (str, str, int, bytes): most bytes of a mesh; checked column by column, which is quick."""
    row_check = _row(kinds)
    integers = [at for at, kind in enumerate(kinds) if kind is int]
    texts = [at for at, kind in enumerate(kinds) if kind is str]

    def check(value: Any) -> Any:
        if type(value) is not tuple:
            raise CodecError("not an array")
        for row in value:
            if type(row) is not tuple or tuple(map(type, row)) != kinds:
                # wrong, or only longer than known
                return tuple([row_check(each) for each in value])
        for at in integers:
            for row in value:
                if not 0 <= row[at] <= INT_MAX:
                    raise CodecError("not an integer of 0 to 2^63 - 1")
        for at in texts:
            for row in value:
                if len(row[at]) > TEXT_BYTES_MAX:
                    raise CodecError(f"not a text of up to {TEXT_BYTES_MAX} characters")
        return value

    return check


def _optional(inner: Check) -> Check:
    def check(value: Any) -> Any:
        return None if value is None else inner(value)

    return check


def _dataclass_check(cls: type) -> Check:
    found = _CHECKS.get(cls)
    if found is None:
        found = _CHECKS[cls] = _made_for(cls)
    return found


_CHECKS: dict[type, Check] = {}


def _made_for(cls: Any) -> Check:
    # `kinds` sees through TYPE_CHECKING only what is importable at run time.
    kinds = typing.get_type_hints(cls, vars(sys.modules[cls.__module__]))
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields)
    checks = tuple(_check_of(kinds[name]) for name in names)
    least = max((at + 1 for at, field in enumerate(fields) if not _has_default(field)), default=0)
    setters = _setters(cls, names)

    def check(value: Any) -> Any:
        if type(value) is not tuple:
            raise CodecError(f"{cls.__name__} is no array")
        if setters is not None and len(value) >= len(checks):
            made = object.__new__(cls)
            for put, each, part in zip(setters, checks, value, strict=False):
                put(made, each(part))
            return made
        if len(value) < least:
            raise CodecError(f"{cls.__name__} without {names[len(value)]}")
        return cls(**{name: each(part) for name, each, part in zip(names, checks, value, strict=False)})

    return check


def _setters(cls: Any, names: tuple[str, ...]) -> tuple[Callable[[Any, Any], None], ...] | None:
    """How slots are filled without the slow __init__ of a frozen class; None where that would leave something out."""
    if hasattr(cls, "__post_init__") or not all(hasattr(vars(cls).get(name), "__set__") for name in names):
        return None
    return tuple(vars(cls)[name].__set__ for name in names)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
