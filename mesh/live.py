"""The settings that a mesh gives its peers, each as it counts on this peer now.

A setting of the table (mesh.settings) that is marked `is_mesh` may stand in the admin map, as `setting/<name>`. It
counts where the machine itself says nothing: flag, environment and config file come first, the default last. A row that
this version cannot read (a newer one wrote it) counts for nothing, and is said once in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from inference.errors import InvalidRequest
from mesh.config import Loaded, shown
from mesh.settings import BY_NAME, SETTINGS, Setting
from web.services import Recording

log = logging.getLogger(__name__)

ROWS = "setting/"
PIN = "mesh/coordinator"
"""The row of the peer that an admin wants to coordinate, in the field `peer`: its id, or null."""
TEXT_MAX = 4096

MESH_SETTINGS: tuple[Setting, ...] = tuple(setting for setting in SETTINGS if setting.is_mesh)


class LiveSettings:
    """`row` reads one row of the admin map; what it answers may change at any time."""

    def __init__(self, loaded: Loaded, row: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._config = loaded.config
        self._own = {name for name, origin in loaded.origins.items() if origin.kind != "default"}
        self._row = row
        self._complained: set[str] = set()

    @property
    def load_balancer_mode(self) -> Any:
        return self.value("load_balancer_mode")

    @property
    def health_check_interval(self) -> float:
        return cast(float, self.value("health_check_interval"))

    @property
    def node_timeout(self) -> float:
        return cast(float, self.value("node_timeout"))

    @property
    def history_bodies(self) -> Recording:
        return cast(Recording, self.value("history_bodies"))

    @property
    def history_days(self) -> int:
        return cast(int, self.value("history_days"))

    @property
    def history_max_bytes(self) -> int | None:
        return cast("int | None", self.value("history_max_bytes"))

    @property
    def history_ack(self) -> Literal["local", "replicated"]:
        return cast(Literal["local", "replicated"], self.value("history_ack"))

    @property
    def pinned(self) -> str | None:
        """The id of the peer that an admin wants to coordinate."""
        peer = (self._row(PIN) or {}).get("peer")
        return peer if isinstance(peer, str) else None

    def value(self, name: str) -> Any:
        """What counts now for the setting of that name, parsed."""
        if name not in self._own and (text := self._text(name)) is not None:
            try:
                return BY_NAME[name].kind.parse(text)
            except (ValueError, OverflowError, RuntimeError):
                if name not in self._complained:
                    self._complained.add(name)
                    log.warning(
                        "a setting of the mesh cannot be read here, and does not count", extra={"setting": name}
                    )
        return getattr(self._config, name)

    def shown(self) -> dict[str, Any]:
        """`GET /api/settings`: every setting a mesh can give, as it counts here and as the mesh has it."""
        return {setting.name: self._shown(setting) for setting in MESH_SETTINGS}

    def _shown(self, setting: Setting) -> dict[str, Any]:
        text = self._text(setting.name)
        origin = "this machine" if setting.name in self._own else "default" if text is None else "mesh"
        return {
            "value": shown(setting, self.value(setting.name)),
            "origin": origin,
            "mesh": text,
            "default": setting.default,
            "unit": setting.unit,
            "allowed": setting.kind.allowed,
            "help": setting.help,
        }

    def _text(self, name: str) -> str | None:
        text = (self._row(ROWS + name) or {}).get("value")
        return text if isinstance(text, str) else None


def checked(changes: Mapping[str, Any]) -> dict[str, str | None]:
    """The rows that `PUT /api/settings` asks for: the text of each setting, None to go back to the default.

    Raises InvalidRequest naming the setting, its value and what is allowed; nothing is changed then.
    """
    found: dict[str, str | None] = {}
    for name, value in changes.items():
        setting = BY_NAME.get(name)
        if setting is None or not setting.is_mesh:
            known = ", ".join(each.name for each in MESH_SETTINGS)
            raise InvalidRequest(f"{name[:64]!r} is no setting of a mesh; those are {known}.", param=name[:64])
        if value is None:
            found[name] = None
            continue
        text = _as_text(value)
        try:
            if text is None or len(text) > TEXT_MAX:
                raise ValueError
            setting.kind.parse(text)
        except (ValueError, OverflowError, RuntimeError):
            raise InvalidRequest(
                f"Invalid '{name}': {str(value)[:80]!r} is not allowed; allowed is {setting.kind.allowed}.",
                param=name,
                code="invalid_value",
            ) from None
        found[name] = text
    return found


def _as_text(value: object) -> str | None:
    """A JSON value in the form that the environment has; None for one that has none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    return value.strip() if isinstance(value, str) else None
