"""The members of one JSON object, read one at a time, with complaints in OpenAI's words.

null means the same as absent: the default. A boolean is never a number here, although Python thinks so. The wording
and the codes are those api.openai.com answers with, so that what a person finds on the web about them holds here.
"""

from __future__ import annotations

from typing import Any

from inference.errors import InvalidRequest
from inference.strict_json import type_name


class Fields:
    """Typed reading of `data`; `path` is what its parameters are called in errors, such as `messages[1]`."""

    def __init__(self, data: dict[str, Any], path: str = "") -> None:
        self._data = data
        self._path = path
        self._read: set[str] = set()

    def param(self, name: str) -> str:
        """How errors call the member `name`."""
        return f"{self._path}.{name}" if self._path else name

    def raw(self, name: str) -> Any:
        """The value as JSON has it; None when absent or null."""
        self._read.add(name)
        return self._data.get(name)

    def has(self, name: str) -> bool:
        """True when `name` is there, even as null."""
        return name in self._data

    def unread(self) -> list[str]:
        """The names nobody asked for."""
        return sorted(self._data.keys() - self._read)

    def boolean(self, name: str) -> bool | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.param(name), "a boolean", value)
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.raw(name)
        return None if value is None else checked_integer(self.param(name), value, low, high)

    def decimal(self, name: str, low: float, high: float) -> float | None:
        value = self.raw(name)
        return None if value is None else checked_decimal(self.param(name), value, low, high)

    def string(self, name: str, length_max: int | None = None) -> str | None:
        value = self.raw(name)
        return None if value is None else checked_string(self.param(name), value, length_max)


def checked_integer(param: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(param, "an integer", value)
    _check_range(param, value, low, high, "integer")
    return value


def checked_decimal(param: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(param, "a decimal", value)
    _check_range(param, value, low, high, "decimal")
    return float(value)


def checked_string(param: str, value: Any, length_max: int | None = None) -> str:
    """`value` if it is text without NUL, which no name, user or stop string needs and C code stumbles over."""
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if "\x00" in value:
        raise bad_value(param, "it holds a NUL character")
    if length_max is not None and len(value) > length_max:
        raise bad_value(
            param,
            f"string too long. Expected a string with maximum length {length_max}, "
            f"but got a string with length {len(value)} instead",
        )
    return value


def _check_range(param: str, value: float, low: float, high: float, kind: str) -> None:
    if value < low:
        side, code, bound = "below minimum", "below_min", f">= {low}"
    elif value > high:
        side, code, bound = "above maximum", "above_max", f"<= {high}"
    else:
        return
    raise InvalidRequest(
        f"Invalid '{param}': {kind} {side} value. Expected a value {bound}, but got {value} instead.",
        param=param,
        code=f"{kind}_{code}_value",
    )


def missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead.",
        param=param,
        code="invalid_type",
    )


def bad_value(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")


def not_one_of(param: str, value: object, supported: tuple[str, ...]) -> InvalidRequest:
    shown = value if isinstance(value, str) and len(value) <= 40 else type_name(value)
    names = ", ".join(f"'{name}'" for name in supported)
    return InvalidRequest(
        f"Invalid value for '{param}': '{shown}'. Supported values are: {names}.", param=param, code="invalid_value"
    )


def empty_array(param: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        param=param,
        code="empty_array",
    )


def array_too_long(param: str, length: int, length_max: int) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': array too long. Expected an array with maximum length {length_max}, "
        f"but got an array with length {length} instead.",
        param=param,
        code="array_above_max_length",
    )


def unsupported(param: str, instead: str = "leave it out") -> InvalidRequest:
    """A parameter we know, cannot honour, and therefore must not ignore."""
    return InvalidRequest(
        f"Unsupported parameter: '{param}' is not supported by this version; {instead}.",
        param=param,
        code="unsupported_parameter",
    )
