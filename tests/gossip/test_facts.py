"""Facts: newest version wins, fast ones ride along, slow ones are fetched on change, everything is bounded."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gossip.config import LAN, GossipConfig
from gossip.core import CODEC, Core
from gossip.effects import Effect, FactChanged, OutranMyself, Transmit
from gossip.facts import RUN_SHIFT
from gossip.member import About
from gossip.messages import ALIVE, Ack, Fetch, Gossip, NewsRow, Ping, Rumour, Values

ME, A, B, C = (letter * 52 for letter in "mabc")
RUN = 1_700_000_000_000
FIRST = RUN << RUN_SHIFT


def a_core(*, config: GossipConfig = LAN, me: str = ME) -> Core:
    """One that has heard A, B and C."""
    core = Core(me=me, run=RUN, about=About(), config=config, rng=random.Random(1), now=0.0)
    core.members_are(dict.fromkeys((ME, A, B, C), "active"), 0.0)
    for peer in (ME, A, B, C):
        if peer != me:
            rumour = Rumour(peer=peer[:12], rank=ALIVE, run=RUN, incarnation=0, about=About())
            core.receive(peer, CODEC.encode(Gossip(rumours=(rumour,))), 0.0)
    return core


def value(core: Core, peer: str, key: str) -> bytes | None:
    fact = core.fact(peer, key)
    return None if fact is None else fact.value


def sent(effects: list[Effect], kind: type, to: str) -> list[object]:
    messages = [CODEC.decode(each.data) for each in effects if isinstance(each, Transmit) and each.to == to]
    return [message for message in messages if isinstance(message, kind)]


def fast(core: Core, teller: str, owner: str, version: int, value: bytes, now: float = 1.0) -> list[Effect]:
    return core.receive(teller, CODEC.encode(Gossip(facts=((owner[:12], "load", version, 0, value),))), now)


def news(core: Core, teller: str, *rows: NewsRow, now: float = 1.0) -> list[Effect]:
    return core.receive(teller, CODEC.encode(Gossip(news=rows)), now)


def until(core: Core, now: float, end: float) -> list[Effect]:
    effects: list[Effect] = []
    while core.wake_at <= end:
        now = max(now, core.wake_at)
        effects += core.tick(now)
    return effects


def ack_to(core: Core, peer: str, now: float) -> Ack:
    (ack,) = sent(core.receive(peer, CODEC.encode(Ping(seq=1)), now), Ack, peer)
    assert isinstance(ack, Ack)
    return ack


# --- fast ---------------------------------------------------------------------------------------------------------


def test_load_rides_on_the_next_ack() -> None:
    core = a_core()
    core.set_fact("load", b"busy", 0.5, fast=True)
    assert (ME[:12], "load", FIRST, 500, b"busy") in ack_to(core, A, 1.0).facts


def test_load_is_told_to_each_peer_once_a_version() -> None:
    core = a_core()
    core.set_fact("load", b"busy", 0.5, fast=True)
    assert ack_to(core, A, 1.0).facts
    assert not ack_to(core, A, 1.1).facts
    core.set_fact("load", b"busy", 1.2, fast=True)
    assert not ack_to(core, A, 1.3).facts, "the same value is no news"
    core.set_fact("load", b"idle", 1.4, fast=True)
    assert ack_to(core, A, 1.5).facts == ((ME[:12], "load", FIRST + 1, 100, b"idle"),)


def test_load_reaches_everybody_without_any_probe() -> None:
    core = a_core()
    until(core, 0.0, 3.0)
    core.set_fact("load", b"busy", 3.0, fast=True)
    effects = until(core, 3.0, 3.7)
    for peer in (A, B, C):
        rows = [row for message in sent(effects, Gossip, peer) if isinstance(message, Gossip) for row in message.facts]
        assert (ME[:12], "load", FIRST, b"busy") in [(*row[:3], row[4]) for row in rows]


def test_the_newest_version_wins_in_any_order() -> None:
    core = a_core()
    assert FactChanged(peer=B, key="load") in fast(core, A, B, FIRST + 2, b"new")
    assert FactChanged(peer=B, key="load") not in fast(core, C, B, FIRST + 1, b"old")
    assert value(core, B, "load") == b"new"


def test_what_a_restarted_peer_says_is_never_old() -> None:
    core = a_core()
    fast(core, A, B, FIRST + 1_000_000, b"last life")
    again = a_core(me=B)
    again.members_are(dict.fromkeys((ME, A, B, C), "active"), 0.0)
    later = Core(me=B, run=RUN + 2, about=About(), config=LAN, rng=random.Random(1), now=0.0)
    later.set_fact("load", b"this life", 0.0, fast=True)
    fact = later.fact(B, "load")
    assert fact is not None
    fast(core, B, B, fact.version, fact.value)
    assert value(core, B, "load") == b"this life"


def test_a_fact_of_an_earlier_life_with_a_faster_clock_is_outrun() -> None:
    core = a_core()
    core.set_fact("load", b"now", 0.5, fast=True)
    effects = fast(core, A, ME, (RUN + 90_000) << RUN_SHIFT, b"then")
    assert OutranMyself(heard_run=RUN + 90_000, run=RUN + 90_001) in effects
    fact = core.fact(ME, "load")
    assert fact is not None
    assert fact.value == b"now"
    assert fact.version > (RUN + 90_000) << RUN_SHIFT


def test_facts_of_others_are_passed_on_a_bounded_number_of_times() -> None:
    core = a_core()
    until(core, 0.0, 3.0)
    fast(core, A, B, FIRST, b"x", now=3.0)
    effects = until(core, 3.0, 30.0)
    told = [
        (effect.to, row)
        for effect in effects
        if isinstance(effect, Transmit)
        for row in getattr(CODEC.decode(effect.data), "facts", ())
        if row[0] == B[:12]
    ]
    assert 0 < len(told) <= LAN.fact_sends
    assert {to for to, _ in told} == {C}, "neither to its owner nor to who told it"


def test_versions_that_follow_too_closely_are_kept_and_not_passed_on() -> None:
    core = a_core(config=replace(LAN, wave_share=1000.0))
    until(core, 0.0, 0.9)
    fast(core, A, B, FIRST, b"one", now=0.9)
    assert [row[4] for row in ack_to(core, C, 0.9).facts] == [b"one"]
    fast(core, A, B, FIRST + 1, b"two", now=1.9)
    assert value(core, B, "load") == b"two"
    assert not ack_to(core, C, 1.9).facts


def test_a_fact_that_goes_around_without_me_is_passed_on_less() -> None:
    core = a_core()
    until(core, 0.0, 3.0)
    fast(core, A, B, FIRST, b"x", now=3.0)
    for _ in range(LAN.fact_sends):
        fast(core, C, B, FIRST, b"x", now=3.0)
    assert not ack_to(core, C, 3.0).facts


def test_pushing_stops_when_the_bucket_is_empty_and_goes_on_when_it_fills() -> None:
    core = a_core(config=replace(LAN, bytes_per_s=300.0, burst_s=2.0))
    count, now = 0, 0.0
    while now < 60.0:
        core.set_fact("load", b"%06d" % int(now * 10), now, fast=True)
        now += 0.2
        effects = until(core, now - 0.2, now)
        for peer in (A, B, C):
            for ping in sent(effects, Ping, peer):
                assert isinstance(ping, Ping)
                effects += core.receive(peer, CODEC.encode(Ack(seq=ping.seq)), now)
        for kind in (Ping, Gossip):
            for message in (each for peer in (A, B, C) for each in sent(effects, kind, peer)):
                count += len(CODEC.encode(message)) + LAN.frame_overhead_bytes
    assert 60 * 250 < count < 60 * 300 + 600 + 300


# --- slow ---------------------------------------------------------------------------------------------------------


def test_the_version_of_a_slow_fact_spreads_and_its_value_does_not() -> None:
    core = a_core()
    core.set_fact("inventory", b"x" * 5000, 0.5)
    ack = ack_to(core, A, 1.0)
    assert ack.news == ((ME[:12], "inventory", FIRST),)
    assert not ack.facts


def test_a_new_version_is_fetched_from_who_told_and_told_on_once_it_is_here() -> None:
    core = a_core()
    row = (B[:12], "inventory", FIRST + 3)
    effects = news(core, A, row)
    assert sent(effects, Fetch, A) == [Fetch(wanted=(row,))]
    assert not ack_to(core, C, 1.0).news
    assert not sent(news(core, C, row), Fetch, C), "it is on its way already"
    effects = core.receive(A, CODEC.encode(Values(facts=((*row, 0, b"models"),))), 1.2)
    assert FactChanged(peer=B, key="inventory") in effects
    assert value(core, B, "inventory") == b"models"
    assert row in ack_to(core, C, 1.3).news


def test_who_does_not_deliver_is_followed_by_another_teller_and_then_the_owner() -> None:
    core = a_core()
    until(core, 0.0, 1.0)
    row = (B[:12], "inventory", FIRST)
    news(core, A, row, now=1.0)
    news(core, C, row, now=1.0)
    effects = until(core, 1.0, 1.0 + LAN.fetch_timeout_s + 0.3)
    assert sent(effects, Fetch, C) == [Fetch(wanted=(row,))]
    effects = until(core, 1.0 + LAN.fetch_timeout_s + 0.3, 1.0 + 2 * LAN.fetch_timeout_s + 0.3)
    assert sent(effects, Fetch, B) == [Fetch(wanted=(row,))]
    effects = until(core, 1.0 + 2 * LAN.fetch_timeout_s + 0.3, 1.0 + 5 * LAN.fetch_timeout_s)
    assert not [peer for peer in (A, B, C) if sent(effects, Fetch, peer)], "the next sync tells again"
    assert sent(news(core, A, row, now=27.0), Fetch, A)


def test_facts_that_are_asked_for_are_sent() -> None:
    core = a_core()
    core.set_fact("inventory", b"x" * 5000, 0.5)
    effects = core.receive(A, CODEC.encode(Fetch(wanted=((ME[:12], "inventory", FIRST),))), 1.0)
    assert sent(effects, Values, A) == [Values(facts=((ME[:12], "inventory", FIRST, 500, b"x" * 5000),))]
    effects = core.receive(A, CODEC.encode(Fetch(wanted=((ME[:12], "inventory", FIRST + 1),))), 1.0)
    assert not sent(effects, Values, A), "not of that version"


def test_large_values_wait_for_the_bulk_bucket() -> None:
    core = a_core(config=replace(LAN, bulk_burst_bytes=100_000))
    core.set_fact("inventory", b"x" * 200_000, 0.0)
    until(core, 0.0, 1.0)
    wanted = CODEC.encode(Fetch(wanted=((ME[:12], "inventory", FIRST),)))
    assert sent(core.receive(A, wanted, 1.0), Values, A)
    assert not sent(core.receive(B, wanted, 1.1), Values, B)
    assert sent(until(core, 1.1, 4.0), Values, B)


# --- bounds -------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_here_and_dropped_from_others() -> None:
    core = a_core()
    with pytest.raises(ValueError, match="262145"):
        core.set_fact("inventory", b"x" * ((1 << 18) + 1), 1.0)
    with pytest.raises(ValueError, match="1025"):
        core.set_fact("load", b"x" * 1025, 1.0, fast=True)
    with pytest.raises(ValueError):
        core.set_fact("k" * 65, b"", 1.0)
    fast(core, A, B, FIRST, b"x" * 1025)
    assert core.fact(B, "load") is None
    core.receive(A, CODEC.encode(Values(facts=((B[:12], "inventory", FIRST, 0, b"x" * ((1 << 18) + 1)),))), 1.0)
    assert core.fact(B, "inventory") is None


def test_a_peer_has_a_bounded_number_of_facts() -> None:
    core = a_core()
    for at in range(LAN.facts_per_peer_max):
        core.set_fact(f"k{at}", b"", 1.0)
    with pytest.raises(ValueError, match="64"):
        core.set_fact("one more", b"", 1.0)
    rows = tuple((B[:12], f"k{at}", FIRST, 0, b"") for at in range(LAN.facts_per_peer_max + 9))
    core.receive(A, CODEC.encode(Values(facts=rows)), 1.0)
    held = [at for at in range(LAN.facts_per_peer_max + 9) if core.fact(B, f"k{at}") is not None]
    assert len(held) == LAN.facts_per_peer_max
    assert not sent(news(core, A, (B[:12], "more", FIRST)), Fetch, A)


def test_facts_of_nobody_are_dropped_and_those_of_the_forgotten_go() -> None:
    core = a_core()
    fast(core, A, "q" * 52, FIRST, b"x")
    assert core.fact("q" * 52, "load") is None
    fast(core, A, B, FIRST, b"x")
    core.members_are({ME: "active", A: "active"}, 1.0)
    assert core.fact(B, "load") is None
    core.members_are({ME: "active", A: "active", B: "active"}, 2.0)
    assert core.fact(B, "load") is None


def test_a_fact_keeps_its_age_on_its_way() -> None:
    core = a_core()
    core.receive(A, CODEC.encode(Gossip(facts=((B[:12], "load", FIRST, 7000, b"x"),))), 10.0)
    fact = core.fact(B, "load")
    assert fact is not None
    assert (fact.set_at, fact.received_at) == (3.0, 10.0)
    assert (B[:12], "load", FIRST, 7250, b"x") in ack_to(core, C, 10.25).facts


def test_the_youngest_facts_go_first() -> None:
    core = a_core(config=replace(LAN, message_bytes=100))
    until(core, 0.0, 0.9)
    for owner, age in ((A, 900), (C, 4000)):
        row = (owner[:12], "load", FIRST, age, b"x" * 40)
        core.receive(owner, CODEC.encode(Gossip(facts=(row,))), 0.95)
    assert [row[0] for row in ack_to(core, B, 0.95).facts] == [A[:12]]


def test_after_a_reconnect_my_load_is_told_again() -> None:
    core = a_core()
    core.set_fact("load", b"busy", 0.5, fast=True)
    assert ack_to(core, A, 1.0).facts
    core.disconnected(A, 1.1)
    core.connected(A, 1.2)
    assert ack_to(core, A, 1.3).facts
