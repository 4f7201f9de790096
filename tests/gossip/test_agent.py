"""The asyncio shells on virtual time: whole meshes of real agents over tests.fixtures.virtual_channels."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gossip.agent import Agent, Events
from gossip.config import LAN, GossipConfig
from gossip.core import Core
from gossip.election import Claim
from gossip.frames import PROTO_MAX, PROTO_MIN, Cloned, framed
from gossip.home import Home
from gossip.identity import Identity
from gossip.member import About
from gossip.roster import Roster
from gossip.statements import Entry, read, signed_revocation
from gossip.storage import MeshState
from tests.fixtures.virtual_channels import Port, Wires
from tests.fixtures.virtual_loop import Network, simulate

LIMIT_S = 600.0


class Shelf:
    """A disk."""

    def __init__(self, state: MeshState) -> None:
        self.state = state

    def load(self) -> MeshState:
        return self.state

    def save(self, state: MeshState) -> None:
        self.state = state


@dataclass
class Node:
    """One peer of the test, through its lives."""

    identity: Identity
    shelf: Shelf
    wires: Wires
    rng: random.Random
    agent: Agent
    home: Home
    port: Port
    task: asyncio.Task[None] | None = None
    clones: int = 0
    asleep_s: float = 0.0
    wakings: int = 0
    name: str = ""
    config: GossipConfig = LAN
    versions: tuple[int, int] = (PROTO_MIN, PROTO_MAX)
    strange: list[tuple[str, str]] = field(default_factory=list)

    @property
    def me(self) -> str:
        return self.identity.peer_id

    def live(self) -> None:
        """Starts, or starts again."""
        loop = asyncio.get_running_loop()
        self.port = Port(self.wires, self.me, self.name)
        self.home = _home(self.identity, self.shelf)

        def cloned(address: str) -> None:
            self.clones += 1

        def slept() -> None:
            self.wakings += 1

        self.agent = Agent(
            me=self.me,
            run=1_700_000_000_000 + int(loop.time() * 1000),
            home=self.home,
            network=self.port,
            about=About(addresses=(self.port.address,), version="0.2"),
            config=self.config,
            rng=random.Random(self.rng.getrandbits(64)),
            versions=self.versions,
            asleep_s=lambda: self.asleep_s,
            events=Events(
                cloned=cloned,
                slept=slept,
                wrong_version=lambda peer, hello: self.strange.append((peer, hello.version)),
            ),
        )
        self.task = asyncio.create_task(self.agent.run())

    async def crash(self) -> None:
        await self.port.crash()
        await self._end()

    async def power_off(self) -> None:
        self.port.power_off()
        await self._end()

    async def _end(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        self.task = None

    def states(self) -> dict[str, str]:
        return {view.peer: view.state for view in self.agent.members()}


def _home(identity: Identity, shelf: Shelf) -> Home:
    return Home(identity=identity, name="x", keeper=shelf, now_s=lambda: 1_700_000_000.0, door_s=600.0)


def made(count: int, seed: int) -> tuple[Wires, list[Node]]:
    """Peers that know each other's certificates, and where they are."""
    rng = random.Random(seed)
    identities = [Identity.generate() for _ in range(count)]
    roster = Roster.found(identities[0], "n0", 1_700_000_000)
    for n, identity in enumerate(identities[1:], 1):
        roster = roster.admit(identities[0], identity.certificate_der, f"n{n}", "token", "active", 1_700_000_000)
    addresses = tuple(f"{i.peer_id}@{i.peer_id}:1" for i in identities[:32])
    wires = Wires(seed)
    nodes = []
    for identity in identities:
        shelf = Shelf(MeshState(mesh_id=roster.mesh_id, statements=roster.to_wire(), addresses=addresses))
        nodes.append(
            Node(identity, shelf, wires, rng, agent=None, home=None, port=None)  # type: ignore[arg-type]
        )
    return wires, nodes


async def until(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> float:
    """Virtual seconds until it holds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        assert loop.time() - began < limit_s, f"not within {limit_s:g} s: {what}"
        await asyncio.sleep(0.05)
    return loop.time() - began


def all_alive(nodes: Sequence[Node]) -> bool:
    ids = {node.me for node in nodes}
    return all({p for p, s in node.states().items() if s == "alive"} >= ids - {node.me} for node in nodes)


def coordinators(nodes: Sequence[Node]) -> set[Claim | None]:
    return {node.agent.coordinator for node in nodes}


def one_coordinator(nodes: Sequence[Node]) -> bool:
    found = coordinators(nodes)
    return len(found) == 1 and None not in found


def run(scenario: Callable[[Wires, list[Node]], Awaitable[None]], count: int, seed: int = 1) -> None:
    async def played() -> None:
        wires, nodes = made(count, seed)
        try:
            await scenario(wires, nodes)
        finally:
            for node in nodes:
                if node.task is not None:
                    await node.crash()

    simulate(played(), Network(seed), LIMIT_S)


def started(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        node.live()
        yield node


def test_fifty_peers_started_at_once_see_each_other_and_one_coordinator_within_ten_seconds() -> None:
    """Row 18 of the drills, on virtual time."""

    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "converged", 10.0)

    run(scenario, 50)


def test_a_crashed_process_is_avoided_at_once_and_a_new_coordinator_stands_within_three_seconds() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "converged", 20.0)
        (claim,) = coordinators(nodes)
        assert claim is not None
        (gone,) = (node for node in nodes if node.me == claim.peer)
        rest = [node for node in nodes if node is not gone]
        await gone.crash()
        await until(lambda: one_coordinator(rest) and coordinators(rest) != {claim}, "a new coordinator", 3.0)
        await until(lambda: all(node.states()[gone.me] == "dead" for node in rest), "dead everywhere", 20.0)
        gone.live()
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "the old one is back", 20.0)
        (new,) = coordinators(nodes)
        assert new is not None and new.term > claim.term and new.peer != gone.me

    run(scenario, 5, seed=2)


def test_who_holds_the_most_copies_is_the_next_coordinator_and_everybody_knows_beforehand() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "converged", 20.0)
        (claim,) = coordinators(nodes)
        assert claim is not None
        (gone,) = (node for node in nodes if node.me == claim.peer)
        heir = max((node for node in nodes if node is not gone), key=lambda node: (node.agent.run_id, node.me))
        heir.agent.about_is(copies=4)

        def is_known() -> bool:
            return all(next(p for p in node.agent.succession() if p != gone.me) == heir.me for node in nodes)

        await until(is_known, "everybody knows the heir", 20.0)
        rest = [node for node in nodes if node is not gone]
        await gone.crash()
        await until(lambda: one_coordinator(rest) and coordinators(rest) != {claim}, "a new coordinator", 5.0)
        (new,) = coordinators(rest)
        assert new is not None and new.peer == heir.me
        await until(lambda: all(gone.me not in node.agent.succession() for node in rest), "it is out", 20.0)

    run(scenario, 5, seed=12)


def test_a_pinned_peer_takes_the_office_over() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "converged", 20.0)
        (claim,) = coordinators(nodes)
        assert claim is not None
        wanted = next(node.me for node in nodes if node.me != claim.peer)
        for node in nodes:
            node.agent.pinned_is(wanted)
        await until(lambda: {c.peer if c else "" for c in coordinators(nodes)} == {wanted}, "the pinned one", 5.0)

    run(scenario, 3, seed=13)


def test_a_machine_without_power_is_dead_everywhere_and_the_others_go_on() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        await nodes[3].power_off()
        rest = [node for node in nodes if node is not nodes[3]]
        await until(lambda: all(node.states()[nodes[3].me] == "dead" for node in rest), "dead everywhere", 18.0)
        assert all_alive(rest)

    run(scenario, 5, seed=3)


def test_both_sides_of_a_partition_have_a_coordinator_and_one_is_left_after_the_heal() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes) and one_coordinator(nodes), "converged", 20.0)
        left, right = nodes[:2], nodes[2:]
        wires.partition({node.me for node in left}, {node.me for node in right})
        await until(lambda: one_coordinator(left) and one_coordinator(right), "one each", 12.0)
        await asyncio.sleep(60.0)
        assert one_coordinator(left) and one_coordinator(right)
        assert coordinators(left) != coordinators(right)
        wires.heal()
        await until(lambda: one_coordinator(nodes), "one coordinator", 4.0)
        await until(lambda: all_alive(nodes), "healed", 10.0)

    for seed in range(4, 12):
        run(scenario, 5, seed=seed)


def test_a_goodbye_is_heard_by_all_and_nobody_is_suspected() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        await nodes[1].agent.leave()
        await nodes[1].crash()
        rest = [node for node in nodes if node is not nodes[1]]
        await until(lambda: all(node.states()[nodes[1].me] == "left" for node in rest), "left", 2.0)
        assert all_alive(rest)

    run(scenario, 4, seed=5)


def test_what_one_sends_the_others_count_as_received() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        await asyncio.sleep(10.0)
        numbers = [node.agent.numbers() for node in nodes]
        assert [found["channels"] for found in numbers] == [2, 2, 2]
        assert all(found["rounds"] >= 8 and found["health"] == 0 for found in numbers)
        for what in ("messages", "bytes"):
            sent = sum(found[f"{what}_out"] for found in numbers)
            received = sum(found[f"{what}_in"] for found in numbers)
            assert 0.98 * sent <= received <= sent, what  # some are on their way, and some links were replaced

    run(scenario, 3, seed=6)


def test_facts_reach_everybody_and_outlive_a_restart() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        for node in started(nodes):
            node.agent.set_fact("inventory", node.me.encode() * 100)
            node.agent.set_fact("load", b"idle", fast=True)

        def value(reader: Node, of: Node, key: str) -> bytes | None:
            fact = reader.agent.fact(of.me, key)
            return fact.value if fact is not None else None

        def everywhere(of: Node, key: str, expected: bytes) -> bool:
            return all(value(node, of, key) == expected for node in nodes if node is not of)

        for node in nodes:
            await until(lambda n=node: everywhere(n, "inventory", n.me.encode() * 100), "inventory", 20.0)  # type: ignore[misc]
        nodes[0].agent.set_fact("load", b"busy", fast=True)
        await until(lambda: everywhere(nodes[0], "load", b"busy"), "load", 5.0)
        await nodes[0].crash()
        nodes[0].live()
        nodes[0].agent.set_fact("inventory", b"new disk")
        await until(lambda: everywhere(nodes[0], "inventory", b"new disk"), "the new inventory", 20.0)

    run(scenario, 6, seed=6)


def test_a_revoked_peer_is_dropped_by_everybody_within_two_seconds() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        boss, thief = nodes[0], nodes[2]
        boss.agent.set_roster(boss.home.roster.revoke(boss.identity, thief.me, 1_700_000_100))
        rest = [node for node in nodes if node is not thief]
        await until(lambda: all(thief.me not in node.states() for node in rest), "nobody knows it", 2.0)
        assert all(not node.agent.is_connected(thief.me) for node in rest)
        await asyncio.sleep(30.0)
        assert all(not node.agent.is_connected(thief.me) for node in rest) and all_alive(rest)

    run(scenario, 4, seed=7)


def test_above_channels_max_the_idle_ones_are_closed_and_nobody_is_taken_for_dead() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        for node in nodes:
            node.config = replace(LAN, channels_max=6, neighbours=4)
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 60.0)
        await asyncio.sleep(60.0)
        assert all_alive(nodes)
        open_ones = [sum(node.agent.is_connected(other.me) for other in nodes) for node in nodes]
        # all keep one to the coordinator, who cannot help that
        assert sum(open_ones) / len(nodes) <= 8 and sorted(open_ones)[len(nodes) // 2] <= 7, open_ones

    run(scenario, 16, seed=11)


def test_two_that_have_no_version_in_common_say_so_and_stay_apart() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes[:2]))
        newer = nodes[2]
        newer.versions = (7, 9)
        newer.live()
        await until(lambda: any(peer == newer.me for peer, _ in nodes[0].strange), "it is named", 20.0)
        await until(lambda: any(peer == nodes[0].me for peer, _ in newer.strange), "by both", 20.0)
        assert all_alive(nodes[:2]) and newer.states()[nodes[0].me] != "alive"

    run(scenario, 3, seed=9)


def test_who_cannot_be_spoken_with_is_not_dialled_over_and_over() -> None:
    """Each try is a handshake on both machines, and a mesh is upgraded over days."""

    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        newer = nodes[1]
        newer.versions = (7, 9)
        list(started(nodes))
        await asyncio.sleep(60.0)
        assert all(2 <= len(node.strange) < 120 for node in nodes)

    run(scenario, 2, seed=12)


def test_a_laptop_whose_clock_stood_still_while_it_slept_knows_that_it_did() -> None:
    """The monotonic clock of Linux and macOS leaves sleep out."""

    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        assert [node.wakings for node in nodes] == [0, 0]
        nodes[0].asleep_s += 3600.0
        await asyncio.sleep(10.0)
        assert [node.wakings for node in nodes] == [1, 0]

    run(scenario, 2, seed=13)


def test_a_message_that_meets_a_bug_costs_its_channel_and_not_the_peer() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        for node in nodes:
            core, bugs = node.agent._core, iter([1])

            def receive(sender: str, data: bytes, now: float, core: Core = core, bugs: Iterator[int] = bugs) -> Any:
                if next(bugs, 0):
                    raise ZeroDivisionError("a bug")
                return Core.receive(core, sender, data, now)

            core.receive = receive  # type: ignore[method-assign]
        await asyncio.sleep(30.0)
        assert all(node.task is not None and not node.task.done() for node in nodes)
        assert all_alive(nodes)

    run(scenario, 2, seed=14)


def test_a_channel_that_ends_each_time_it_is_opened_is_not_opened_over_and_over() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        opened = 0
        for node in nodes:

            def receive(sender: str, data: bytes, now: float) -> Any:
                nonlocal opened
                opened += 1
                raise ZeroDivisionError("a bug")

            node.agent._core.receive = receive  # type: ignore[method-assign]
        await asyncio.sleep(60.0)
        assert 2 <= opened < 3000  # 24,000 without a pause

    run(scenario, 2, seed=15)


def test_a_member_that_only_claims_there_is_a_clone_stops_nobody() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        liar, victim = nodes[0], nodes[1]
        link = liar.agent._channels.get(victim.me)
        assert link is not None
        for address in (liar.port.address, victim.port.address, "nowhere:1"):
            link.put(framed(Cloned(addresses=(address,))), 0.0)
        await asyncio.sleep(30.0)
        assert victim.clones == 0 and all_alive(nodes)

    run(scenario, 3, seed=10)


def test_of_two_processes_with_one_identity_the_later_one_is_told() -> None:
    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        first = nodes[1]
        copy = Node(first.identity, Shelf(first.shelf.state), wires, random.Random(9), None, None, None)  # type: ignore[arg-type]
        copy.name = "copy"
        copy.live()
        try:
            await until(lambda: copy.clones > 0, "the copy knows", 20.0)
            assert first.clones == 0
        finally:
            await copy.crash()

    run(scenario, 4, seed=8)


def test_statements_of_any_length_reach_everybody_and_stop_nobody() -> None:
    """A member may revoke whom it likes, and keep thousands of hashes of what never was."""

    async def scenario(wires: Wires, nodes: list[Node]) -> None:
        list(started(nodes))
        await until(lambda: all_alive(nodes), "converged", 20.0)
        mallory, late = nodes[1], nodes[3]
        await late.crash()
        keeps = {hashlib.sha256(bytes([first, second])).digest() for first in range(16) for second in range(250)}
        (root,) = [x for x in map(read, mallory.agent.roster.statements) if isinstance(x, Entry) and x.is_founding]
        long = [
            signed_revocation(mallory.identity, root.hash, subject=f"{number:052}", keeps=keeps, now_s=1.0)
            for number in range(20)
        ]
        mallory.agent.set_roster(mallory.agent.roster.merged(long))
        late.live()
        await until(lambda: all(set(long) <= set(node.agent.roster.statements) for node in nodes), "told", 20.0)
        await until(lambda: all_alive(nodes), "all live", 20.0)

    run(scenario, 4, seed=11)
