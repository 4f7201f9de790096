"""A value that must not be seen: its text form is `***` everywhere, only `reveal()` gives it out."""

from __future__ import annotations


class Secret:
    """Holds a key, token or password. `str`, `repr` and f-strings show `***`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Never log it, never put it into an error."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)
