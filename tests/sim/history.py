"""What must hold for the history whatever happens, checked by Hypothesis, and mutants that it must catch.

    python -m tests.sim.history [--examples 300] [--mutants]

`Mesh` is a state machine over tests.sim.history_world: requests, crashes, dead disks, restored backups, full disks,
commits of which nobody knows, partitions, guests, retirement. `DIRECTED` are scenes played first, for what random walks
rarely meet. `MUTANTS` change one decision of the product each, as a mistake would; each must be caught.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mesh.history import prefixes, recorder, replicas, replication
from mesh.history.entries import LogId
from mesh.history.outbox import Outbox, Waiting
from mesh.history.prefixes import Extent
from mesh.history.replicas import Span, Vector, View, Want
from mesh.history.replication import Replication
from mesh.history.writer import Place, Writer
from tests.sim.history_world import World

NAMES = ("a", "b", "c", "d")
PEER = st.sampled_from(NAMES)


class Mesh(RuleBasedStateMachine):
    """Random walks. Some rules are several steps that are seldom found in this order."""

    world: World

    @initialize(
        seed=st.integers(0, 2**16),
        is_replicated=st.booleans(),
        guest=st.none() | PEER,
        laptop=st.none() | PEER,
        newcomer=st.none() | PEER,
    )
    def begin(
        self, seed: int, is_replicated: bool, guest: str | None, laptop: str | None, newcomer: str | None
    ) -> None:
        self.world = World(names=NAMES, seed=seed, ack="replicated" if is_replicated else "local")
        if guest is not None:
            self.world.demote(guest)
        if laptop is not None:
            self.world.never(laptop)
        if newcomer is not None:
            self.world.partition([int(name == newcomer) for name in NAMES])
            self.world.request(newcomer)
            self.world.run(0.5)
            self.world.move(newcomer)
            self.world.partition([0] * len(NAMES))
        self.world.run(0.5)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    @rule(name=PEER, count=st.integers(1, 6), took_s=st.sampled_from([0.0, 0.002, 0.2]), leaves=st.booleans())
    def ask(self, name: str, count: int, took_s: float, leaves: bool) -> None:
        for _ in range(count):
            self.world.request(name, took_s, leaves=leaves)
        self.world.run(0.001)

    @rule(name=PEER, seconds=st.sampled_from([0.003, 0.03, 0.4]))
    def ask_and_wait(self, name: str, seconds: float) -> None:
        self.world.request(name)
        self.world.run(seconds)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 1.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(name=PEER)
    def crash(self, name: str) -> None:
        self.world.stop(name)
        self.world.check()

    @rule(name=PEER)
    def start(self, name: str) -> None:
        self.world.start(name)
        self.world.run(0.001)

    @precondition(lambda self: not any(peer.is_destroyed for peer in self.world.peers.values()))
    @rule(name=PEER, seconds=st.sampled_from([0.0, 0.02, 0.1, 1.0]))
    def disk_dies(self, name: str, seconds: float) -> None:
        """While clients are being answered."""
        for _ in range(3):
            self.world.request(name, 0.0)
        self.world.run(seconds)
        self.world.destroy(name)
        self.world.check()

    @precondition(lambda self: not any(peer.is_destroyed for peer in self.world.peers.values()))
    @rule(name=PEER)
    def backup_is_restored(self, name: str) -> None:
        """Something was recorded since, and something is recorded after it."""
        self.world.back_up(name)
        for _ in range(2):
            self.world.request(name)
            self.world.run(0.2)
            self.world.restore(name)
            self.world.start(name)

    @rule(name=PEER)
    def alone_for_a_while(self, name: str) -> None:
        """And restarted meanwhile."""
        self.world.partition([int(each == name) for each in NAMES])
        self.world.request(name)
        self.world.run(0.2)
        self.world.stop(name)
        self.world.start(name)

    @rule(name=PEER, is_full=st.booleans())
    def disk_fills(self, name: str, is_full: bool) -> None:
        self.world.fill(name, is_full=is_full)

    @rule(name=PEER)
    def disk_blinks(self, name: str) -> None:
        self.world.blink(name)

    @rule(sides=st.lists(st.integers(0, 1), min_size=len(NAMES), max_size=len(NAMES)))
    def network_parts(self, sides: list[int]) -> None:
        self.world.partition(sides)

    @rule(name=PEER, share=st.floats(0, 1))
    def retention(self, name: str, share: float) -> None:
        self.world.retire(name, share)
        self.world.check()

    @rule(but=st.sets(PEER, max_size=2))
    def heal_and_settle(self, but: set[str]) -> None:
        self.world.settle(sorted(but))


def explore(examples: int, steps: int = 25) -> None:
    """Plays that many random histories, always the same ones. Raises what the first that goes wrong raises."""
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


# -- scenes


def _world(**more: Any) -> World:
    world = World(names=NAMES, **more)
    world.run(0.5)
    return world


def crash_after_acknowledgement(world: World) -> None:
    """Each peer is killed right after it acknowledged."""
    for name in NAMES:
        for _ in range(5):
            world.request(name, 0.0)
        world.run(0.012)
        world.stop(name)
        world.check()
        world.start(name)
    world.settle()


def disk_lost_after_acknowledgement(world: World) -> None:
    """With replicated acknowledgement, the ingress' disk dies right after it."""
    world.ack = "replicated"
    world.fill("a")
    world.request("d", 0.0)
    world.run(0.05)
    world.fill("b")
    for _ in range(3):
        world.request("d", 0.0)
        world.run(0.3)
    world.destroy("d")
    world.check()


def restored_backup(world: World) -> None:
    """An older copy of the file is put back, and new requests are recorded on it."""
    world.request("c")
    world.run(1)
    world.back_up("c")
    world.request("c")
    world.run(1)
    world.restore("c")
    world.start("c")
    world.request("c")
    world.run(1)
    world.settle()


def clients_leave(world: World) -> None:
    """Clients go in the moment their answer is complete."""
    for _ in range(3):
        world.request("b", leaves=True)
    world.run(1)
    world.settle()


def disk_full_for_a_while(world: World) -> None:
    """The ingress' disk is full, then it has room; a request spans both."""
    world.request("c", 0.5)
    world.run(0.1)
    world.fill("c")
    for _ in range(4):
        world.request("c")
        world.run(0.2)
    world.run(3)
    world.fill("c", is_full=False)
    world.settle()
    entries = sum(have for log, (_, have) in world.peers["c"].disk.vector().items() if log.peer == "c")
    assert entries == 10, f"five requests left {entries} entries"


def guest(world: World) -> None:
    """A guest is first in the line, and must hold nothing."""
    world.demote("b")
    for name in NAMES:
        world.request(name)
    world.run(8)
    world.settle()


def never_coordinates(world: World) -> None:
    """A peer that never coordinates is among the first."""
    world.never("a")
    for name in NAMES:
        world.request(name)
    world.run(8)
    world.settle()


def retirement(world: World) -> None:
    """Old entries go at the origin, while copies are there, behind, and not there yet."""
    world.partition([0, 0, 0, 1])
    for name in NAMES:
        for _ in range(4):
            world.request(name)
    world.run(2)
    for name in NAMES:
        world.retire(name, 0.5)
    world.run(0.1)
    world.request("d")
    world.run(1)
    world.settle()
    for name in NAMES:
        world.retire(name, 1.0)
    world.settle()


def coordinator_dies_with_the_others(world: World) -> None:
    """A log whose origin is gone for good moves along as one after the other takes over."""
    for _ in range(3):
        world.request("d")
    world.run(2)
    world.stop("d")
    world.run(12)
    world.destroy("a")
    world.run(12)
    world.settle(but=["d"])
    world.destroy("b")
    world.run(12)
    entries = sum(have for log, (_, have) in world.peers["c"].disk.vector().items() if log.peer == "d")
    assert entries == 6, f"of a log of 6 entries, {entries} moved along"


def older_runs(world: World) -> None:
    """A peer restarts while nobody else is there, and again."""
    world.partition([0, 0, 0, 1])
    for _ in range(3):
        world.request("d")
        world.run(1)
        world.stop("d")
        world.start("d")
    world.settle()


def moved_in(world: World) -> None:
    """A peer comes with a past of its own."""
    world.partition([0, 0, 0, 1])
    world.request("d")
    world.run(1)
    world.move("d")
    world.partition([0, 0, 0, 0])
    world.request("d")
    world.run(8)
    world.settle()


def a_hole_on_the_way(world: World) -> None:
    """Messages get lost in the middle of a long log."""
    for turn in range(12):
        world.request("c", 0.0)
        world.run(0.005)
        world.partition([0, 0, 1, 1] if turn % 2 else [0, 0, 0, 0])
    world.settle()


DIRECTED: tuple[Callable[[World], None], ...] = (
    crash_after_acknowledgement,
    disk_lost_after_acknowledgement,
    restored_backup,
    clients_leave,
    disk_full_for_a_while,
    guest,
    never_coordinates,
    retirement,
    coordinator_dies_with_the_others,
    older_runs,
    moved_in,
    a_hole_on_the_way,
)


def played(scene: Callable[[World], None], seed: int = 1) -> None:
    """Plays it. Raises what goes wrong."""
    world = _world(seed=seed)
    try:
        scene(world)
    finally:
        world.close()


# -- mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One decision, made wrong: `owner.name` is replaced by what `make` makes of it."""

    what: str
    owner: Any
    name: str
    make: Callable[[Any], Any]

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """The product has this mistake while the block runs."""
        with mock.patch.object(self.owner, self.name, self.make(getattr(self.owner, self.name))):
            yield


def _takes_gaps(real: Callable[..., tuple[Extent, int]]) -> Callable[..., tuple[Extent, int]]:
    def extended(known: Extent, *, first: int, count: int, low: int) -> tuple[Extent, int]:
        return real(known, first=known.have + 1 if first > known.have + 1 else first, count=count, low=low)

    return extended


def _takes_overlaps(real: Callable[..., tuple[Extent, int]]) -> Callable[..., tuple[Extent, int]]:
    def extended(known: Extent, *, first: int, count: int, low: int) -> tuple[Extent, int]:
        is_again = 0 < first <= known.have
        return real(known, first=known.have + 1 if is_again else first, count=count, low=low)

    return extended


def _retires_more(real: Callable[..., tuple[Extent, int]]) -> Callable[..., tuple[Extent, int]]:
    def extended(known: Extent, *, first: int, count: int, low: int) -> tuple[Extent, int]:
        return real(known, first=first, count=count, low=low + 1 if low else 0)

    return extended


def _says_at_once(real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def put_watched(self: Writer, entry: Any) -> Any:
        future = real(self, entry)
        if not future.done():
            future.set_result(Place(log=self.log or LogId("", 0), seq=0))
        return future

    return put_watched


def _one_disk_will_do(real: Callable[..., bool]) -> Callable[..., bool]:
    return lambda place, ack, *, is_elsewhere: place is not None


def _claims_to_be_replicated(real: Callable[..., Any]) -> Callable[..., Any]:
    async def replicated(self: Replication, place: Place) -> bool:
        return True

    return replicated


def _believes_it_arrived(real: Callable[..., Any]) -> Callable[..., Any]:
    async def push(self: Replication, target: str, want: Want) -> tuple[Span, bool]:
        mine = self._store().vector()[want.log]  # type: ignore[union-attr]
        with contextlib.suppress(replication.Refused):
            await real(self, target, want)
        return mine, False

    return push


def _goes_on_with_the_last_run(real: Callable[..., int]) -> Callable[..., int]:
    def next_run(known: Any, me: str, now_ms: int, above: int = 0) -> int:
        return max([log.run for log in known if log.peer == me], default=now_ms)

    return next_run


def _guests_hold(real: Callable[[str, View], bool]) -> Callable[[str, View], bool]:
    def may_hold(peer: str, view: View) -> bool:
        mate = view.mates.get(peer)
        return real(peer, view) or (mate is not None and mate.is_alive and mate.is_guest) or peer == view.me

    return may_hold


def _laptops_hold(real: Callable[[str, View], bool]) -> Callable[[str, View], bool]:
    def may_hold(peer: str, view: View) -> bool:
        mate = view.mates.get(peer)
        return real(peer, view) or (mate is not None and mate.is_alive) or peer == view.me

    return may_hold


def _everybody_in_line(real: Callable[[str, View], tuple[str, ...]]) -> Callable[[str, View], tuple[str, ...]]:
    def keepers(origin: str, view: View) -> tuple[str, ...]:
        return tuple(sorted(peer for peer, mate in view.mates.items() if mate.is_alive and peer != origin))[:2]

    return keepers


def _drops_what_failed(real: Callable[..., None]) -> Callable[..., None]:
    def failed(self: Outbox, now: float) -> None:
        self._end(self._batch, is_written=False)
        self._batch = []
        real(self, now)

    return failed


def _takes_failure_for_success(real: Callable[..., None]) -> Callable[..., None]:
    def failed(self: Outbox, now: float) -> None:
        self.written()

    return failed


def _loses_the_order(real: Callable[..., None]) -> Callable[..., None]:
    def put_back(self: Outbox) -> None:
        self._batch.reverse()
        real(self)

    return put_back


def _writes_twice(real: Callable[..., list[Waiting]]) -> Callable[..., list[Waiting]]:
    def written(self: Outbox) -> list[Waiting]:
        done = real(self)
        if len(done) == 1:
            self.put(done[0].entry)
        return done

    return written


def _ends_twice(real: Callable[..., Any]) -> Callable[..., Any]:
    async def ended(self: Any, outcome: Any) -> None:
        self._is_ended = False
        await real(self, outcome)

    return ended


def _forgets_older_runs(real: Callable[..., Want | None]) -> Callable[..., Want | None]:
    def to_push(mine: Vector, theirs: Vector, me: str, floors: Any) -> Want | None:
        own = max((log for log in mine if log.peer == me), default=None)
        return real({log: span for log, span in mine.items() if log == own}, theirs, me, floors)

    return to_push


def _keeps_retirement_to_itself(real: Callable[..., Want | None]) -> Callable[..., Want | None]:
    def to_push(mine: Vector, theirs: Vector, me: str, floors: Any) -> Want | None:
        for log in sorted((log for log in mine if log.peer == me), reverse=True):
            if mine[log][1] > theirs.get(log, (0, 0))[1]:
                return real({log: mine[log]}, theirs, me, floors)
        return None

    return to_push


def _has_no_secrets(real: Callable[..., Span]) -> Callable[..., Span]:
    return lambda log, span, floors: span


def _asks_origins_alone(real: Callable[..., bool]) -> Callable[..., bool]:
    def accepts(log: LogId, source: str, view: View, *, own: LogId, recovers: bool) -> bool:
        return source == log.peer and real(log, source, view, own=own, recovers=recovers)

    return accepts


def _successors_ask_nobody(real: Callable[..., tuple[str, ...]]) -> Callable[..., tuple[str, ...]]:
    def sources(view: View, *, recovers: bool) -> tuple[str, ...]:
        return real(view, recovers=recovers) if view.is_coordinator else ()

    return sources


MUTANTS = (
    Mutant(what="a copy takes entries over a gap", owner=prefixes, name="extended", make=_takes_gaps),
    Mutant(what="a copy takes what it has again", owner=prefixes, name="extended", make=_takes_overlaps),
    Mutant(what="a copy retires above the low mark", owner=prefixes, name="extended", make=_retires_more),
    Mutant(what="acknowledged before the commit", owner=Writer, name="put_watched", make=_says_at_once),
    Mutant(what="replicated on one disk", owner=recorder, name="is_acknowledged", make=_one_disk_will_do),
    Mutant(what="replicated without waiting", owner=Replication, name="replicated", make=_claims_to_be_replicated),
    Mutant(what="what was sent counts as kept", owner=Replication, name="push", make=_believes_it_arrived),
    Mutant(what="a run goes on after a restart", owner=replicas, name="next_run", make=_goes_on_with_the_last_run),
    Mutant(what="guests hold logs", owner=replicas, name="may_hold", make=_guests_hold),
    Mutant(what="who never coordinates holds logs", owner=replicas, name="may_hold", make=_laptops_hold),
    Mutant(what="others than those in line hold logs", owner=replicas, name="keepers", make=_everybody_in_line),
    Mutant(what="the outbox drops what failed", owner=Outbox, name="failed", make=_drops_what_failed),
    Mutant(what="a failed write counts as written", owner=Outbox, name="failed", make=_takes_failure_for_success),
    Mutant(what="the outbox loses the order", owner=Outbox, name="_put_back", make=_loses_the_order),
    Mutant(what="what was written is written again", owner=Outbox, name="written", make=_writes_twice),
    Mutant(what="a request ends twice", owner=recorder._Kept, name="ended", make=_ends_twice),
    Mutant(what="older runs are not pushed", owner=replicas, name="to_push", make=_forgets_older_runs),
    Mutant(what="retirement is not told", owner=replicas, name="to_push", make=_keeps_retirement_to_itself),
    Mutant(what="private entries are shown", owner=replicas, name="shown", make=_has_no_secrets),
    Mutant(what="logs of the dead are not taken", owner=replicas, name="accepts", make=_asks_origins_alone),
    Mutant(what="successors do not look", owner=replicas, name="sources", make=_successors_ask_nobody),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """What noticed a mistake, a scene or random walks, and how."""

    by: str
    how: str


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
    parser = argparse.ArgumentParser(prog="python -m tests.sim.history")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--mutants", action="store_true", help="plant mistakes, and see that each is caught")
    options = parser.parse_args()
    logging.disable()  # full disks are told of, thousands of times
    began = time.perf_counter()
    for scene in DIRECTED:
        played(scene)
    explore(options.examples)
    print(f"{len(DIRECTED)} scenes and {options.examples} histories: all held, {time.perf_counter() - began:.1f} s")
    survivors = 0
    for mutant in MUTANTS if options.mutants else ():
        began = time.perf_counter()
        by = caught(mutant, options.examples)
        survivors += by is None
        seconds = time.perf_counter() - began
        print(f"{mutant.what}, {seconds:.1f} s: {f'{by.by}: {by.how}' if by is not None else 'SURVIVED'}", flush=True)
    if survivors:
        raise SystemExit(f"{survivors} of {len(MUTANTS)} mutants survived")


if __name__ == "__main__":
    main()
