"""What a member may say to harm the others, and what comes of it: nothing, and nobody falls."""

from __future__ import annotations

import random

import pytest

from gossip.config import LAN
from gossip.core import CODEC, Core
from gossip.effects import Effect, Transmit
from gossip.facts import FAST_MAX, RUN_SHIFT, VERSION_MAX
from gossip.member import About
from gossip.messages import ALIVE, DEAD, SUSPECT, Digest, FactRow, Gossip, Rumour, Table, Values

PEERS = [letter * 52 for letter in "mabcdefghijklnopqrstuvwxyz"]
ME, MALLORY, B = PEERS[:3]
RUN = 1_700_000_000_000
FIRST = RUN << RUN_SHIFT


def a_core() -> Core:
    """One that has heard all others."""
    core = Core(me=ME, run=RUN, about=About(), config=LAN, rng=random.Random(1), now=0.0)
    core.members_are(dict.fromkeys(PEERS, "active"), 0.0)
    for peer in PEERS[1:]:
        said(core, Gossip(rumours=(alive(peer),)), by=peer, now=0.0)
    return core


def alive(peer: str, *, run: int = RUN, incarnation: int = 0, about: About | None = None, source: str = "") -> Rumour:
    return Rumour(peer=peer[:12], rank=ALIVE, run=run, incarnation=incarnation, about=about or About(), source=source)


def said(core: Core, message: object, *, by: str = MALLORY, now: float = 1.0) -> list[Effect]:
    return core.receive(by, CODEC.encode(message), now)


def carried(core: Core, seconds: float) -> list[object]:
    """What it sends meanwhile."""
    effects: list[Effect] = []
    end = core.wake_at + seconds
    while core.wake_at <= end:
        effects += core.tick(core.wake_at)
    return [CODEC.decode(each.data) for each in effects if isinstance(each, Transmit)]


@pytest.mark.parametrize("run", [(1 << 41) + 7, (1 << 42) - 1, (1 << 42) + 1, (1 << 62) - 1])
def test_a_run_that_was_made_up_for_me_does_not_silence_me(run: int) -> None:
    core = a_core()
    said(core, Gossip(rumours=(alive(ME, run=run),)))
    said(core, Gossip(facts=((ME[:12], "load", run << RUN_SHIFT if run < 1 << 42 else VERSION_MAX, 0, b""),)))
    core.set_fact("load", b"mine", 1.1, fast=True)
    core.set_fact("inventory", b"mine too", 1.1)
    assert carried(core, 5.0)
    fact = core.fact(ME, "load")
    assert fact is not None and fact.value == b"mine" and fact.version <= VERSION_MAX


def test_addresses_without_end_are_not_believed_and_hold_up_nobody() -> None:
    core = a_core()
    for peer in PEERS[1:]:
        said(core, Gossip(rumours=(alive(peer, incarnation=1, about=About(addresses=("x" * 4000,) * 200)),)), by=peer)
    said(core, Gossip(rumours=(alive(B, incarnation=1, about=About(addresses=("10.0.0.1:1",))),)), by=B)
    said(core, Gossip(rumours=(alive(MALLORY, incarnation=2, about=About(version="v" * 1200)),)))
    told = [rumour for message in carried(core, 1.0) if isinstance(message, Gossip) for rumour in message.rumours]
    assert any(rumour.peer == B[:12] and rumour.incarnation == 1 for rumour in told)
    assert not any(rumour.about and rumour.about.size > 640 for rumour in told)


def test_made_up_sources_neither_confirm_a_suspicion_nor_travel() -> None:
    core = a_core()
    for number in range(20):
        rumour = Rumour(peer=B[:12], rank=SUSPECT, run=RUN, incarnation=0, source=f"nobody{number}")
        said(core, Gossip(rumours=(rumour,)))
    assert {view.state for view in core.members() if view.peer == B} == {"alive"}
    said(core, Gossip(rumours=(Rumour(peer=B[:12], rank=DEAD, run=RUN, incarnation=0, source="s" * 4000),)))
    assert {view.state for view in core.members() if view.peer == B} == {"alive"}


def test_a_sync_fits_a_frame_whatever_was_said_of_whom() -> None:
    core = a_core()
    for owner in PEERS[1:]:
        fast: tuple[FactRow, ...] = tuple((owner[:12], f"{k:064}", FIRST, 0, b"z" * 1024) for k in range(32))
        slow: tuple[FactRow, ...] = tuple((owner[:12], f"{k:064}", FIRST, 0, b"z") for k in range(64))
        said(core, Gossip(facts=fast))
        said(core, Values(facts=slow))
        assert sum(core.fact(owner, f"{k:064}") is not None for k in range(64)) == LAN.facts_per_peer_max
        assert sum(len(f.value) == 1024 for k in range(64) if (f := core.fact(owner, f"{k:064}"))) == FAST_MAX
    effects = said(core, Digest(digests=(1,)), now=9.0)
    (table,) = [message for each in effects if isinstance(each, Transmit) for message in [CODEC.decode(each.data)]
                if isinstance(message, Table)]  # fmt: skip
    assert table.facts and table.news


def test_facts_made_up_for_me_leave_room_for_my_own() -> None:
    core = a_core()
    said(core, Gossip(facts=tuple((ME[:12], f"k{k}", FIRST, 0, b"") for k in range(LAN.facts_per_peer_max + 9))))
    core.set_fact("joins", b"mine", 2.0)
    fact = core.fact(ME, "joins")
    assert fact is not None and fact.value == b"mine"


def test_versions_that_nothing_can_follow_are_not_believed() -> None:
    core = a_core()
    said(core, Gossip(facts=((B[:12], "load", VERSION_MAX, 0, b"forged"),), news=((B[:12], "door", VERSION_MAX),)))
    said(core, Values(facts=((B[:12], "inventory", (1 << 63) - 1, 0, b"forged"),)))
    assert [core.fact(B, key) for key in ("load", "door", "inventory")] == [None, None, None]


def test_news_without_end_are_wanted_within_bounds() -> None:
    core = a_core()
    for part in range(10):
        said(core, Gossip(news=tuple((B[:12], f"k{part}-{k}", FIRST) for k in range(2000))))
    for version in range(2000):
        said(core, Gossip(news=((B[:12], "k0-63", FIRST + version),)))
    facts = core._facts
    assert len(facts._wanted) <= LAN.facts_per_peer_max and len(facts._queue) < 500
