"""What must hold for the admin map whatever happens, checked by Hypothesis, and mutants that it must catch.

    python -m tests.sim.admin [--examples 300] [--mutants]

`Mesh` is a state machine over tests.sim.admin_world: edits and endings on peers whose clocks differ, comparisons in any
direction and cut off, crashes, full disks, partitions, clocks that somebody sets, members revoked or made guests, weeks
that pass, old messages, forged rows and garbage. `DIRECTED` are scenes played first, for what random walks rarely meet.
`MUTANTS` change one decision of the product each, as a mistake would; each must be caught.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mesh.admin.exchange import ROWS_PATH, SYNC_PATH
from mesh.admin.messages import CODEC, Ask, Compare, Push
from mesh.admin.rows import written
from tests.sim.admin_mutants import MUTANTS
from tests.sim.admin_scenes import ALL, DIRECTED, NAMES, played
from tests.sim.admin_watch import DAY_S
from tests.sim.admin_world import FIELDS, SETTINGS, World
from tests.sim.history import Catch, Mutant

PEER = st.sampled_from(NAMES)
OTHERS = st.sampled_from(NAMES[1:])
"""The founder let all others in: without it as a member none of them is one."""
NUMBER = st.integers(0, 30)
DEAF = st.frozensets(PEER)
SKEW_MS = st.integers(-25_000, 25_000)
WRONG_S = st.sampled_from([-40 * DAY_S, -7200.0, -90.0, 90.0, 7200.0, 40 * DAY_S])


class Mesh(RuleBasedStateMachine):
    """Random walks. Some rules are several steps that are seldom found in this order."""

    world: World

    @initialize(seed=st.integers(0, 2**16), skews_ms=st.lists(SKEW_MS, min_size=4, max_size=4), guest=st.booleans())
    def begin(self, seed: int, skews_ms: list[int], guest: bool) -> None:
        self.world = World(NAMES, seed=seed, skews_ms=skews_ms, guest="d" if guest else "")
        self.revoked: set[str] = set()
        self.guests = {"d"} if guest else set()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                if sys.exc_info()[0] is None:
                    self.world.settle()
            finally:
                self.world.close()

    # -- people

    @rule(name=PEER, space=st.sampled_from(["key", "user", "agent"]), value=st.integers(0, 3), deaf=DEAF)
    def makes(self, name: str, space: str, value: int, deaf: frozenset[str]) -> None:
        self.world.write(name, self.world.new_key(name, space), {"name": value, "note": 0}, deaf)

    @rule(name=PEER, number=NUMBER, each=st.sampled_from(FIELDS), value=st.integers(0, 3), deaf=DEAF)
    def edits(self, name: str, number: int, each: str, value: int, deaf: frozenset[str]) -> None:
        if keys := self.world.keys_known(name):
            self.world.write(name, keys[number % len(keys)], {each: value}, deaf)

    @rule(one=PEER, other=PEER, setting=st.sampled_from(SETTINGS))
    def edit_at_the_same_time(self, one: str, other: str, setting: str) -> None:
        """Neither hears of the other's."""
        with self.world.same_moment():
            self.world.write(one, setting, {"name": 1}, ALL)
            self.world.write(other, setting, {"name": 2}, ALL)

    @rule(name=PEER, number=NUMBER, deaf=DEAF)
    def ends(self, name: str, number: int, deaf: frozenset[str]) -> None:
        keys = [key for key in self.world.keys_known(name) if key not in SETTINGS]
        if keys:
            self.world.end(name, keys[number % len(keys)], deaf)

    @rule(name=PEER, deaf=DEAF)
    def logs_out(self, name: str, deaf: frozenset[str]) -> None:
        self.world.end(name, self.world.new_key(name, "session"), deaf)

    @rule(ender=PEER, editor=PEER, number=NUMBER, is_ended_first=st.booleans())
    def is_ended_and_edited(self, ender: str, editor: str, number: int, is_ended_first: bool) -> None:
        """At two machines that both know it."""
        known = set(self.world.keys_known(ender)) & set(self.world.keys_known(editor)) - set(SETTINGS)
        if known:
            key = sorted(known)[number % len(known)]
            for is_ending in (is_ended_first, not is_ended_first):
                if is_ending:
                    self.world.end(ender, key, ALL)
                else:
                    self.world.write(editor, key, {"name": number}, ALL)
                self.world.time_passes(30.0)

    # -- machines

    @rule(name=PEER)
    def crash(self, name: str) -> None:
        self.world.stop(name)

    @rule(name=PEER)
    def start(self, name: str) -> None:
        self.world.start(name)

    @rule(name=PEER, number=NUMBER, value=st.none() | st.integers(4, 6), at=st.sampled_from([0.0005, 0.0015, 0.0025]))
    def crash_in_a_write(self, name: str, number: int, value: int | None, at: float) -> None:
        keys = [key for key in self.world.keys_known(name) if key not in SETTINGS]
        if keys:
            self.world.crash_in_write(name, keys[number % len(keys)], value, at)

    @rule(name=PEER, is_full=st.booleans())
    def disk_fills(self, name: str, is_full: bool) -> None:
        self.world.fill(name, is_full=is_full)

    @rule(name=PEER, ahead_s=WRONG_S, is_alone=st.booleans(), value=st.integers(7, 9))
    def clock_is_wrong(self, name: str, ahead_s: float, is_alone: bool, value: int) -> None:
        """And somebody edits there, before it has heard of anybody else's clock or after."""
        if is_alone:
            self.world.stop(name)
            self.world.start(name)
        self.world.set_clock(name, round(ahead_s * 1000))
        self.world.write(name, SETTINGS[0], {"name": value})

    @rule(name=PEER)
    def clock_is_set(self, name: str) -> None:
        self.world.set_clock(name, self.world.peers[name].base_skew_ms)

    # -- the network and time

    @rule(sides=st.lists(st.integers(0, 1), min_size=len(NAMES), max_size=len(NAMES)))
    def network_parts(self, sides: list[int]) -> None:
        self.world.part(sides)

    @rule(one=PEER, other=PEER, messages=st.sampled_from([None, None, None, 1, 2, 3]))
    def compare(self, one: str, other: str, messages: int | None) -> None:
        self.world.compare(one, other, messages)

    @rule(name=PEER)
    def tend(self, name: str) -> None:
        self.world.tend(name)

    @rule(seconds=st.sampled_from([0.001, 1.0, 30.0, 70.0, 700.0, 7200.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.time_passes(seconds)

    @rule(days=st.sampled_from([1.0, 8.0, 29.0, 33.0]))
    def days_pass(self, days: float) -> None:
        self.world.days_pass(days)

    @rule(name=PEER, days=st.sampled_from([5.0, 29.0, 33.0]), number=NUMBER, is_edited=st.booleans())
    def is_away(self, name: str, days: float, number: int, is_edited: bool) -> None:
        """Something is ended meanwhile, and at the end edited or ended at the machine that was away."""
        away = self.world.peers[name]
        self.world.stop(name)
        other = next(each for each in NAMES if each != name)
        for each in {other} - self.revoked:
            self.ends(each, number, frozenset())
        self.world.days_pass(days)
        side, away.side = away.side, 2
        self.world.start(name)
        if is_edited:
            self.edits(name, number, "note", 5, frozenset())
        else:
            self.ends(name, number + 1, frozenset())
        self.makes(name, "key", 1, frozenset())
        away.side = side

    # -- who belongs

    @precondition(lambda self: not self.revoked)
    @rule(by=PEER, name=OTHERS, value=st.integers(0, 3))
    def is_revoked(self, by: str, name: str, value: int) -> None:
        """And goes on writing, for those who have not heard."""
        if by != name and self.world.peers[by].is_signer and not self.guests & {by, name}:
            self.world.revoke(by, name)
            self.revoked.add(name)
            self.world.write(name, SETTINGS[1], {"name": value + 20})
            self.world.write(name, self.world.new_key(name, "key"), {"name": value})

    @precondition(lambda self: not self.guests)
    @rule(by=PEER, name=OTHERS)
    def becomes_a_guest(self, by: str, name: str) -> None:
        if by != name and self.world.peers[by].is_signer and not self.revoked & {by, name}:
            self.world.demote(by, name)
            self.guests.add(name)

    @rule(by=PEER)
    def is_trusted_again(self, by: str) -> None:
        for name in self.guests - self.revoked:
            if by not in self.revoked and by != name:
                self.world.trust(by, name)
                if self.world.peers[name].id in self.world.peers[by].signers:
                    self.guests.discard(name)
                    return

    @rule(one=PEER, other=PEER)
    def gossip(self, one: str, other: str) -> None:
        self.world.gossip(one, other)

    # -- those who mean harm, and the network that repeats itself

    @rule(number=st.integers(0, 199), to=PEER)
    def message_comes_again(self, number: int, to: str) -> None:
        self.world.replay(number, to)

    @rule(teller=PEER, to=PEER, number=NUMBER)
    def old_rows_are_told(self, teller: str, to: str, number: int) -> None:
        """Of the last 29 days: what is older is refused by when its teller compared, which this one lies about."""
        since_ms = self.world.true_ms() - 29 * DAY_S * 1000
        known = self.world.watch.made
        rows = sorted((row for row in known if row.clock.ms > since_ms), key=lambda row: (row.key, row.clock))
        self.world.push(teller, to, rows[number % 3 :: 3])

    @rule(claimed=PEER, by=PEER, teller=PEER, to=PEER, number=NUMBER, ahead_ms=st.integers(-(10**6), 10**5))
    def rows_are_forged(self, claimed: str, by: str, teller: str, to: str, number: int, ahead_ms: int) -> None:
        keys = self.world.keys_known(to)
        key = keys[number % len(keys)] if keys else SETTINGS[0]
        self.world.push(teller, to, self.world.forged(claimed, by, key, ahead_ms))

    @rule(name=st.sampled_from("xd"), teller=PEER, to=PEER)
    def rows_of_a_stranger_are_told(self, name: str, teller: str, to: str) -> None:
        if name not in NAMES or not self.world.peers[name].is_signer:
            self.world.push(teller, to, self.world.of_a_stranger(name, SETTINGS[0]))

    @rule(sender=PEER, to=PEER, times=st.integers(1, 8))
    def garbage_is_sent(self, sender: str, to: str, times: int) -> None:
        world = self.world
        mesh, now_ms = world.roster.mesh_id, world.peers[sender].now_ms()
        rows = tuple(written(row) for row in sorted(world.watch.made, key=lambda row: (row.clock, row.key))[:20])
        messages = [
            CODEC.encode(Push(mesh=mesh, now_ms=now_ms, last_synced_ms=2**60, rows=(*rows, *map(world.garbled, rows)))),
            CODEC.encode(Push(mesh="m" * 52, now_ms=now_ms, last_synced_ms=2**60, rows=rows)),
            CODEC.encode(Compare(mesh=mesh, now_ms=now_ms, last_synced_ms=0, horizon_ms=0, digest=b"d" * 33)),
            CODEC.encode(Ask(mesh=mesh, buckets=(0, 255, 256, 2**40), have=b"x" * 9)),
        ]
        for number in range(times):
            data = messages[number % len(messages)]
            path = ROWS_PATH if number % 3 else SYNC_PATH
            world.deliver(world.peers[sender].id, to, path, world.garbled(data) if number % 2 else data)

    @rule(one=PEER, other=PEER)
    def garbage_is_answered(self, one: str, other: str) -> None:
        self.world.lie = self.world.garbled
        self.world.compare(one, other)
        self.world.lie = None

    # -- an end

    @rule()
    def heal_and_settle(self) -> None:
        self.world.settle()


def explore(examples: int, steps: int = 25) -> None:
    """Plays that many random lives of a mesh, always the same ones. Raises what the first that goes wrong raises."""
    run_state_machine_as_test(
        Mesh,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=False,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def caught(mutant: Mutant, examples: int) -> Catch | None:
    """None if nothing noticed it. Only what the checks say counts: a mistake that breaks the simulator is no catch."""
    with mutant.alive():
        for scene in DIRECTED:
            try:
                played(scene)
            except AssertionError as error:
                return Catch(by=scene.__name__, how=str(error))
        try:
            explore(examples)
        except AssertionError as error:
            return Catch(by="random walks", how=str(error))
    return None


def main() -> None:
    """Explores the product, and on request its mutants."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.admin")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--mutants", action="store_true", help="plant mistakes, and see that each is caught")
    options = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    began = time.perf_counter()
    for scene in DIRECTED:
        played(scene)
    explore(options.examples)
    print(f"{len(DIRECTED)} scenes and {options.examples} lives: all held, {time.perf_counter() - began:.1f} s")
    if not options.mutants:
        return
    print("\n| mistake | noticed by | how | s |\n|---|---|---|---|")
    survivors = 0
    for mutant in MUTANTS:
        began = time.perf_counter()
        by = caught(mutant, options.examples)
        survivors += by is None
        who_noticed, how = (by.by, by.how[:90]) if by is not None else ("SURVIVED", "")
        print(f"| {mutant.what} | {who_noticed} | {how} | {time.perf_counter() - began:.1f} |", flush=True)
    if survivors:
        raise SystemExit(f"{survivors} of {len(MUTANTS)} mutants survived")


if __name__ == "__main__":
    main()
