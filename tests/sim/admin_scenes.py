"""Scenes from the life of a mesh, played before random walks (tests.sim.admin): what those rarely meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from mesh.admin.exchange import ROWS_PATH, SYNC_PATH
from mesh.admin.map import BUCKETS
from mesh.admin.messages import CODEC, Ask, Compared, Push
from mesh.admin.rows import Row, written
from tests.sim.admin_watch import DAY_S
from tests.sim.admin_world import World

NAMES = "abcd"
ALL = frozenset(NAMES)
"""As those who miss the news."""


def clocks_apart(world: World) -> None:
    """Clocks differ by most of a minute, and each edits what another has just written."""
    for name in "abcdbadcab":
        assert world.write(name, "setting/a", {"name": ord(name)}), "an edit by a clock that is behind counts too"
        world.time_passes(0.5)


def ended_and_edited(world: World) -> None:
    """A key is ended, and edited by somebody who has not heard: the edit reaches who ended it, or the other way."""
    for apart_s in (0.0, 60.0):
        for is_heard in (True, False):
            key = world.new_key("a", "key")
            world.write("a", key, {"name": 1, "note": 1})
            world.end("b", key, ALL)
            world.time_passes(apart_s)
            world.write("c", key, {"name": 2}, ALL - {"b"} if is_heard else ALL)
            world.compare("c", "b")
            world.compare("d", "c")
            world.settle()


def in_the_same_millisecond(world: World) -> None:
    """Everybody edits the same field."""
    for round_ in range(3):
        with world.same_moment():
            for name in NAMES:
                world.write(name, "setting/a", {"name": ord(name) + round_}, ALL)
        for one, other in ("ab", "cd", "db", "ca"):
            world.compare(one, other)
        world.time_passes(5.0)
        world.settle()


def departed_member(world: World) -> None:
    """What a member wrote before it was revoked stays, dated as it was: edits that came later are not undone."""
    world.write("d", "setting/a", {"name": 1})
    world.write("d", "setting/b", {"name": 1})
    key = world.new_key("d", "key")
    world.write("d", key, {"name": 1})
    world.end("d", world.new_key("d", "key"))
    world.write("c", "setting/b", {"name": 2}, ALL)
    world.time_passes(9.0)
    world.revoke("a", "d")
    world.settle()


def thief(world: World) -> None:
    """Revoked, a machine goes on writing: nobody who has heard of it takes that, on whatever way it comes."""
    world.write("c", "setting/a", {"name": 1})
    world.revoke("a", "d")
    world.write("d", "setting/a", {"name": 2}, frozenset("c"))
    world.write("d", world.new_key("d", "user"), {"name": 2})
    world.compare("a", "b")
    world.compare("c", "d")
    world.gossip("a", "b")
    world.compare("b", "c")
    world.compare("a", "c")
    world.write("d", "setting/a", {"name": 3})
    for teller, to in ("bc", "cb", "ba", "ca"):
        world.push(teller, to, sorted(world.watch.made, key=lambda row: (row.clock, row.key)))
    world.settle()


def guest(world: World) -> None:
    """A guest has what guests may have, and what it signs counts nowhere; then it is trusted, and another is none."""
    for space in ("key", "user", "agent"):
        world.write("a", world.new_key("a", space), {"name": 1})
    world.demote("a", "d")
    for name in "bcd":
        world.gossip("a", name)
    key = world.new_key("b", "user")
    world.write("b", key, {"name": 1})
    assert key not in world.keys_known("d"), "a guest was told what is closed to it"
    told = world.deliver(world.peers["d"].id, "b", SYNC_PATH, _ask_of(world, range(BUCKETS)))
    assert b"user/" not in told and b"key/" in told, "a guest may ask for what guests may have"
    world.write("d", "setting/a", {"name": 1})
    for to in "abc":
        world.push("b", to, world.of_a_stranger("d", "setting/a"))
        world.deliver(world.peers["d"].id, to, ROWS_PATH, _push_of(world, "d", world.of_a_stranger("d", "setting/b")))
        world.push("b", to, world.of_a_stranger("x", "setting/a"))
    world.settle()
    world.demote("b", "c")
    world.trust("a", "d")
    world.end("c", world.new_key("c", "session"))
    world.settle()


def forged_rows(world: World) -> None:
    """Of every kind, to everybody, also of keys that were never there."""
    world.write("a", "setting/a", {"name": 1})
    for key in ("setting/a", "key/never"):
        for claimed, by in ("ab", "bc", "ca", "aa"):
            rows = world.forged(claimed, by, key, 20)
            for to in NAMES:
                world.push("d", to, rows)
    world.settle()


def clock_ahead(world: World) -> None:
    """A machine whose clock is hours ahead edits alone; its clock is set, and what it edited is dated anew."""
    for ahead_s in (90.0, 7200.0, 40 * DAY_S):
        world.write("a", "setting/a", {"name": 1})
        world.stop("c")
        world.start("c")
        world.set_clock("c", round(ahead_s * 1000))
        world.write("c", world.new_key("c", "key"), {"name": 2}, ALL)
        world.write("c", "setting/a", {"name": 2})
        for name in "abd":
            world.compare(name, "c")
        world.write("b", "setting/a", {"name": 3})
        world.settle()


def clock_behind(world: World) -> None:
    """A machine that woke up in 1970 hears the others, and ends a session and a key."""
    key = world.new_key("b", "key")
    world.write("b", key, {"name": 1})
    world.set_clock("c", -world.true_ms())
    world.stop("a")
    world.start("a")
    world.compare("c", "a")
    assert world.end("c", world.new_key("c", "session")) and world.end("c", key)
    assert world.end("a", world.new_key("a", "session")), "another's clock keeps nobody from ending"
    world.settle()


def crash_after_news(world: World) -> None:
    """Machines crash right after they heard, and right after they wrote."""
    key = world.new_key("a", "key")
    world.write("a", key, {"name": 1})
    world.end("a", key)
    for name in NAMES:
        world.write(name, "setting/b", {"note": ord(name)})
        world.stop(name)
        world.start(name)
    for at in (0.0005, 0.0015, 0.0025):
        world.crash_in_write("b", "setting/a", 4, at)
        world.start("b")
    world.settle()


def full_disk(world: World) -> None:
    """A machine whose disk is full hears that a key is over; nothing that it cannot keep is taken from its own user."""
    key = world.new_key("a", "key")
    world.write("a", key, {"name": 1})
    world.fill("b")
    world.end("a", key)
    admin = world.peers["b"].admin
    assert admin is not None and admin.is_ended(key), "a full disk does not keep a key from being revoked"
    assert not world.write("b", "setting/a", {"name": 1})
    world.stop("b")
    world.start("b")
    world.settle()


def long_absence(world: World) -> None:
    """Away for 33 days: endings that all others have forgotten stay, and so does what was ended and made alone."""
    keys = [world.new_key("a", space) for space in ("agent", "key", "agent", "key", "agent", "session")]
    for key in keys:
        world.write("a", key, {"name": 1})
    world.stop("c")
    world.end("a", keys[0])
    world.end("b", keys[1])
    world.days_pass(33.0)
    world.part([0, 0, 1, 0])
    world.start("c")
    for key in (keys[0], keys[2], keys[4]):
        world.write("c", key, {"note": 1})
    world.end("c", keys[2])
    world.end("c", keys[3])
    world.write("c", world.new_key("c", "key"), {"name": 1})
    world.settle()


def long_absence_of_all(world: World) -> None:
    """The house was empty for months: nobody has forgotten anything that another might bring back."""
    keys = [world.new_key("a", space) for space in ("agent", "agent", "key")]
    for key in keys:
        world.write("a", key, {"name": 1})
    world.end("b", keys[0])
    for name in NAMES:
        world.stop(name)
    world.days_pass(100.0)
    world.settle()


def away_while_one_is_revoked(world: World) -> None:
    """Who was away for long is the coordinator, and knows what the others do not: that one of them is out."""
    world.demote("a", "d")
    world.write("b", "setting/a", {"name": 1})
    world.revoke("a", "b")
    world.stop("a")
    world.days_pass(33.0)
    world.write("b", "setting/b", {"name": 1})
    world.start("a")
    world.settle()


def edits_that_lose(world: World) -> None:
    """Some had seen what they replaced, some had not; who lost is told once, and nobody else is."""
    for name in "abcd":
        world.write(name, "setting/a", {"name": ord(name)})
    for name in "abcd":
        world.write(name, "setting/a", {"name": ord(name)}, ALL)
        world.time_passes(1.0)
    for one, other in ("ad", "bd", "cd", "ab", "da"):
        world.compare(one, other)
        world.compare(one, other)
    world.settle()


def cut_off(world: World) -> None:
    """Comparisons that end in the middle, in both directions."""
    for round_ in range(3):
        for name in NAMES:
            world.write(name, world.new_key(name, "user"), {"name": 1, "note": 2}, ALL)
        for messages in (1, 2, 3):
            for one, other in ("ab", "ba", "cd", "dc", "ac"):
                world.compare(one, other, messages + round_)
    world.settle()


def old_messages(world: World) -> None:
    """Everything that was ever sent comes again, in another order, also when what was ended is forgotten."""
    key, agent = world.new_key("a", "key"), world.new_key("a", "agent")
    for value in range(3):
        world.write("a", key, {"name": value})
        world.write("b", agent, {"name": value})
    world.end("b", key)
    world.end("c", agent)
    for days in (0.0, 33.0):
        if days:
            world.days_pass(days)
        for number in range(len(world.pushes)):
            world.replay(len(world.pushes) - number, NAMES[number % 4])
    world.settle()


def garbage(world: World) -> None:
    """Messages and answers with bytes changed, cut off and made up."""
    for number in range(12):
        one, other = NAMES[number % 4], NAMES[(number // 4 + number + 1) % 4]
        world.write(one, world.new_key(one, "key"), {"name": number}, frozenset(other))
        world.lie = world.garbled
        world.compare(one, other)
        world.compare(other, one)
        world.lie = None
        for sender, body in list(world.pushes[-3:]):
            world.deliver(sender, other, ROWS_PATH, world.garbled(body))
            world.deliver(sender, other, SYNC_PATH, world.garbled(body))
    world.settle()


def lies_about_time(world: World) -> None:
    """A member whose clock shows the year 144,000, and who says that all endings up to then are forgotten."""

    def lie(data: bytes) -> bytes:
        message = CODEC.decode(data)
        if isinstance(message, Compared):
            message = dataclasses.replace(message, now_ms=2**52, last_synced_ms=2**52, horizon_ms=2**52)
        return CODEC.encode(message)

    world.write("a", "setting/a", {"name": 1}, frozenset("b"))
    world.lie = lie
    world.compare("b", "c")
    world.compare("b", "c")
    world.lie = None
    world.write("a", "setting/b", {"name": 2})
    world.settle()
    world.write("a", "setting/b", {"name": 3})
    world.settle()


def a_wrong_clock_leaves(world: World) -> None:
    """Whose clock was wrong is revoked: it has no say any more in what is dated ahead."""
    world.stop("c")
    world.start("c")
    world.set_clock("c", 7_200_000)
    world.write("c", "setting/a", {"name": 1})
    world.compare("a", "c")
    world.revoke("a", "c")
    world.tend("a")
    world.compare("a", "b")
    world.set_clock("c", 0)
    world.has_wrong_clocks = False
    assert world.write("a", "setting/a", {"name": 2})
    world.settle()


def _ask_of(world: World, buckets: Iterable[int]) -> bytes:
    return CODEC.encode(Ask(mesh=world.roster.mesh_id, buckets=tuple(buckets), have=b""))


def _push_of(world: World, teller: str, rows: Sequence[Row]) -> bytes:
    now_ms = world.peers[teller].now_ms()
    wire = tuple(written(row) for row in rows)
    return CODEC.encode(Push(mesh=world.roster.mesh_id, now_ms=now_ms, last_synced_ms=now_ms, rows=wire))


DIRECTED: tuple[Callable[[World], None], ...] = (
    clocks_apart,
    ended_and_edited,
    in_the_same_millisecond,
    departed_member,
    thief,
    guest,
    forged_rows,
    clock_ahead,
    clock_behind,
    crash_after_news,
    full_disk,
    long_absence,
    long_absence_of_all,
    away_while_one_is_revoked,
    edits_that_lose,
    cut_off,
    old_messages,
    garbage,
    lies_about_time,
    a_wrong_clock_leaves,
)
SKEWS_MS = (-25_000, 20_000, -9_000, 25_000)


def played(scene: Callable[[World], None], seed: int = 1) -> None:
    """Plays it, on clocks that differ. Raises what goes wrong."""
    world = World(NAMES, seed=seed, skews_ms=SKEWS_MS)
    try:
        scene(world)
        world.settle()
    finally:
        world.close()
