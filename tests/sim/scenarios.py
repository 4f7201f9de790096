"""What the command line measures: long runs, detection over many seeds, fail-over, splits. Each yields lines."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial

from gossip.config import GossipConfig
from tests.sim.watch import quantile
from tests.sim.world import Host, World


def settled(peers: int, seed: int, config: GossipConfig, *, loss: float = 0.0, load_interval_s: float = 0.0) -> World:
    """A mesh in which everybody knows everybody and one coordinates."""
    world = World(peers, seed=seed, config=config, loss=loss, load_interval_s=load_interval_s)
    world.start_all()
    both = world.run_until(
        lambda: world.are_all_up and world.watch.is_converged() and world.watch.has_one_coordinator(), 120, 0.5
    )
    assert both is not None, f"seed {seed}: {peers} peers did not come together"
    return world


def long_run(
    peers: int,
    seed: int,
    minutes: float,
    loss: float,
    load_interval_s: float,
    config: GossipConfig,
    *,
    is_joined: bool = False,
) -> Iterator[str]:
    world = World(peers, seed=seed, config=config, loss=loss, load_interval_s=load_interval_s)
    watch, step = world.watch, 0.5 if peers < 200 else 2.0
    if is_joined:
        world.start_joined()
    else:
        world.start_all()
    met = world.run_until(lambda: world.are_all_up and watch.is_converged(), 300, step)
    yield f"{peers} peers, loss {loss:.0%}: everybody knows everybody {_s(met)} after the first start"
    one = world.run_until(watch.has_one_coordinator, 300, step)
    yield f"one coordinator after {_s(one)}, inventories everywhere: {watch.has_all_inventory()}"
    yield from _bytes(world, world.now, "coming together")
    # what a start from nothing has put into the queues is spread first
    world.run(world.now + (60.0 if peers >= 200 else 10.0))
    yield from _bytes(world, world.now, "with what followed")
    began, ages = world.now, list[float]()
    calm_s = max(20.0, minutes * 60 - 150)
    while world.now < began + calm_s:
        world.run(world.now + 1.0)
        for _ in range(200):
            a, b = world.rng.sample(world.hosts, 2)
            if (age := watch.age_of_load(a, b)) is not None:
                ages.append(age)
    if ages:
        yield f"age of load p50 {quantile(ages, 0.5):.2f} s, p99 {quantile(ages, 0.99):.2f} s"
    yield from _bytes(world, calm_s, f"{calm_s:.0f} s of calm")
    hours = peers * calm_s / 3600
    yield f"in {hours:.1f} member-hours: {len(watch.suspicions)} suspicions, {len(watch.false_deaths)} false deaths"
    yield from _loss_of(world, "a process killed", world.crash)
    yield from _loss_of(world, "a machine lost", world.power_off)
    yield f"false deaths in all: {len(watch.false_deaths)}; {watch.messages} messages"


def _s(seconds: float | None) -> str:
    return "NOT" if seconds is None else f"{seconds:.1f} s"


def _bytes(world: World, seconds: float, what: str) -> Iterator[str]:
    watch = world.watch
    sent = [watch.bytes[host] / seconds for host in world.hosts]
    kinds = ", ".join(f"{kind} {sum_ / len(sent) / seconds:.0f}" for kind, sum_ in sorted(watch.bytes_by_kind.items()))
    yield (
        f"{what}: {sum(sent) / len(sent):.0f} B/s a peer, the most {max(sent):.0f} ({kinds}), "
        f"{watch.dials} dials, most above the rate {watch.level_max:.0f} B"
    )
    watch.bytes.clear()
    watch.bytes_by_kind.clear()
    watch.dials, watch.level_max = 0, 0.0


def _loss_of(world: World, what: str, end: object) -> Iterator[str]:
    assert callable(end)
    first = coordinator(world)
    victim = world.rng.choice([host for host in world.living() if host is not first])
    others = [host for host in world.living() if host is not victim]
    began = world.now
    end(victim)
    world.run_until(partial(is_dead, world, victim, began, others), began + 60, 0.25)
    watch = world.watch
    avoided = [at - began for at, _, other in watch.avoids if other is victim and at >= began]
    suspected = [at - began for at, _, other in watch.suspicions if other is victim and at >= began]
    dead = [at - began for at, _, other in watch.deaths if other is victim and at >= began]
    yield (
        f"{what}: avoided by {len(avoided)} after at most {max(avoided, default=0):.2f} s; suspected by a member p50 "
        f"{quantile(suspected, 0.5):.2f} s, p99 {quantile(suspected, 0.99):.2f} s; dead for {len(dead)} of "
        f"{len(others)}: first {min(dead, default=0):.2f} s, last {max(dead, default=0):.2f} s"
    )


def is_dead(world: World, victim: Host, since: float, others: list[Host]) -> bool:
    return sum(1 for at, _, other in world.watch.deaths if other is victim and at >= since) >= len(others)


def coordinator(world: World) -> Host:
    claim = next(host.core.coordinator for host in world.living() if host.core)
    assert claim is not None
    return world.by_peer[claim.peer]


def detection(peers: int, seed: int, runs: int, loss: float, config: GossipConfig) -> Iterator[str]:
    """A killed process and a lost machine, over many seeds."""
    for name in ("crash", "power_off"):
        avoided, suspected, dead, last = list[float](), list[float](), list[float](), list[float]()
        false_deaths = 0
        for at in range(runs):
            world = settled(peers, seed + at, config, loss=loss)
            world.run(world.now + 3 + world.rng.random())
            victim = world.rng.choice([host for host in world.hosts if host is not coordinator(world)])
            began, others = world.now, [host for host in world.hosts if host is not victim]
            getattr(world, name)(victim)
            world.run_until(partial(is_dead, world, victim, began, others), began + 120, 0.5)
            watch = world.watch
            avoided += [t - began for t, _, other in watch.avoids if other is victim and t >= began]
            suspected += [t - began for t, _, other in watch.suspicions if other is victim and t >= began]
            times = [t - began for t, _, other in watch.deaths if other is victim and t >= began]
            dead += times
            last.append(max(times) if len(times) == len(others) else float("inf"))
            false_deaths += len(watch.false_deaths)
            gc.collect()
        yield (
            f"{name} x{runs}, {peers} peers, loss {loss:.0%}: avoided p99 {quantile(avoided, 0.99):.2f} | suspected "
            f"by a member p50 {quantile(suspected, 0.5):.2f} p99 {quantile(suspected, 0.99):.2f} | dead each p50 "
            f"{quantile(dead, 0.5):.2f} p99 {quantile(dead, 0.99):.2f} | everywhere p50 {quantile(last, 0.5):.2f} p99 "
            f"{quantile(last, 0.99):.2f} max {max(last):.2f} s | false deaths {false_deaths}"
        )


def failover(peers: int, seed: int, runs: int, loss: float, config: GossipConfig) -> Iterator[str]:
    """The coordinator's process killed, its machine lost: when everybody follows the next."""
    for name in ("crash", "power_off"):
        taken, agreed = list[float](), list[float]()
        for at in range(runs):
            world = settled(peers, seed + at, config, loss=loss)
            world.run(world.now + 5 + world.rng.random())
            old, began = coordinator(world), world.now
            getattr(world, name)(old)
            done = world.run_until(partial(agree, world, world.living(), old), began + 60, 0.05)
            agreed.append(done - began if done else float("inf"))
            taken += [
                t - began for t, host, claim in world.watch.offices
                if t > began and claim and claim.peer == host.peer and not claim.is_solo
            ][:1]  # fmt: skip
            gc.collect()
        yield (
            f"coordinator, {name} x{runs}, {peers} peers, loss {loss:.0%}: next p50 {quantile(taken, 0.5):.2f} "
            f"p99 {quantile(taken, 0.99):.2f}, all follow it p50 {quantile(agreed, 0.5):.2f} p99 "
            f"{quantile(agreed, 0.99):.2f} max {max(agreed):.2f} s"
        )


def agree(world: World, group: list[Host], but: Host | None = None) -> bool:
    """The group follows one of itself."""
    claims = {host.core.coordinator for host in group if host.core}
    claim = claims.pop() if len(claims) == 1 else None
    return claim is not None and any(host.peer == claim.peer and host is not but for host in group)


def splits(seed: int, runs: int, loss: float, config: GossipConfig) -> Iterator[str]:
    """Partitions: when each side has its coordinator, and after the heal all have one."""
    for small, large in ((2, 3), (2, 18), (5, 45)):
        without, healed, known = list[float](), list[float](), list[float]()
        for at in range(runs):
            world = settled(small + large, seed + at, config, loss=loss)
            world.run(world.now + 5 + world.rng.random())
            first = coordinator(world)
            others = [host for host in world.hosts if host is not first]
            # by turns the coordinator is with the many and with the few
            size = small if at % 2 == 0 else large
            lost = world.rng.sample(others, size)
            rest = [host for host in world.hosts if host not in lost]
            world.partition(rest, lost)
            began = world.now
            done = world.run_until(partial(agree, world, lost), began + 120, 0.05)
            without.append(done - began if done else float("inf"))
            world.run(max(world.now, began + 60))
            world.heal()
            began = world.now
            done = world.run_until(world.watch.has_one_coordinator, began + 120, 0.05)
            healed.append(done - began if done else float("inf"))
            done = world.run_until(world.watch.is_converged, began + 120, 0.1)
            known.append(done - began if done else float("inf"))
            gc.collect()
        yield (
            f"split {small}|{large} x{runs}, loss {loss:.0%}: the side without has its coordinator after p50 "
            f"{quantile(without, 0.5):.2f} p99 {quantile(without, 0.99):.2f} s; after the heal one coordinator p50 "
            f"{quantile(healed, 0.5):.2f} p99 {quantile(healed, 0.99):.2f} s, all members alive p50 "
            f"{quantile(known, 0.5):.2f} p99 {quantile(known, 0.99):.2f} s"
        )
