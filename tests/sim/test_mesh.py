"""Whole meshes on virtual time: invariants on every step, bounds of detection and fail-over, faults from a seed.

A seed that once failed stands here by name, with what was wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from gossip.config import LAN, TEST
from gossip.core import CODEC
from gossip.effects import MemberChanged, Role
from gossip.messages import SUSPECT, Gossip, Rumour
from tests.sim.scenarios import agree, coordinator, is_dead, settled
from tests.sim.watch import Broken
from tests.sim.world import EPOCH_MS, Host, World

# The bounds of the design, for a mesh of any size up to fifty.
SUSPECTED_S, DEAD_S, DEAD_LOSS_S = 5.5, 12.0, 18.0
CRASHED_S, LOST_S = 3.0, 8.0


def a_victim(world: World) -> Host:
    first = coordinator(world)
    return world.rng.choice([host for host in world.living() if host is not first])


def dead_everywhere(world: World, victim: Host, within_s: float) -> bool:
    began, others = world.now, [host for host in world.living() if host is not victim]
    return world.run_until(partial(is_dead, world, victim, began, others), began + within_s) is not None


# --- coming together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "seed"), [(1, 1), (2, 1), (3, 1), (5, 1), (12, 1), (50, 1)])
def test_peers_started_at_once_come_together_with_onecoordinator(peers: int, seed: int) -> None:
    world = World(peers, seed=seed, config=LAN, loss=0.0 if peers == 1 else 0.02)
    world.start_all()
    world.run(10.0)
    assert world.watch.is_converged()
    assert world.watch.has_one_coordinator()
    assert world.watch.has_all_inventory()
    assert not world.watch.false_deaths


def test_the_same_seed_gives_the_same_run() -> None:
    def trace(seed: int) -> tuple[int, list[tuple[float, int]], int]:
        world = settled(8, seed, LAN, loss=0.05, load_interval_s=0.5)
        world.power_off(a_victim(world))
        world.run(world.now + 20)
        watch = world.watch
        return sum(watch.bytes.values()), [(at, host.index) for at, host, _ in watch.deaths], watch.messages

    assert trace(4) == trace(4)
    assert trace(4) != trace(5)


def test_a_peer_more_is_known_everywhere_within_two_seconds() -> None:
    world = World(20, seed=3, config=LAN)
    late = world.hosts[-1]
    for host in world.hosts[:-1]:
        world.start(host)
    world.run(10.0)
    world.start(late)
    world.run(12.0)
    assert world.watch.is_converged()


def test_guests_gossip_and_never_coordinate() -> None:
    world = World(3, seed=2, config=LAN, guests=[0, 1])
    world.start_all()
    world.run(15.0)
    assert world.watch.is_converged()
    assert world.watch.has_one_coordinator()
    assert coordinator(world) is world.hosts[2]


# --- detection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "seeds"), [(2, 3), (5, 6), (20, 2)])
def test_a_killed_process_is_avoided_within_a_second_and_dead_in_time(peers: int, seeds: int) -> None:
    for seed in range(seeds):
        world = settled(peers, seed, LAN)
        victim, began = a_victim(world), world.now
        world.crash(victim)
        world.run(began + 1.0)
        assert {host for _, host, other in world.watch.avoids if other is victim} == set(world.living())
        assert dead_everywhere(world, victim, DEAD_S)
        assert not world.watch.false_deaths


@pytest.mark.parametrize(
    ("peers", "seeds", "loss"), [(2, 3, 0.0), (5, 6, 0.0), (20, 2, 0.0), (5, 6, 0.05), (20, 2, 0.05)]
)
def test_a_machine_without_power_is_suspected_and_dead_in_time(peers: int, seeds: int, loss: float) -> None:
    for seed in range(seeds):
        world = settled(peers, seed, LAN, loss=loss)
        victim, began = a_victim(world), world.now
        world.power_off(victim)
        assert dead_everywhere(world, victim, DEAD_LOSS_S if loss else DEAD_S)
        if not loss:
            late = [at - began for at, _, other in world.watch.suspicions if other is victim and at >= began]
            assert max(late) <= SUSPECTED_S
        assert not world.watch.false_deaths


def test_seed_18_the_last_to_start_loses_its_power() -> None:
    """Nobody asked for it for 12 s: it was not in the rounds of probes that ran when it came."""
    world = World(50, seed=18, config=LAN)
    late = world.hosts[-1]
    for host in world.hosts[:-1]:
        world.start(host)
    world.run(5.0)
    world.start(late)
    world.run(7.0)
    world.power_off(late)
    world.run(7.0 + SUSPECTED_S)
    assert len({host for _, host, other in world.watch.suspicions if other is late}) == 49


def test_an_hour_at_five_percent_loss_kills_nobody() -> None:
    world = settled(5, 11, LAN, loss=0.05)
    world.run(world.now + 3600)
    assert not world.watch.deaths


def test_a_peer_that_leaves_is_left_everywhere_at_once_and_never_suspected() -> None:
    world = settled(10, 5, LAN)
    leaver = a_victim(world)
    world.leave(leaver)
    world.run(world.now + 0.5)
    states = {host.core.member(leaver.peer).state for host in world.living() if host.core and host is not leaver}  # type: ignore[union-attr]
    assert states == {"left"}
    world.run(world.now + 30)
    assert not [1 for _, _, other in world.watch.suspicions if other is leaver]


def test_a_draining_peer_is_known_as_such_everywhere_within_a_second() -> None:
    world = settled(20, 5, LAN)
    drained = a_victim(world)
    world.about_is(drained, draining=True)
    world.run(world.now + 1.0)
    views = [host.core.member(drained.peer) for host in world.living() if host.core and host is not drained]
    assert all(view is not None and view.about.draining for view in views)


def test_a_restarted_peer_is_alive_everywhere_within_two_seconds() -> None:
    for seed in range(4):
        world = settled(10, seed, LAN)
        victim = a_victim(world)
        world.power_off(victim)
        world.run(world.now + 40)
        world.start(victim)
        world.run(world.now + 3)
        assert world.watch.is_converged()
        assert world.watch.has_all_inventory()


def test_a_peer_revoked_is_forgotten_and_its_messages_dropped() -> None:
    world = settled(5, 1, LAN)
    revoked = a_victim(world)
    roles: dict[str, Role] = {peer: role for peer, role in world.roles.items() if peer != revoked.peer}
    for host in world.living():
        if host is not revoked:
            assert host.core is not None
            world._carry(host, host.core.members_are(roles, world.clock(host)))
    world.run(world.now + 30)
    assert all(host.core.member(revoked.peer) is None for host in world.living() if host.core and host is not revoked)


# --- stalls and clocks --------------------------------------------------------------------------------------------


def test_a_stalled_peer_comes_back_without_harming_the_others() -> None:
    for seed in range(4):
        world = settled(6, seed, LAN, loss=0.01)
        victim, began = a_victim(world), world.now
        world.watch.stalled(victim, began + 30)
        world.freeze(victim, 30.0)
        world.run(began + 30.0)
        others = {other for _, _, other in world.watch.deaths}
        assert others == {victim}, "stalled that long, it is dead"
        world.run(began + 36.0)
        assert world.watch.is_converged()
        assert {other for _, _, other in world.watch.deaths} == {victim}, "it has buried nobody"


def test_short_stalls_of_everybody_kill_nobody() -> None:
    """Machines whose CPUs are pegged: loops that lag by up to two seconds, all the time."""
    world = settled(6, 3, LAN, loss=0.01)
    until = world.now + 600
    while world.now < until:
        world.freeze(world.rng.choice(world.hosts), world.rng.uniform(0.3, 2.0))
        world.run(world.now + world.rng.uniform(0.2, 1.0))
    assert not world.watch.deaths


def test_a_clock_that_jumps_an_hour_buries_nobody() -> None:
    world = settled(5, 8, LAN)
    world.jump_clock(a_victim(world), 3600.0)
    world.run(world.now + 60)
    assert not world.watch.deaths


# --- the coordinator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peers", "seeds"), [(2, 3), (3, 4), (5, 6), (20, 2)])
@pytest.mark.parametrize(("end", "within_s"), [(World.crash, CRASHED_S), (World.power_off, LOST_S)])
def test_the_coordinator_is_followed_by_another(
    peers: int, seeds: int, end: Callable[[World, Host], None], within_s: float
) -> None:
    for seed in range(seeds):
        world = settled(peers, seed, LAN)
        world.run(world.now + 5)
        old, began = coordinator(world), world.now
        end(world, old)
        assert world.run_until(partial(agree, world, world.living(), old), began + within_s) is not None


@pytest.mark.parametrize(("small", "large", "seeds"), [(2, 3, 4), (2, 18, 2)])
def test_both_sides_of_a_partition_have_a_coordinator_and_one_after_the_heal(
    small: int, large: int, seeds: int
) -> None:
    for seed in range(seeds):
        world = settled(small + large, seed, LAN)
        world.run(world.now + 5)
        few = world.rng.sample(world.hosts, small)
        many = [host for host in world.hosts if host not in few]
        world.partition(many, few)
        began = world.now
        sides_agree = world.run_until(partial(both_agree, world, many, few), began + LOST_S)
        assert sides_agree is not None
        world.run(began + 60)
        world.heal()
        world.run(world.now + 5)
        assert world.watch.has_one_coordinator()
        assert world.watch.is_converged()


def test_a_one_way_cut_between_two_leaves_the_others_at_peace() -> None:
    """Neither dies: others still reach both; the coordinator stays."""
    for seed in range(4):
        world = settled(6, seed, LAN)
        a, b = world.rng.sample(world.hosts, 2)
        world.cut(a, b)
        world.run(world.now + 60)
        watch = world.watch
        assert {other for _, _, other in watch.deaths} <= {a, b}
        assert not [host for at, host, _ in watch.deaths if host not in (a, b)]
        world.heal()
        world.run(world.now + 10)
        assert watch.is_converged()
        assert watch.has_one_coordinator()


def both_agree(world: World, one: list[Host], other: list[Host]) -> bool:
    return agree(world, one) and agree(world, other)


# --- anything -----------------------------------------------------------------------------------------------------


def chaos(seed: int, peers: int, minutes: float, *, loss: float = 0.03) -> World:
    """Random faults, then peace: the invariants hold throughout, and afterwards all is well."""
    world = settled(peers, seed, LAN, loss=loss, load_interval_s=1.0)
    chance = random.Random(seed)
    until = world.now + minutes * 60
    while world.now < until:
        fault(world, chance)
        world.run(world.now + chance.uniform(0.5, 15))
    world.heal()
    for host in world.hosts:
        if host.core is None:
            world.start(host)
    world.run(world.now + 60)
    assert world.watch.is_converged(), f"seed {seed}: 60 s after the last fault not everybody knows everybody"
    assert world.watch.has_one_coordinator(), f"seed {seed}: not one coordinator"
    assert world.watch.has_all_inventory(), f"seed {seed}: inventories are missing"
    return world


def fault(world: World, chance: random.Random) -> None:
    host = chance.choice(world.hosts)
    kind = chance.choice(
        ["crash", "power", "start", "start", "split", "heal", "heal", "cut", "freeze", "drain", "noise"]
    )
    world.watch.disturbed()
    if kind == "crash" and host.core is not None and len(world.living()) > 1:
        world.crash(host)
    elif kind == "power" and host.core is not None and len(world.living()) > 1:
        world.power_off(host)
    elif kind == "start" and host.core is None:
        world.start(host)
    elif kind == "split":
        few = set(chance.sample(world.hosts, chance.randint(1, len(world.hosts) - 1)))
        world.partition([each for each in world.hosts if each not in few], few)
    elif kind == "heal":
        world.heal()
    elif kind == "cut":
        other = chance.choice(world.hosts)
        if other is not host:
            world.cut(host, other)
    elif kind == "freeze":
        world.freeze(host, chance.uniform(0.5, 12))
    elif kind == "drain" and host.core is not None:
        world.about_is(host, draining=not host.is_draining)
    elif kind == "noise":
        world.inject(host, chance.choice(world.hosts), chance.randbytes(chance.randint(0, 200)))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_invariants_hold_and_peace_brings_everybody_together(seed: int) -> None:
    chaos(seed, 6, 3)


def test_seed_2032_old_pings_of_a_cut_stream_arrive_at_once() -> None:
    """Each was answered, 170 of them, and the bucket broken."""
    chaos(2032, 8, 4)


def test_the_preset_for_tests_does_the_same_in_a_tenth_of_the_time() -> None:
    world = settled(5, 1, TEST)
    victim, began = a_victim(world), world.now
    world.power_off(victim)
    assert dead_everywhere(world, victim, DEAD_S / 10 + 0.3)
    assert world.now - began < 2


# --- the watch watches --------------------------------------------------------------------------------------------


def test_the_watch_finds_bytes_above_the_bucket() -> None:
    world = settled(2, 1, LAN)
    with pytest.raises(Broken, match=r"^8:"):
        for _ in range(100):
            world.watch.sent(world.hosts[0], b"\x93\x05", 1000)


def test_the_watch_finds_a_term_that_falls() -> None:
    world = settled(2, 1, LAN)
    host = world.hosts[0]
    world.watch._terms[host] = 99
    world.watch._seen_claims.clear()
    with pytest.raises(Broken, match=r"^4:"):
        world.watch.stepped(host)


def test_the_watch_finds_an_incarnation_that_another_raised() -> None:
    world = settled(2, 1, LAN)
    host, other = world.hosts
    assert host.core is not None
    rumour = Rumour(peer=other.peer, rank=SUSPECT, run=EPOCH_MS * 2, incarnation=7, source=host.peer)
    with pytest.raises(Broken, match=r"^7:"):
        world.inject(host, other, CODEC.encode(Gossip(rumours=(rumour,))))


def test_the_watch_finds_a_false_death() -> None:
    world = settled(2, 1, LAN)
    host, other = world.hosts
    world.watch.changed(host, other, MemberChanged(peer=other.peer, before="suspect", after="dead"))
    assert world.watch.false_deaths
