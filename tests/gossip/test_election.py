"""gossip.election: claims and their order, one peer by plain calls, small meshes on virtual time, random troubles."""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.codec import Codec
from gossip.config import LAN
from gossip.effects import CoordinatorChanged, MachineEffect, Persist, Send
from gossip.election import (
    ALLOW,
    NEVER,
    PREFER,
    TERM_JUMP_MAX,
    Claim,
    Claimed,
    Election,
    Heartbeat,
    HeartbeatAck,
    Message,
    Scan,
    ScanAnswer,
    Standing,
)

CODEC = Codec(dict(enumerate(get_args(Message), start=1)))


class Mesh:
    """Peers named a, b, c ... on an event heap. Membership is slow: everybody stays alive unless told otherwise."""

    def __init__(self, names: str, *, seed: int = 1, **standings: Standing) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.standings = {
            name: standings.get(name, Standing(state="alive", run=1000 + index)) for index, name in enumerate(names)
        }
        self.elections: dict[str, Election] = {}
        self.disk: dict[str, Claim] = {}
        self.made: defaultdict[str, set[int]] = defaultdict(set)
        self.cut: set[frozenset[str]] = set()
        self.changes: list[tuple[float, str, Claim | None]] = []
        self.sent: list[tuple[float, str, str, Message]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = itertools.count()
        for name in names:
            self.start(name)

    # --- what happens to machines and links

    def start(self, name: str) -> None:
        """With what its disk holds; channels to everybody it reaches open a moment later."""
        self.standings[name] = replace(self.standings[name], run=self.standings[name].run + 100 * (name in self.disk))
        self.elections[name] = Election(
            me=name,
            run=self.standings[name].run,
            eligibility=self.standings[name].eligibility,
            rng=random.Random(self.rng.random()),
            now=self.now,
            claim=self.disk.get(name),
            config=LAN,
        )
        self.membership()
        self._wake(name)
        for other in sorted(self.elections):
            if other != name and self.reaches(name, other):
                self.later(0.05, functools.partial(self._open, name, other))

    def crash(self, name: str) -> None:
        """The process dies: the kernel resets its channels."""
        others = [other for other in sorted(self.elections) if other != name and self.reaches(name, other)]
        del self.elections[name]
        for other in others:
            self.later(0.002, functools.partial(self._reset, other, name))

    def power_off(self, name: str) -> None:
        """Nothing is heard of it any more."""
        del self.elections[name]

    def partition(self, *sides: str) -> None:
        for one, other in itertools.combinations(sides, 2):
            self.cut |= {frozenset((a, b)) for a in one for b in other}

    def heal(self) -> None:
        """Links work again; channels are dialled anew within a second."""
        cut, self.cut = self.cut, set()
        for pair in sorted(cut, key=sorted):
            one, other = sorted(pair)
            self.later(self.rng.random(), functools.partial(self._open, one, other))

    def membership(self) -> None:
        for name in sorted(self.elections):
            self.carry_out(name, self.elections[name].peers_are(self.standings, self.now))

    def reaches(self, one: str, other: str) -> bool:
        return one in self.elections and other in self.elections and frozenset((one, other)) not in self.cut

    # --- time

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._tie), act))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, act = heapq.heappop(self._heap)
            act()
        self.now = end

    def _wake(self, name: str) -> None:
        election = self.elections.get(name)
        if election is None:
            return

        def wake() -> None:
            if self.elections.get(name) is election:
                if self.now >= election.wake_at:
                    self.carry_out(name, election.tick(self.now))
                self._wake(name)

        self.later(min(max(0.001, election.wake_at - self.now), 0.05), wake)

    def _open(self, one: str, other: str) -> None:
        for name, peer in ((one, other), (other, one)):
            if self.reaches(one, other):
                self.carry_out(name, self.elections[name].connected(peer, self.now))

    def _reset(self, name: str, peer: str) -> None:
        if name in self.elections:
            self.carry_out(name, self.elections[name].disconnected(peer, self.now))

    def carry_out(self, name: str, effects: Iterable[MachineEffect]) -> None:
        for effect in effects:
            match effect:
                case Persist(claim=claim):
                    known = self.disk.get(name)
                    assert known is None or claim > known, "a claim kept on disk fell"
                    self.disk[name] = claim
                    if claim.peer == name:
                        assert claim.term not in self.made[name], "a claim made twice"
                        self.made[name].add(claim.term)
                case Send(to=to, message=message):
                    self._send(name, to, message)
                case CoordinatorChanged(claim=now_claim):
                    assert now_claim == self.elections[name].coordinator
                    self.changes.append((self.now, name, now_claim))

    def _send(self, name: str, to: str, message: object) -> None:
        assert isinstance(message, get_args(Message))
        assert message.claim is None or not message.claim > self.disk[name], "told before it was on disk"
        self.sent.append((self.now, name, to, message))
        arrived = CODEC.decode(CODEC.encode(message))
        assert arrived == message

        def deliver() -> None:
            if self.reaches(name, to):
                self.carry_out(to, self.elections[to].receive(name, message, self.now))

        self.later(self.rng.uniform(0.001, 0.005), deliver)

    # --- what the tests ask

    def coordinators(self) -> set[str]:
        """Who is in office, by its own opinion."""
        return {
            name
            for name, election in self.elections.items()
            if election.coordinator is not None and election.coordinator.peer == name
        }

    def opinions(self, names: str = "") -> set[Claim | None]:
        return {self.elections[name].coordinator for name in names or sorted(self.elections)}

    def settle(self) -> Claim:
        """A mesh that has run long enough agrees."""
        self.run(12.0)
        (claim,) = self.opinions()
        assert claim is not None
        return claim


# Claims


@given(st.lists(st.builds(Claim, term=st.integers(1, 3), peer=st.sampled_from("abc"), is_solo=st.booleans())))
def test_claims_are_totally_ordered_and_the_same_ones_are_equal(claims: list[Claim]) -> None:
    for one, other in itertools.product(claims, repeat=2):
        assert (one < other) + (one == other) + (other < one) == 1
        assert (one > other) == (other < one)
    assert all(not later < sooner for sooner, later in itertools.pairwise(sorted(claims)))


def test_a_higher_term_beats_a_claim_made_with_others_which_beats_a_solo_one() -> None:
    claims = [Claim(term=5, peer="a"), Claim(term=5, peer="z", is_solo=True), Claim(term=6, peer="a", is_solo=True)]
    assert sorted(claims) == [claims[1], claims[0], claims[2]]


# One peer, by plain calls

EVERYONE = {name: Standing(state="alive", run=1000 + index) for index, name in enumerate("abcde")}
FIVE_A = Claim(term=5, peer="a")


def peer(me: str = "b", *, claim: Claim | None = FIVE_A, age_s: float = 10.0, everyone: str = "abcde") -> Election:
    """A peer that has lived for `age_s` at time 0, in a mesh that `claim` coordinates."""
    election = Election(me=me, run=1, eligibility=ALLOW, rng=random.Random(1), now=-age_s, claim=claim, config=LAN)
    election.peers_are({name: EVERYONE[name] for name in everyone}, -age_s)
    if claim is not None and claim.peer != me and age_s > 0:
        election.receive(claim.peer, HeartbeatAck(claim=claim, is_in_office=True), 0.0)
        election.tick(0.0)
    return election


def messages(effects: Iterable[MachineEffect], kind: type[Message]) -> list[str]:
    return [effect.to for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


def persisted(effects: Iterable[MachineEffect]) -> list[Claim]:
    return [effect.claim for effect in effects if isinstance(effect, Persist)]


def _tells(sent: Send, term: int) -> bool:
    assert isinstance(sent.message, get_args(Message))
    return sent.message.claim is not None and sent.message.claim.term == term


def answers(election: Election, now: float, **hears: bool) -> list[MachineEffect]:
    """Everyone named answers the scan that runs; then its second is over."""
    effects: list[MachineEffect] = []
    for name, does in hears.items():
        said = ScanAnswer(number=election._number, hears=does, may_claim=True, claim=election.claim)
        effects += election.receive(name, said, now)
    return effects + election.tick(now + 1.0)


def test_a_reset_starts_a_scan_at_once_and_silence_after_three_seconds() -> None:
    assert messages(peer().disconnected("a", 0.1), Scan) == ["c", "d", "e"]
    assert messages(peer().disconnected("c", 0.1), Scan) == []
    election = peer()
    for now in (1.0, 2.0):
        effects = election.tick(now)
        assert messages(effects, Heartbeat) == ["a"]
        assert messages(effects, Scan) == []
    assert election.wake_at == 3.0
    assert messages(election.tick(3.0), Scan) == ["c", "d", "e"]


def test_two_of_those_who_answered_lost_it_too_and_the_first_claims_the_next_term_on_disk_first() -> None:
    election = peer()
    election.disconnected("a", 0.0)
    effects = answers(election, 0.1, c=False, d=False, e=True)
    assert persisted(effects) == [Claim(term=6, peer="b")]
    tells = next(i for i, effect in enumerate(effects) if isinstance(effect, Send) and _tells(effect, 6))
    assert effects.index(Persist(claim=Claim(term=6, peer="b"))) < tells
    assert messages(effects, Claimed)[0] == "a", "the one that is replaced hears of it first"
    assert set(messages(effects, Claimed)) == {"a", "c", "d", "e"}


def test_one_of_three_lost_it_too_and_nobody_claims() -> None:
    election = peer()
    election.disconnected("a", 0.0)
    assert persisted(answers(election, 0.1, c=False, d=True, e=True)) == []
    assert election.coordinator == FIVE_A
    assert election.is_lost


def test_all_lost_it_when_fewer_than_two_answered() -> None:
    election = peer()
    election.disconnected("a", 0.0)
    assert persisted(answers(election, 0.1, e=False)) == [Claim(term=6, peer="b")]


def test_the_second_in_the_order_waits_for_the_first_but_not_for_ever() -> None:
    election = peer("c")
    election.disconnected("a", 0.0)
    now = 0.1
    for _ in range(2):
        assert persisted(answers(election, now, b=False, d=False)) == []
        now = max(now, election.wake_at) + 9.0
        election.tick(now)
    assert persisted(answers(election, now, b=False, d=False)) == [Claim(term=6, peer="c")]


def test_the_first_of_those_who_lost_it_claims_though_a_better_one_hears_it() -> None:
    election = peer("c")
    election.disconnected("a", 0.0)
    assert persisted(answers(election, 0.1, b=True, d=False, e=False)) == [Claim(term=6, peer="c")]


def test_answers_to_an_earlier_scan_and_of_who_was_not_asked_count_for_nothing() -> None:
    election = peer("b")
    election.peers_are({**EVERYONE, "d": replace(EVERYONE["d"], is_guest=True)}, 0.0)
    election.disconnected("a", 0.0)
    for sender, number in (("c", 0), ("d", 1), ("a", 1)):
        said = ScanAnswer(number=number, hears=False, may_claim=False, claim=FIVE_A)
        election.receive(sender, said, 0.1)
    assert persisted(election.tick(1.0)) == []
    assert election.coordinator == Claim(term=5, peer="b", is_solo=True), "nobody answered"


def test_only_the_coordinators_own_answer_shows_that_it_is_there() -> None:
    election = peer()
    election.tick(1.0)
    election.tick(2.0)
    election.receive("c", HeartbeatAck(claim=FIVE_A, is_in_office=True), 2.9)
    assert messages(election.tick(3.0), Scan) == ["c", "d", "e"]


def test_a_first_that_may_not_claim_yet_is_passed_over_at_once() -> None:
    election = peer("c")
    election.disconnected("a", 0.0)
    young = ScanAnswer(number=election._number, hears=False, may_claim=False, claim=FIVE_A)
    election.receive("b", young, 0.1)
    assert persisted(answers(election, 0.1, d=False)) == [Claim(term=6, peer="c")]


def test_no_answer_at_all_makes_a_solo_claim_of_the_known_term_that_is_not_kept() -> None:
    election = peer()
    election.disconnected("a", 0.0)
    effects = election.tick(1.0)
    assert election.coordinator == Claim(term=5, peer="b", is_solo=True)
    assert persisted(effects) == []
    assert election.claim == FIVE_A
    # The old coordinator is there again: its claim of the same term beats it.
    election.receive("a", HeartbeatAck(claim=FIVE_A, is_in_office=True), 2.0)
    assert election.coordinator == FIVE_A


def test_a_solo_coordinator_yields_to_others_who_hear_the_real_one() -> None:
    election = peer()
    election.disconnected("a", 0.0)
    election.tick(1.0)
    election.connected("c", 20.0)
    election.tick(20.0)
    answers(election, 20.1, c=True)
    assert election.coordinator == FIVE_A
    assert election.is_lost


def test_in_a_mesh_of_two_the_one_left_claims_like_any_other() -> None:
    """C31"""
    election = peer(everyone="ab")
    election.disconnected("a", 0.0)
    assert persisted(election.tick(1.0)) == [Claim(term=6, peer="b")]


def test_nothing_is_claimed_in_the_first_three_seconds() -> None:
    election = peer(claim=None, age_s=0.0)
    assert election.wake_at == 3.0
    assert election.tick(2.9) == []
    assert messages(election.tick(3.0), Scan) == ["a", "c", "d", "e"]
    assert persisted(answers(election, 3.1, a=False, c=False)) == [], "a comes first"


def test_a_restarted_coordinator_takes_its_office_up_after_three_seconds_unless_it_was_replaced() -> None:
    election = peer("a", age_s=0.0)
    assert election.coordinator is None
    (ack,) = [e.message for e in election.receive("b", Heartbeat(claim=FIVE_A), 1.0) if isinstance(e, Send)]
    assert ack == HeartbeatAck(claim=FIVE_A, is_in_office=False)
    assert election.tick(2.9) == []
    assert election.tick(3.0) == [CoordinatorChanged(claim=FIVE_A)]
    replaced = peer("a", age_s=0.0)
    replaced.receive("b", Claimed(claim=Claim(term=6, peer="c")), 1.0)
    replaced.tick(3.0)
    assert replaced.coordinator == Claim(term=6, peer="c")


def test_a_coordinator_that_is_not_in_office_is_lost_at_once() -> None:
    election = peer()
    assert messages(election.receive("a", HeartbeatAck(claim=FIVE_A, is_in_office=False), 0.5), Scan) == ["c", "d", "e"]


def test_who_is_asked_asks_the_coordinator_before_it_answers() -> None:
    for is_there in (True, False):
        election = peer()
        effects = election.receive("c", Scan(number=7, claim=FIVE_A), 0.5)
        assert messages(effects, ScanAnswer) == []
        assert messages(effects, Heartbeat) == ["a"]
        if is_there:
            effects = election.receive("a", HeartbeatAck(claim=FIVE_A, is_in_office=True), 0.6)
        else:
            assert election.wake_at < 1.5
            effects = election.tick(election.wake_at)
        said = [effect.message for effect in effects if isinstance(effect, Send) and effect.to == "c"]
        assert said == [ScanAnswer(number=7, hears=is_there, may_claim=True, claim=FIVE_A)]


def test_a_higher_claim_ends_an_office_at_once() -> None:
    election = peer("a")
    election.tick(0.0)
    assert election.coordinator == FIVE_A
    higher = Claim(term=6, peer="d")
    effects = election.receive("c", Heartbeat(claim=higher), 0.1)
    assert effects[0] == Persist(claim=higher)
    assert CoordinatorChanged(claim=higher) in effects
    acks = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, HeartbeatAck)]
    assert acks == [HeartbeatAck(claim=higher, is_in_office=False)]


def test_claims_that_cannot_be_are_not_believed() -> None:
    election = peer()
    election.peers_are({**EVERYONE, "e": replace(EVERYONE["e"], is_guest=True)}, 0.0)
    for sender, claim in [
        ("c", Claim(term=6, peer="nobody")),
        ("c", Claim(term=6, peer="e")),  # a guest
        ("e", Claim(term=6, peer="c")),  # told by a guest
        ("nobody", Claim(term=6, peer="c")),
        ("c", Claim(term=6 + TERM_JUMP_MAX, peer="c")),
        ("c", Claim(term=0, peer="c")),
        ("c", Claim(term=4, peer="c")),
        ("c", Claim(term=5, peer="c", is_solo=True)),
    ]:
        assert election.receive(sender, Claimed(claim=claim), 0.1) == []
    assert election.claim == FIVE_A


def test_a_late_tick_is_no_silence_of_others() -> None:
    """A laptop that slept an hour asks first."""
    election = peer()
    election.tick(1.0)
    effects = election.tick(3600.0)
    assert messages(effects, Scan) == []
    assert messages(effects, Heartbeat) == ["a"]


def test_a_coordinator_that_left_the_roster_or_will_never_coordinate_again_is_lost() -> None:
    for gone in (
        {name: each for name, each in EVERYONE.items() if name != "a"},
        {**EVERYONE, "a": replace(EVERYONE["a"], eligibility=NEVER)},
        {**EVERYONE, "a": replace(EVERYONE["a"], state="left")},
        {**EVERYONE, "a": replace(EVERYONE["a"], is_guest=True)},
    ):
        assert messages(peer().peers_are(gone, 0.1), Scan) == ["c", "d", "e"]
    assert messages(peer().peers_are({**EVERYONE, "a": replace(EVERYONE["a"], state="suspect")}, 0.1), Scan) == []


def test_at_most_64_are_asked_those_first_in_the_order_first() -> None:
    many = {f"p{index:03d}": Standing(state="alive", run=5000 - index) for index in range(200)}
    election = peer()
    election.peers_are({**many, "a": EVERYONE["a"], "z": Standing(state="alive", run=9999, eligibility=PREFER)}, 0.0)
    asked = messages(election.disconnected("a", 0.1), Scan)
    assert len(asked) == 64
    assert asked[:2] == ["z", "p199"]


# Small meshes on virtual time


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
def test_a_new_mesh_has_a_coordinator_after_its_first_seconds(names: str) -> None:
    mesh = Mesh(names)
    mesh.run(3.0)
    assert mesh.coordinators() == set()
    mesh.run(2.5)
    assert mesh.opinions() == {Claim(term=1, peer="a")}


@pytest.mark.parametrize("seed", range(5))
def test_a_crashed_process_is_replaced_within_a_second(seed: int) -> None:
    mesh = Mesh("abcde", seed=seed)
    mesh.settle()
    mesh.crash("a")
    mesh.run(0.6)
    assert mesh.opinions() == {Claim(term=2, peer="b")}
    mesh.start("a")
    assert mesh.settle() == Claim(term=2, peer="b"), "it does not take its office back"


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_without_power_is_replaced_within_five_seconds(seed: int) -> None:
    mesh = Mesh("abcde", seed=seed)
    mesh.settle()
    mesh.run(mesh.rng.random())
    mesh.power_off("a")
    mesh.run(5.0)
    assert mesh.opinions() == {Claim(term=2, peer="b")}


def test_a_crash_in_a_quick_restart_is_no_office_regained_and_no_office_lost() -> None:
    mesh = Mesh("abc")
    mesh.settle()
    mesh.crash("a")
    mesh.run(0.2)
    mesh.start("a")
    mesh.run(2.0)
    assert mesh.opinions() == {Claim(term=2, peer="b")}


@pytest.mark.parametrize("sides", [("ab", "cde"), ("de", "abc")])
def test_each_side_of_a_partition_has_one_and_the_highest_term_wins_after_it(sides: tuple[str, str]) -> None:
    mesh = Mesh("abcde")
    first = mesh.settle()
    mesh.partition(*sides)
    mesh.run(6.0)
    with_a, without = sides if "a" in sides[0] else sides[::-1]
    assert mesh.opinions(with_a) == {first}
    second = Claim(term=2, peer=without[0])
    assert mesh.opinions(without) == {second}
    mesh.heal()
    mesh.run(1.5)
    assert mesh.opinions() == {second}


def test_a_peer_with_a_broken_link_claims_nothing_while_others_hear_the_coordinator() -> None:
    mesh = Mesh("abcde")
    first = mesh.settle()
    mesh.cut = {frozenset("ab")}
    mesh.run(120.0)
    assert mesh.opinions() == {first}
    assert mesh.elections["b"].is_lost
    scans = [at for at, name, _, message in mesh.sent if name == "b" and isinstance(message, Scan)]
    assert len(scans) < 4 * 25, "it asks less and less often"
    mesh.heal()
    mesh.run(2.0)
    assert not mesh.elections["b"].is_lost


def test_flaky_wifi_does_not_steal_the_office() -> None:
    mesh = Mesh("abcde")
    first = mesh.settle()
    for _ in range(5):
        mesh.partition("b", "acde")
        mesh.run(8.0)
        assert mesh.opinions("acde") == {first}
        assert mesh.opinions("b") == {Claim(term=1, peer="b", is_solo=True)}
        mesh.heal()
        mesh.run(3.0)
        assert mesh.opinions() == {first}


def test_two_solo_peers_that_meet_make_one_claim_together() -> None:
    mesh = Mesh("abcde")
    mesh.settle()
    mesh.partition("a", "b", "c", "de")
    mesh.run(8.0)
    assert mesh.coordinators() == {"a", "b", "c", "d"}
    mesh.cut -= {frozenset("bc")}
    mesh._open("b", "c")
    mesh.run(4.0)
    (claim,) = mesh.opinions("bc")
    assert claim is not None
    assert not claim.is_solo
    mesh.heal()
    last = mesh.settle()
    assert last.term == 2


def test_in_a_mesh_of_two_either_survives_the_other_and_the_later_claim_stays() -> None:
    """C31"""
    mesh = Mesh("ab")
    mesh.settle()
    mesh.power_off("a")
    mesh.run(5.5)
    assert mesh.opinions() == {Claim(term=2, peer="b")}
    mesh.start("a")
    assert mesh.settle() == Claim(term=2, peer="b")


def test_who_never_coordinates_and_guests_do_not() -> None:
    never = Standing(state="alive", run=1, eligibility=NEVER)
    guest = Standing(state="alive", run=2, is_guest=True)
    mesh = Mesh("abcd", a=never, b=guest)
    assert mesh.settle() == Claim(term=1, peer="c")
    mesh.crash("c")
    mesh.run(2.0)
    assert mesh.opinions() == {Claim(term=2, peer="d")}
    mesh.power_off("d")
    mesh.run(30.0)
    assert mesh.coordinators() == set()


def test_the_order_is_preference_then_copies_then_age_then_name() -> None:
    mesh = Mesh(
        "abcde",
        d=Standing(state="alive", run=9000, eligibility=PREFER),
        c=Standing(state="alive", run=8000, copies=2),
        b=Standing(state="alive", run=500),
    )
    reigns = [mesh.settle().peer]
    for _ in range(3):
        mesh.power_off(reigns[-1])
        reigns.append(mesh.settle().peer)
    assert reigns == ["d", "c", "b", "a"]


def test_a_better_machine_that_joins_does_not_take_over() -> None:
    mesh = Mesh("bc")
    first = mesh.settle()
    mesh.standings["a"] = Standing(state="alive", run=1, eligibility=PREFER)
    mesh.start("a")
    mesh.run(60.0)
    assert mesh.opinions() == {first}


def test_a_peer_that_an_admin_pins_takes_over_once_and_comes_first_from_then_on() -> None:
    mesh = Mesh("abcde")
    mesh.settle()
    for name in "abcde":
        mesh.carry_out(name, mesh.elections[name].pinned_is("e", mesh.now))
    mesh.run(1.0)
    assert mesh.opinions() == {Claim(term=2, peer="e")}
    mesh.power_off("e")
    mesh.run(5.0)
    assert mesh.opinions() == {Claim(term=3, peer="a")}
    mesh.start("e")
    mesh.elections["e"].pinned_is("e", mesh.now)
    assert mesh.settle() == Claim(term=3, peer="a")
    assert mesh.elections["e"].pinned_is("e", mesh.now) == [], "it knew that"
    mesh.crash("a")
    mesh.run(2.0)
    assert mesh.opinions() == {Claim(term=4, peer="e")}


def test_a_coordinator_that_may_no_longer_be_one_steps_down_and_is_replaced() -> None:
    mesh = Mesh("abc")
    mesh.settle()
    mesh.standings["a"] = replace(mesh.standings["a"], eligibility=NEVER)
    mesh.carry_out("a", mesh.elections["a"].eligibility_is(NEVER, mesh.now))
    mesh.run(3.0)
    assert mesh.opinions() == {Claim(term=2, peer="b")}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_claimant_that_dies_as_it_writes_its_claim_never_makes_it_twice(moment: str) -> None:
    mesh = Mesh("abc")
    mesh.settle()
    mesh.crash("a")
    mesh.run(0.4)
    carry_out = mesh.carry_out

    def dies(name: str, effects: Iterable[MachineEffect]) -> None:
        effects = list(effects)
        if name == "b" and persisted(effects):
            mesh.carry_out = carry_out  # type: ignore[method-assign]
            if moment == "after":
                carry_out("b", [effect for effect in effects if isinstance(effect, Persist)])
            mesh.crash("b")
            return
        carry_out(name, effects)

    mesh.carry_out = dies  # type: ignore[method-assign]
    mesh.run(1.5)
    assert "b" not in mesh.elections
    mesh.start("b")
    mesh.start("a")
    claim = mesh.settle()
    assert claim.term <= 3
    assert mesh.coordinators() == {claim.peer}


TROUBLES = st.lists(
    st.tuples(
        st.sampled_from(["crash", "power", "start", "cut", "join", "heal"]),
        st.sampled_from("abcd"),
        st.sampled_from("abcd"),
        st.floats(0.0, 6.0),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(troubles=TROUBLES, seed=st.integers(0, 1000), names=st.sampled_from(["ab", "abc", "abcd"]))
def test_after_any_troubles_and_a_heal_one_coordinates_and_all_agree(
    troubles: list[tuple[str, str, str, float]], seed: int, names: str
) -> None:
    """No claim is told before it is kept, none falls, none is made twice (Mesh.carry_out asserts it on every step)."""
    mesh = Mesh(names, seed=seed)
    for kind, one, other, wait_s in troubles:
        match kind:
            case "crash" if one in mesh.elections:
                mesh.crash(one)
            case "power" if one in mesh.elections:
                mesh.power_off(one)
            case "start" if one in names and one not in mesh.elections:
                mesh.start(one)
            case "cut" if one != other:
                mesh.cut.add(frozenset((one, other)))
            case "join" if frozenset((one, other)) in mesh.cut:
                mesh.cut.discard(frozenset((one, other)))
                mesh._open(one, other)
            case "heal":
                mesh.heal()
        mesh.run(wait_s)
    mesh.heal()
    for name in names:
        if name not in mesh.elections:
            mesh.start(name)
    mesh.run(40.0)
    (claim,) = mesh.opinions()
    assert claim is not None
    assert mesh.coordinators() == {claim.peer}
    assert not any(election.is_lost for election in mesh.elections.values())


WILD_CLAIMS = st.none() | st.builds(
    Claim, term=st.integers(0, 2**63 - 1), peer=st.sampled_from("abcdex"), is_solo=st.booleans()
)
WILD = st.one_of(
    st.builds(Heartbeat, claim=WILD_CLAIMS),
    st.builds(HeartbeatAck, claim=WILD_CLAIMS, is_in_office=st.booleans()),
    st.builds(Scan, number=st.integers(0, 9), claim=WILD_CLAIMS),
    st.builds(ScanAnswer, number=st.integers(0, 9), hears=st.booleans(), may_claim=st.booleans(), claim=WILD_CLAIMS),
)


@given(st.lists(st.tuples(st.sampled_from("abcdex"), WILD, st.floats(0.0, 5.0)), max_size=30))
def test_whatever_is_said_nothing_raises_and_terms_never_fall(said: list[tuple[str, Message, float]]) -> None:
    election = peer("b", claim=None)
    now, highest = 0.0, None
    for sender, message, wait_s in said:
        now += wait_s
        for effect in (*election.receive(sender, message, now), *election.tick(now)):
            if isinstance(effect, Persist):
                assert highest is None or effect.claim > highest
                highest = effect.claim
            if isinstance(effect, Send) and isinstance(effect.message, get_args(Message)):
                told = effect.message.claim
                assert told is None or (highest is not None and not told > highest)
        assert election.claim == highest
