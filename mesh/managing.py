"""What people say of the peers and of the mesh's settings: names, tags, notes, cordons, the pinned coordinator.

The rows of the admin map that are about peers (`peer/<id>`) and settings (`setting/<name>`). Servers that were
registered by hand have the same calls (mesh.adopted.registry); an id or name that is no peer's is asked there. Called
on the coordinator; who may, the HTTP surface has checked. F83-F85: disconnecting is a cordon, deleting a peer its
revocation.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from gossip.identity import uuid_of
from inference.errors import InvalidRequest
from mesh.governing import Refused
from mesh.live import PIN, ROWS, LiveSettings, checked
from mesh.overview import MeshOverview, Sight, UnknownPeer
from web.services import AuditNote, Caller

PEERS = "peer/"
NAME_MAX = 64
TAGS_MAX = 16
TAG_MAX = 32
NOTES_MAX = 4000
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FIELDS = ("custom_name", "tags", "notes")

Answer = dict[str, Any]


class Rows(Protocol):
    """The admin map (mesh.admin.admin)."""

    def get(self, key: str) -> Mapping[str, Any] | None: ...

    async def put(self, key: str, fields: Mapping[str, Any]) -> object: ...


class Servers(Protocol):
    """What was registered by hand (mesh.adopted.registry). Unknown ids raise 404 there."""

    async def settings(self, who: str, fields: Mapping[str, Any]) -> Answer: ...

    async def disconnect(self, who: str) -> None: ...

    async def enable(self, who: str) -> None: ...

    async def delete(self, who: str) -> None: ...

    async def metrics(self, who: str, body: Mapping[str, Any]) -> None: ...


class Managing:
    """Behind web.services.AgentsFacet, but for registration and heartbeats."""

    def __init__(
        self,
        *,
        rows: Rows,
        overview: MeshOverview,
        servers: Servers,
        live: LiveSettings,
        revoke: Callable[[str], Awaitable[Answer]],
        audit: Callable[[AuditNote], None],
    ) -> None:
        self._rows = rows
        self._overview = overview
        self._servers = servers
        self._live = live
        self._revoke = revoke
        self._audit = audit

    def notes(self, peer: str) -> Mapping[str, Any]:
        """What people wrote about the peer."""
        return self._rows.get(PEERS + peer) or {}

    def is_cordoned(self, peer: str) -> bool:
        """It gets no requests until somebody enables it again."""
        return bool(self.notes(peer).get("is_cordoned"))

    async def settings(self, who: str, fields: Mapping[str, Any], caller: Caller) -> Answer:
        """`PUT /api/agents/{id}/settings`: what is named is changed, what is not stays."""
        sight = self._sight(who)
        if sight is None:
            answer = await self._servers.settings(who, fields)
        else:
            await self._rows.put(PEERS + sight.peer, noted(fields))
            answer = self._of(sight)
        self._audit(AuditNote(action="agent.settings", caller=caller, target=who, detail=", ".join(sorted(fields))))
        return answer

    async def metrics(self, who: str, body: Mapping[str, Any]) -> None:
        """F63: for registered servers. A peer measures itself."""
        sight = self._sight(who)
        if sight is not None:
            raise Refused(
                f"{sight.member.name} is a peer: it tells its load itself, ten times a minute.",
                status=409,
                code="not_allowed",
            )
        await self._servers.metrics(who, body)

    async def disconnect(self, who: str, caller: Caller) -> None:
        await self._cordon(who, caller, is_cordoned=True)

    async def enable(self, who: str, caller: Caller) -> None:
        await self._cordon(who, caller, is_cordoned=False)

    async def delete(self, who: str, is_confirmed: bool, caller: Caller) -> None:
        """Out for good. Raises Refused for a peer that is online, until it is confirmed.

        Answered by the peer that is asked: what is ended stays so, in whatever order others hear of it, and nobody
        revokes itself, so the coordinator goes by the hand of another one."""
        sight = self._sight(who)
        if sight is None:
            await self._servers.delete(who)
        elif sight.view is not None and sight.view.state in ("alive", "suspect") and not is_confirmed:
            raise Refused(
                f"{sight.member.name} is online. Deleting it puts it out of the mesh for good; to go on, repeat the "
                "call with ?confirm=true.",
                status=409,
                code="needs_confirmation",
            )
        else:
            await self._revoke(sight.peer)
        self._audit(AuditNote(action="agent.delete", caller=caller, target=who))

    def mesh_settings(self) -> Answer:
        """`GET /api/settings`."""
        pinned = self._live.pinned
        return {
            "settings": self._live.shown(),
            "coordinator": None
            if pinned is None
            else {"id": str(uuid_of(pinned)), "name": self._overview.name_of(pinned)},
        }

    async def change_mesh_settings(self, changes: Mapping[str, Any], caller: Caller) -> Answer:
        """`PUT /api/settings`: settings by name, null for the default; `coordinator`: who should be it, or null."""
        others = {name: value for name, value in changes.items() if name != "coordinator"}
        texts = checked(others)
        if "coordinator" in changes:
            await self._rows.put(PIN, {"peer": self._pinned(changes["coordinator"])})
        for name, text in texts.items():
            await self._rows.put(ROWS + name, {"value": text})
        detail = ", ".join(f"{name}={'default' if text is None else text}" for name, text in sorted(texts.items()))
        if "coordinator" in changes:
            detail = ", ".join(filter(None, [detail, f"coordinator={changes['coordinator']}"]))
        self._audit(AuditNote(action="settings.change", caller=caller, detail=detail[:500]))
        return self.mesh_settings()

    # -- small things

    def _pinned(self, who: object) -> str | None:
        if who is None:
            return None
        if not isinstance(who, str):
            raise InvalidRequest(
                "Invalid 'coordinator': expected a machine's name or id, or null.", param="coordinator"
            )
        return self._overview.found(who).peer

    async def _cordon(self, who: str, caller: Caller, *, is_cordoned: bool) -> None:
        sight = self._sight(who)
        if sight is not None:
            await self._rows.put(PEERS + sight.peer, {"is_cordoned": is_cordoned})
        elif is_cordoned:
            await self._servers.disconnect(who)
        else:
            await self._servers.enable(who)
        action = "agent.disconnect" if is_cordoned else "agent.enable"
        self._audit(AuditNote(action=action, caller=caller, target=who))

    def _sight(self, who: str) -> Sight | None:
        """The peer that is meant; None when none is, so it may be a registered server."""
        try:
            return self._overview.found(who)
        except UnknownPeer:
            return None

    def _of(self, sight: Sight) -> Answer:
        identity = str(uuid_of(sight.peer))
        notes = self.notes(sight.peer)
        return {
            "id": identity,
            "agent_id": identity,
            "node_id": identity,
            "machine_name": sight.member.name,
            "custom_name": notes.get("custom_name"),
            "tags": list(notes.get("tags") or ()),
            "notes": notes.get("notes"),
        }


def noted(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a settings call, checked: trimmed, blank tags dropped, "" and null clear. Raises InvalidRequest."""
    found: dict[str, Any] = {}
    if "custom_name" in fields:
        found["custom_name"] = _line(fields["custom_name"], "custom_name", NAME_MAX)
    if "notes" in fields:
        found["notes"] = _line(fields["notes"], "notes", NOTES_MAX)
    if "tags" in fields:
        tags = fields["tags"] if fields["tags"] is not None else []
        if not isinstance(tags, list) or len(tags) > TAGS_MAX:
            raise InvalidRequest(f"Invalid 'tags': expected a list of at most {TAGS_MAX} words.", param="tags")
        cleaned = [_line(tag, "tags", TAG_MAX) for tag in tags]
        found["tags"] = list(dict.fromkeys(tag for tag in cleaned if tag is not None))
    return found


def _line(value: object, name: str, length_max: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > length_max or _UNPRINTABLE.search(value):
        raise InvalidRequest(f"Invalid '{name}': expected at most {length_max} printable characters.", param=name)
    return value.strip() or None
