"""Membership: the claims of SWIM with runs, refutation, suspicion, probes, syncs; told through whole cores."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import LAN, TEST, GossipConfig
from gossip.core import CODEC, Core
from gossip.effects import Avoid, Dial, Effect, MemberChanged, OutranMyself, Regained, State, Transmit
from gossip.member import About
from gossip.messages import (
    ALIVE,
    DEAD,
    LEFT,
    SUSPECT,
    Ack,
    Digest,
    Gossip,
    Nack,
    Ping,
    PingReq,
    Rumour,
    Table,
)
from gossip.suspicion import Suspicion

ME, A, B, C, D = (letter * 52 for letter in "mabcd")
RUN = 1_700_000_000_000


def a_core(*peers: str, config: GossipConfig = LAN) -> Core:
    core = Core(me=ME, run=RUN, about=About(addresses=("10.0.0.9:1",)), config=config, rng=random.Random(1), now=0.0)
    core.members_are(dict.fromkeys((ME, *peers), "active"), 0.0)
    return core


def rumour(peer: str, rank: int, *, run: int = RUN, incarnation: int = 0, source: str = "") -> Rumour:
    about = About(addresses=("10.0.0.1:1",)) if rank == ALIVE else None
    return Rumour(peer=peer[:12], rank=rank, run=run, incarnation=incarnation, source=source[:12], about=about)


def tell(core: Core, sender: str, *rumours: Rumour, now: float) -> list[Effect]:
    return core.receive(sender, CODEC.encode(Gossip(rumours=rumours)), now)


def state(core: Core, peer: str) -> State:
    view = core.member(peer)
    assert view is not None
    return view.state


def sent(effects: list[Effect], kind: type, to: str | None = None) -> list[object]:
    messages = [(effect.to, CODEC.decode(effect.data)) for effect in effects if isinstance(effect, Transmit)]
    return [message for target, message in messages if isinstance(message, kind) and to in (None, target)]


def until(core: Core, now: float, end: float) -> list[Effect]:
    """Ticks as a shell would, alone in the world."""
    effects: list[Effect] = []
    while core.wake_at <= end:
        now = max(now, core.wake_at)
        effects += core.tick(now)
    return effects


def with_alive(*peers: str, config: GossipConfig = LAN) -> Core:
    core = a_core(*peers, config=config)
    for peer in peers:
        tell(core, peer, rumour(peer, ALIVE), now=0.0)
        assert state(core, peer) == "alive"
    return core


# --- claims -------------------------------------------------------------------------------------------------------


def test_a_member_of_the_roster_is_unknown_until_somebody_tells_of_it() -> None:
    core = a_core(A)
    assert state(core, A) == "unknown"
    effects = tell(core, A, rumour(A, ALIVE), now=0.0)
    assert MemberChanged(peer=A, before="unknown", after="alive") in effects


claims = st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([ALIVE, SUSPECT, DEAD, LEFT]))


@given(st.lists(claims, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_in_whatever_order_claims_come_the_greatest_wins(told: list[tuple[int, int, int]], rng: random.Random) -> None:
    """Heard by gossip from others, long after the member itself spoke."""
    shuffled = list(told)
    rng.shuffle(shuffled)
    ends = []
    for order in (told, shuffled):
        core = with_alive(B)
        core.members_are({ME: "active", A: "active", B: "active"}, 0.0)
        for run, incarnation, rank in order:
            tell(core, B, rumour(A, rank, run=RUN + run, incarnation=incarnation, source=B), now=10.0)
        view = core.member(A)
        assert view is not None
        ends.append((view.run, view.incarnation, view.state))
    states = {ALIVE: "alive", SUSPECT: "suspect", DEAD: "dead", LEFT: "left"}
    run, incarnation, rank = max(told)
    assert ends[0] == ends[1] == (RUN + run, incarnation, states[rank])


def test_a_restart_is_alive_at_once_whatever_was_said_of_its_last_life() -> None:
    core = with_alive(A, B)
    tell(core, B, rumour(A, DEAD, incarnation=70), now=10.0)
    assert state(core, A) == "dead"
    tell(core, B, rumour(A, ALIVE, run=RUN + 1, incarnation=0), now=11.0)
    assert state(core, A) == "alive"


def test_a_death_learned_in_a_sync_is_only_a_suspicion() -> None:
    core = with_alive(A, B)
    table = Table(width=1, buckets=(0,), rumours=(rumour(A, DEAD),), news=())
    core.receive(B, CODEC.encode(table), 10.0)
    assert state(core, A) == "suspect"


def test_a_death_on_hearsay_of_a_member_that_spoke_a_moment_ago_is_only_a_suspicion() -> None:
    core = with_alive(A, B)
    tell(core, A, now=10.0)
    tell(core, B, rumour(A, DEAD), now=10.5)
    assert state(core, A) == "suspect"


def test_those_outside_the_roster_are_nobody() -> None:
    core = with_alive(A)
    assert core.receive(C, CODEC.encode(Ping(seq=1)), 1.0) == []
    tell(core, A, rumour(C, ALIVE), now=1.0)
    assert core.member(C) is None
    effects = core.members_are({ME: "active", B: "active"}, 2.0)
    assert MemberChanged(peer=A, before="alive", after="unknown") in effects
    assert core.member(A) is None
    assert core.receive(A, CODEC.encode(Ping(seq=1)), 2.0) == []


# --- myself -------------------------------------------------------------------------------------------------------


def spoken_of_myself(core: Core, effects: list[Effect], now: float) -> Rumour:
    """What I say of myself next."""
    effects = effects + core.receive(A, CODEC.encode(Ping(seq=9)), now)
    for message in sent(effects, Ack):
        assert isinstance(message, Ack)
        for each in message.rumours:
            if each.peer == ME[:12]:
                return each
    raise AssertionError("nothing said of myself")


@pytest.mark.parametrize("rank", [SUSPECT, DEAD, LEFT])
def test_i_refute_with_a_higher_incarnation(rank: int) -> None:
    core = with_alive(A)
    effects = tell(core, A, rumour(ME, rank, incarnation=3, source=A), now=1.0)
    said = spoken_of_myself(core, effects, 1.0)
    assert (said.rank, said.run, said.incarnation) == (ALIVE, RUN, 4)
    assert core.health == 1


def test_i_repeat_my_alive_to_a_stale_suspicion_without_raising_the_incarnation() -> None:
    core = with_alive(A)
    tell(core, A, rumour(ME, SUSPECT, incarnation=3, source=A), now=1.0)
    until(core, 1.0, 20.0)
    effects = tell(core, A, rumour(ME, SUSPECT, incarnation=2, source=A), now=20.0)
    said = spoken_of_myself(core, effects, 20.0)
    assert (said.rank, said.incarnation) == (ALIVE, 4)


def test_a_later_run_heard_of_me_is_outrun() -> None:
    core = with_alive(A)
    effects = tell(core, A, rumour(ME, ALIVE, run=RUN + 500), now=1.0)
    assert OutranMyself(heard_run=RUN + 500, run=RUN + 501) in effects
    assert core.run == RUN + 501


def test_implausible_claims_change_nothing() -> None:
    core = with_alive(A)
    tell(core, A, rumour(ME, SUSPECT, incarnation=(1 << 63) - 1, source=A), now=1.0)
    tell(core, A, rumour(ME, ALIVE, run=(1 << 63) - 1), now=1.0)
    tell(core, A, rumour(A, 77), now=1.0)
    assert (core.run, core.incarnation) == (RUN, 0)
    assert state(core, A) == "alive"


def test_what_i_say_about_myself_spreads_with_a_new_incarnation() -> None:
    core = with_alive(A)
    effects = core.about_is(About(addresses=("10.0.0.8:1",), draining=True), 1.0)
    said = spoken_of_myself(core, effects, 1.0)
    assert said.incarnation == 1
    assert said.about is not None
    assert said.about.draining


def test_who_left_says_so_to_everybody_and_then_nothing() -> None:
    core = with_alive(A, B)
    effects = core.leave(1.0)
    for peer in (A, B):
        (goodbye,) = sent(effects, Gossip, peer)
        assert isinstance(goodbye, Gossip)
        assert [each.rank for each in goodbye.rumours] == [LEFT]
    assert core.tick(5.0) == []


def test_a_member_that_left_is_left_at_once() -> None:
    core = with_alive(A)
    effects = tell(core, A, rumour(A, LEFT), now=1.0)
    assert MemberChanged(peer=A, before="alive", after="left") in effects


# --- suspicion ----------------------------------------------------------------------------------------------------


def test_confirmations_shorten_a_suspicion_to_its_minimum() -> None:
    suspicion = Suspicion(config=LAN, members=5, source="a", now=100.0)
    ends = [suspicion.expires_at]
    for source in ("b", "c", "d"):
        assert suspicion.confirm(source)
        ends.append(suspicion.expires_at)
    assert ends[0] == 124.0
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] == 104.0
    assert not suspicion.confirm("e")


def test_the_same_source_confirms_nothing() -> None:
    suspicion = Suspicion(config=LAN, members=5, source="a", now=0.0)
    assert not suspicion.confirm("a")
    assert suspicion.expires_at == 24.0


def test_two_members_do_not_wait_for_confirmations_nobody_can_give() -> None:
    assert Suspicion(config=LAN, members=2, source="a", now=0.0).expires_at == 4.0


def test_a_suspect_that_does_not_refute_is_dead_in_time() -> None:
    core = with_alive(A, B, C, D)
    for source in (B, C, D):
        tell(core, source, rumour(A, SUSPECT, source=source), now=1.0)
    assert state(core, A) == "suspect"
    until(core, 1.0, 4.9)
    assert state(core, A) == "suspect"
    tell(core, B, now=5.0)
    until(core, 5.0, 30.0)
    assert state(core, A) == "dead"


def test_a_suspect_that_refutes_is_alive() -> None:
    core = with_alive(A, B)
    tell(core, B, rumour(A, SUSPECT, source=B), now=1.0)
    tell(core, B, rumour(A, ALIVE, incarnation=1), now=2.0)
    assert state(core, A) == "alive"


def test_a_suspect_that_speaks_is_told_what_is_said_of_it() -> None:
    core = with_alive(A, B)
    tell(core, B, rumour(A, SUSPECT, source=B), now=5.0)
    effects = core.receive(A, CODEC.encode(Digest(digests=(1, 2, 3))), 8.0)
    (told,) = sent(effects, Gossip, A)
    assert isinstance(told, Gossip)
    assert [(each.peer, each.rank) for each in told.rumours] == [(A[:12], SUSPECT)]


# --- probes -------------------------------------------------------------------------------------------------------


def first_ping(core: Core, effects: list[Effect], to: str) -> Ping:
    ping = sent(effects, Ping, to)[0]
    assert isinstance(ping, Ping)
    return ping


def test_a_silent_member_is_asked_for_through_others_and_then_suspected() -> None:
    core = with_alive(A)
    ping = first_ping(core, until(core, 0.0, 1.0), A)
    tell(core, B, now=1.0)
    effects = until(core, 1.0, 2.5)
    assert MemberChanged(peer=A, before="alive", after="suspect") in effects
    assert ping.seq
    assert core.health > 0


def test_a_new_member_is_probed_in_the_round_that_runs() -> None:
    """Seed 18 of 50 peers: the last to start lost its power, and for 12 s nobody looked."""
    late = 0
    for seed in range(20):
        others = [f"{at:02}" + "x" * 50 for at in range(20)]
        core = Core(me=ME, run=RUN, about=About(), config=LAN, rng=random.Random(seed), now=0.0)
        core.members_are(dict.fromkeys((ME, A, *others), "active"), 0.0)
        tell(core, others[0], *(rumour(peer, ALIVE) for peer in others), now=0.0)
        now, effects = 0.0, list[Effect]()
        while not sent(effects, Ping):
            now = core.wake_at
            effects = core.tick(now)
        tell(core, A, rumour(A, ALIVE), now=now)
        asked = list[str]()
        while len(asked) < 15:
            now = core.wake_at
            for effect in core.tick(now):
                if isinstance(effect, Transmit) and isinstance(ping := CODEC.decode(effect.data), Ping):
                    asked.append(effect.to)
                    core.receive(effect.to, CODEC.encode(Ack(seq=ping.seq)), now)
        late += A not in asked
    assert 0 < late < 15


def test_the_member_not_heard_of_for_longest_is_probed_within_two_rounds() -> None:
    others = [f"{at:02}" + "x" * 50 for at in range(30)]
    core = with_alive(*others)
    quiet, now, asked = others[7], 0.0, list[str]()
    while now < 2.1:
        now = core.wake_at
        for effect in core.tick(now):
            if isinstance(effect, Transmit) and isinstance(CODEC.decode(effect.data), Ping):
                asked.append(effect.to)
        for peer in others:
            if peer != quiet:
                tell(core, peer, now=now)
    assert quiet in asked


def test_an_ack_in_time_keeps_the_member_alive() -> None:
    core = with_alive(A)
    effects = until(core, 0.0, 1.0)
    for now in range(1, 20):
        for ping in sent(effects, Ping, A):
            assert isinstance(ping, Ping)
            core.receive(A, CODEC.encode(Ack(seq=ping.seq)), now - 0.9)
        effects = until(core, now, now + 1.0)
    assert state(core, A) == "alive"
    assert core.health == 0


def test_an_ack_by_another_does_not_count() -> None:
    core = with_alive(A, B)
    effects = core.hinted(A, 0.0)
    core.receive(B, CODEC.encode(Ack(seq=first_ping(core, effects, A).seq)), 0.1)
    assert MemberChanged(peer=A, before="alive", after="suspect") in until(core, 0.1, 1.2)


def test_an_ack_that_a_relay_brings_counts() -> None:
    core = with_alive(A, B, C)
    effects = core.disconnected(A, 0.0)
    seq = first_ping(core, effects, A).seq
    assert PingReq(seq=seq, target=A[:12]) in sent(effects, PingReq, B)
    core.receive(B, CODEC.encode(Ack(seq=seq)), 0.1)
    assert MemberChanged(peer=A, before="alive", after="suspect") not in until(core, 0.1, 1.05)


def test_nacks_of_relays_spare_the_local_health() -> None:
    ends = []
    for answers in (True, False):
        core = with_alive(A, B, C, D)
        effects = core.disconnected(A, 0.0)
        for relay in (B, C, D):
            if answers:
                core.receive(relay, CODEC.encode(Nack(seq=first_ping(core, effects, A).seq)), 0.4)
        core.tick(0.2)
        for now in (0.4, 0.6, 0.8, 1.0):
            core.tick(now)
        ends.append(core.health)
    assert ends == [0, 3]


def test_of_a_burst_of_old_pings_the_last_is_answered_in_a_moment() -> None:
    """Seed 2032 of the simulator: 170 pings of a cut stream at once, each answered, cost more than the bucket has."""
    core = with_alive(A)
    until(core, 0.0, 1.0)
    effects = list[Effect]()
    for seq in range(200):
        effects += core.receive(A, CODEC.encode(Ping(seq=seq)), 1.0)
    assert len(sent(effects, Ack, A)) < 20
    answered = [ack.seq for ack in sent(until(core, 1.0, 1.2), Ack, A) if isinstance(ack, Ack)]
    assert answered == [199]


def test_i_ping_for_others_and_say_whether_it_answered() -> None:
    core = with_alive(A, B)
    effects = core.receive(B, CODEC.encode(PingReq(seq=77, target=A[:12])), 0.0)
    ping = first_ping(core, effects, A)
    assert Ack(seq=77) in [_bare(each) for each in sent(core.receive(A, CODEC.encode(Ack(seq=ping.seq)), 0.1), Ack, B)]
    until(core, 0.1, 1.0)
    core.receive(B, CODEC.encode(PingReq(seq=78, target=A[:12])), 1.0)
    assert sent(until(core, 1.0, 1.5), Nack, B) == [Nack(seq=78)]


def _bare(message: object) -> Ack:
    assert isinstance(message, Ack)
    return Ack(seq=message.seq)


def test_a_reset_channel_is_avoided_at_once_and_the_member_probed_directly_and_through_others() -> None:
    core = with_alive(A, B)
    core.connected(A, 0.0)
    effects = core.disconnected(A, 1.0)
    assert effects[0] == Avoid(peer=A)
    assert sent(effects, Ping, A)
    assert sent(effects, PingReq, B)
    assert state(core, A) == "alive"
    assert Avoid(peer=A) not in core.disconnected(A, 1.1)
    assert Regained(peer=A) in core.connected(A, 1.2)


def test_any_message_regains_an_avoided_member() -> None:
    core = with_alive(A)
    core.disconnected(A, 1.0)
    assert Regained(peer=A) in core.receive(A, CODEC.encode(Ping(seq=1)), 1.1)


def test_an_answer_to_something_else_is_as_good_as_an_ack() -> None:
    core = with_alive(A)
    core.hinted(A, 0.0)
    core.heard(A, 0.5)
    assert not [
        effect for effect in until(core, 0.5, 1.05) if isinstance(effect, MemberChanged) and effect.after == "suspect"
    ]


def test_a_late_timer_waits_on_and_doubts_itself_first() -> None:
    core = with_alive(A, B)
    effects = core.hinted(A, 0.0)
    seq = first_ping(core, effects, A).seq
    # stalled for 5 s; the shell feeds what has arrived, of which the ack is not yet part
    core.tick(5.0)
    assert core.health >= 1
    assert state(core, A) == "alive"
    core.receive(A, CODEC.encode(Ack(seq=seq)), 5.2)
    until(core, 5.2, 6.0)
    assert state(core, A) == "alive"


def test_a_stall_does_not_shorten_the_time_to_refute() -> None:
    core = with_alive(A)
    tell(core, A, rumour(A, SUSPECT, source=A), now=0.0)
    core.tick(100.0)
    assert state(core, A) == "suspect"
    until(core, 100.0, 103.0)
    assert state(core, A) == "suspect"
    until(core, 103.0, 140.0)
    assert state(core, A) == "dead"


def test_a_dead_member_is_retried_and_told_so_that_it_can_refute() -> None:
    core = with_alive(A, B)
    tell(core, B, rumour(A, DEAD), now=10.0)
    effects = until(core, 10.0, 45.0)
    ping = first_ping(core, effects, A)
    assert (A[:12], DEAD) in [(each.peer, each.rank) for each in ping.rumours]
    reply = Ack(seq=ping.seq, rumours=(rumour(A, ALIVE, incarnation=1),))
    core.receive(A, CODEC.encode(reply), 45.0)
    assert state(core, A) == "alive"


def test_a_hint_probes_even_the_dead_now() -> None:
    core = with_alive(A, B)
    tell(core, B, rumour(A, DEAD), now=10.0)
    assert sent(core.hinted(A, 11.0), Ping, A)


def test_a_probe_begun_before_it_was_known_does_not_make_it_suspect() -> None:
    core = a_core(A)
    core.hinted(A, 0.0)
    tell(core, A, rumour(A, ALIVE), now=0.9)
    effects = until(core, 0.9, 1.05)
    assert MemberChanged(peer=A, before="alive", after="suspect") not in effects


def test_those_that_are_avoided_or_new_are_dialled_by_the_lower_id() -> None:
    core = a_core(A, "z" * 52)
    effects = tell(core, A, rumour(A, ALIVE), rumour("z" * 52, ALIVE), now=0.0)
    assert [effect for effect in effects if isinstance(effect, Dial)] == [Dial(peer="z" * 52)]


# --- sync ---------------------------------------------------------------------------------------------------------


def exchange(cores: dict[str, Core], first: str, effects: list[Effect], now: float) -> int:
    """Carries messages between them until they have nothing to say; how many there were."""
    waiting = [(first, effect) for effect in effects]
    count = 0
    while waiting:
        sender, effect = waiting.pop(0)
        if isinstance(effect, Transmit) and effect.to in cores:
            count += 1
            waiting += [(effect.to, each) for each in cores[effect.to].receive(sender, effect.data, now)]
    return count


def pair() -> tuple[Core, Core]:
    one = a_core(A, B, C, D)
    other = Core(me=A, run=RUN, about=About(), config=LAN, rng=random.Random(2), now=0.0)
    other.members_are(dict.fromkeys((ME, A, B, C, D), "active"), 0.0)
    return one, other


def test_two_that_meet_know_afterwards_what_either_knew() -> None:
    one, other = pair()
    tell(one, B, rumour(B, ALIVE), now=0.0)
    tell(other, C, rumour(C, ALIVE), rumour(D, DEAD), now=0.0)
    one.set_fact("inventory", b"mine", 0.0)
    other.set_fact("inventory", b"theirs", 0.0)
    effects = one.connected(A, 1.0)
    other.connected(ME, 1.0)
    exchange({ME: one, A: other}, ME, effects, 1.0)
    for peer, now in ((B, "alive"), (C, "alive"), (D, "dead")):
        assert state(one, peer) == state(other, peer) == now
    assert state(one, A) == state(other, ME) == "alive"
    mine, theirs = other.fact(ME, "inventory"), one.fact(A, "inventory")
    assert mine is not None
    assert theirs is not None
    assert (mine.value, theirs.value) == (b"mine", b"theirs")


def test_two_that_agree_exchange_one_small_message() -> None:
    one, other = pair()
    exchange({ME: one, A: other}, ME, one.connected(A, 1.0), 1.0)
    exchange({ME: one, A: other}, A, other.connected(ME, 5.0), 5.0)
    effects = other.connected(ME, 10.0)
    assert len(sent(effects, Digest, ME)) == 1
    assert exchange({ME: one, A: other}, A, effects, 10.0) == 1


def test_every_setting_of_the_test_preset_is_in_proportion() -> None:
    same = {
        "relays", "nack_share", "health_max", "late_s", "second_opinions", "suspicion_mult", "suspicion_max_mult",
        "confirmations", "fanout", "retransmit_mult", "message_bytes", "burst_s", "bulk_bytes_per_s",
        "bulk_burst_bytes", "frame_overhead_bytes", "fact_sends", "wave_share",
        "channels_max", "neighbours", "facts_per_peer_max",
        "fact_bytes_max", "fast_fact_bytes_max", "scan_peers_max",
    }  # fmt: skip
    for field in fields(GossipConfig):
        lan, test = getattr(LAN, field.name), getattr(TEST, field.name)
        ratio = 1 if field.name in same else 10 if field.name == "bytes_per_s" else 0.1
        assert test == pytest.approx(lan * ratio), field.name
