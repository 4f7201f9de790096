"""Machines that ask to join, as all members see them, and what people answer.

A request stands in a fact of the member that was asked. Any member may say yes, by signing the newcomer's entry itself;
the one that was asked sees it in the roster and lets the newcomer know. A no is a fact too, which that one follows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gossip.admission import WAITING_MAX
from gossip.agent import Agent
from gossip.codec import CodecError, pack, unpack
from gossip.errors import BadCertificate, UnknownPeer
from gossip.home import Home
from gossip.identity import Identity, peer_id_of
from gossip.joining import JoinServer
from gossip.roster import Roster
from gossip.statements import clean_name

JOINS = "joins"
DENIED_MAX = 64
ID_MAX = 64
ANNOUNCED_MAX = 256
TELL_S = 5.0
_DIGITS = re.compile(r"[0-9]{3} [0-9]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A machine that asks to join, as a fact tells it to all members."""

    id: str
    name: str
    certificate: bytes
    digits: str
    address: str
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Joins:
    """The fact: who asks at this peer, and to whom (ids of requests anywhere) this peer said no."""

    askers: tuple[Asker, ...] = ()
    denied: tuple[str, ...] = ()


class Askers:
    """Owned by gossip.meeting. `said` hears of each new one (name, digits, address); `admitted` of each that is in."""

    def __init__(
        self,
        *,
        identity: Identity,
        home: Home,
        agent: Agent,
        server: JoinServer,
        admitted: Callable[[Roster, str], None],
        said: Callable[[str, str, str], None],
        now_s: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._home = home
        self._agent = agent
        self._server = server
        self._admitted = admitted
        self._said = said
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._denied: tuple[str, ...] = ()
        self._told: bytes = b""
        self._announced: set[str] = set()

    def waiting(self) -> list[dict[str, Any]]:
        """Who asks to join, at any member."""
        now_s = self._now_s()
        return [
            {
                "id": asker.id,
                "name": asker.name,
                "digits": asker.digits,
                "seconds_left": round(max(0.0, asker.until_s - now_s), 1),
                "address": asker.address,
            }
            for asker in self._all()
        ]

    async def approve(self, who: str) -> dict[str, Any]:
        """Lets in who shows these digits, wherever it asked. Raises UnknownPeer, NotAllowed."""
        asker = self._found(who)
        roster = self._home.roster.admit(self._identity, asker.certificate, asker.name, "ask", "active", self._now_s())
        self._admitted(roster, peer_id_of(asker.certificate))
        return {"id": asker.id, "name": asker.name}

    async def deny(self, who: str) -> dict[str, Any]:
        """Refuses it; its key may not ask again for an hour. Raises UnknownPeer."""
        asker = self._found(who)
        if any(asked.id == asker.id for asked in self._server.waiting()):
            self._server.deny(asker.id)
        else:
            self._denied = (*self._denied, asker.id)[-DENIED_MAX:]
            self.tell()
        return {"id": asker.id, "name": asker.name}

    def fact_changed(self, peer: str, key: str) -> None:
        """Another member tells who asks it to join, and whom it denied."""
        if key != JOINS:
            return
        mine = {asked.id for asked in self._server.waiting()}
        for request in mine.intersection(self._joins_of(peer).denied):
            self._server.deny(request)
        for asker in self._joins_of(peer).askers:
            self._say_asked(asker)

    def roster_changed(self, roster: Roster) -> None:
        """Somebody was let in by another member: whoever asked here hears it, as long as this peer may say so."""
        if not roster.is_signer(self._identity.peer_id):
            return
        for asked in self._server.waiting():
            if asked.peer_id in roster.members:
                self._server.approve(asked.id)

    # -- as facts

    def _all(self) -> list[Asker]:
        """Everywhere, each once, those that are in already left out."""
        found = {asker.id: asker for asker in self._own()}
        for view in self._agent.members():
            if view.state in ("alive", "suspect"):
                found |= {asker.id: asker for asker in self._joins_of(view.peer).askers}
        members, now_s = self._home.roster.members, self._now_s()
        gone = {*self._denied}
        return [
            asker
            for asker in found.values()
            if asker.id not in gone and asker.until_s > now_s and peer_of(asker.certificate) not in members
        ]

    def _own(self) -> list[Asker]:
        now, now_s = self._loop.time(), self._now_s()
        return [
            Asker(
                id=asked.id,
                name=asked.name,
                certificate=asked.certificate,
                digits=asked.digits,
                address=asked.source.split()[0],
                until_s=round(now_s + asked.expires_at - now, 1),
            )
            for asked in self._server.waiting()
        ]

    def _found(self, who: str) -> Asker:
        wanted = "".join(who.split())
        askers = self._all()
        found = [asker for asker in askers if asker.id == who or asker.digits.replace(" ", "") == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownPeer("several machines that ask show these digits: give the id of the request")
        shown = ", ".join(asker.digits for asker in askers)
        raise UnknownPeer(
            f"no machine that asks to join shows {who[:40]!r}; "
            + (f"those that ask show {shown}" if shown else "none asks now")
        )

    def _joins_of(self, peer: str) -> Joins:
        fact = self._agent.fact(peer, JOINS)
        if fact is None or not self._home.roster.is_signer(peer):  # nobody can ask a guest, and it says no to nobody
            return Joins()
        return joins_in(fact.value)

    def tell(self) -> None:
        """Who waits here changed."""
        askers = tuple(self._own())
        for asker in askers:
            self._say_asked(asker)
        told = pack(Joins(askers=askers, denied=self._denied))
        if told != self._told:
            self._told = told
            self._agent.set_fact(JOINS, told)

    async def keep_told(self) -> None:
        """Requests run out by themselves."""
        while True:
            await asyncio.sleep(TELL_S)
            if {a.id for a in self._own()} != {a.id for a in self._joins_of(self._identity.peer_id).askers}:
                self.tell()

    def _say_asked(self, asker: Asker) -> None:
        if asker.id not in self._announced and peer_of(asker.certificate) not in self._home.roster.members:
            if len(self._announced) >= ANNOUNCED_MAX:
                self._announced.clear()
            self._announced.add(asker.id)
            self._said(asker.name, asker.digits, asker.address)


def joins_in(data: bytes) -> Joins:
    """What another member tells; of those who ask there, as it cannot be else, none."""
    try:
        joins = unpack(Joins, data)
    except CodecError:
        return Joins()
    if len(joins.askers) > WAITING_MAX or len(joins.denied) > DENIED_MAX:
        return Joins()
    return replace(joins, askers=tuple(asker for asker in joins.askers if _is_asker(asker)))


def _is_asker(asker: Asker) -> bool:
    return (
        0 < len(asker.id) <= ID_MAX
        and asker.name == clean_name(asker.name) != ""
        and _DIGITS.fullmatch(asker.digits) is not None
        and len(asker.address) <= ID_MAX
        and asker.address.isprintable()
        and peer_of(asker.certificate) != ""
    )


def peer_of(certificate: bytes) -> str:
    """The id that a certificate is for; empty when it is none."""
    try:
        return peer_id_of(certificate)
    except BadCertificate:
        return ""
