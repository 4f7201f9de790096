"""What must hold of admin maps, said in other words than the product's: looked at after everything that happens.

At any moment, on each peer: a row is one that its author made, and was taken only while the author was a signer there
and not dated ahead of the clock there; what is held gives way to what is later, and to nothing else; what is over stays
over; a restart loses nothing; a clock does not go back; an edit is called superseded when it was, once, where it was
made. After a while without faults: see `settled`. Everything here raises AssertionError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gossip.identity import PeerId
from mesh.admin.admin import Admin
from mesh.admin.clock import NEVER, Clock
from mesh.admin.map import AdminMap
from mesh.admin.rows import BEFORE_MAX, ENDED, Row
from tests.sim.admin_peer import Peer

DAY_S = 86_400.0
KEPT_MS = 30 * 86_400_000
AHEAD_MS = 60_000
CLOSED = "user/"
"""What guests do not get."""
FOR_EVER = ("key/", "peer/", "user/")

Name = tuple[str, str]
Rows = dict[Name, Row]
Edit = tuple[str, str, bytes, Clock]
"""What somebody wrote, whoever answers for it now."""


@dataclass(slots=True)
class Known:
    """What was seen of a peer at the last look."""

    rows: Rows = field(default_factory=dict)
    map: AdminMap | None = None
    process: Admin | None = None
    clock: Clock = NEVER
    may_go_back: bool = False
    last_synced_ms: int = 0
    was_ahead_of_disk: bool = False
    pending: list[tuple[str, Mapping[str, bytes]]] = field(default_factory=list)
    came: Counter[Row] = field(default_factory=Counter)
    """How often each own row came to be in the map: once, unless it was lost and came back from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What must be everywhere once all have compared: at least these clocks, and these keys over."""

    newest: Mapping[Name, Row]
    is_apart_for_long: bool


class Watch:
    """Remembers what every peer made and held."""

    def __init__(self) -> None:
        self.made: set[Row] = set()
        self.forged: set[Row] = set()
        self._before: dict[Row, frozenset[Edit]] = {}
        self._known: dict[str, Known] = {}
        self._peers: dict[PeerId, Peer] = {}
        self._over: set[str] = set()
        self._told: Counter[tuple[str, Row]] = Counter()

    def before(self, row: Row) -> frozenset[Edit]:
        """What its author, and those before, had read of it."""
        return self._before.get(row, frozenset())

    # -- what is going to happen

    def written(self, peer: Peer, key: str, values: Mapping[str, bytes]) -> None:
        """These rows may appear there from now on."""
        self._of(peer).pending.append((key, values))

    def not_written(self, peer: Peer) -> None:
        """They may not: it was refused."""
        self._of(peer).pending.pop()

    def clock_set(self, peer: Peer, *, back: bool) -> None:
        self._of(peer).may_go_back |= back

    # -- at any moment

    def look(self, peers: Sequence[Peer]) -> None:
        """Those that may have made rows come first."""
        found = [
            (peer, known, rows)
            for peer in peers
            if peer.admin is not None and self._is_changed(peer, known := self._of(peer), rows := _rows_of(peer))
        ]
        for peer, known, rows in found:
            for row in rows.values():
                if row.author == peer.id and row not in self.made:
                    self._made(peer, known, row)
        for peer, known, rows in found:
            self._check_new(peer, known, rows)
            self._check_kept(peer, known, rows)
            self._check_lost(peer, known, rows)
            self._check_clock(peer, known)
        for peer, known, rows in found:
            self._remember(peer, known, rows)

    def _is_changed(self, peer: Peer, known: Known, rows: Rows) -> bool:
        assert peer.admin is not None
        replica = peer.admin.replica
        is_as_before = known.process is peer.admin and known.map is replica.map and known.rows == rows
        known.last_synced_ms = replica.last_synced_ms if is_as_before else known.last_synced_ms
        return not is_as_before or bool(peer.told_lost or known.pending) or known.clock != replica.clock.last

    def _of(self, peer: Peer) -> Known:
        self._peers[peer.id] = peer
        return self._known.setdefault(peer.name, Known())

    def _made(self, peer: Peer, known: Known, row: Row) -> None:
        """Why this peer signed a row that nobody has seen before: somebody edited, or it had to be signed anew."""
        assert row not in self.forged, f"{peer.name} holds a forged row: {row}"
        old = known.rows.get((row.key, row.field))
        held = [each for (key, _), each in known.rows.items() if key == row.key]
        if _is_pending(known, row):
            self._note_write(peer, row, held)
            return
        is_same = old is not None and old.value == row.value
        assert old is not None and is_same, f"{peer.name} made up {row}"
        if old.author == peer.id:
            assert old.field != ENDED and old.clock.ms > peer.now_ms() + AHEAD_MS, f"{peer.name} signed {old} again"
            assert row.clock.ms <= peer.now_ms() + AHEAD_MS, f"{peer.name} dated {row} ahead"
        else:
            assert old.author not in peer.signers, f"{peer.name} signed what {self._peers[old.author].name} wrote"
            assert row.clock == old.clock, f"{peer.name} dated {old} anew: {row.clock}"
        self._before[row] = self.before(old) | {_edit(old)}
        self.made.add(row)

    def _note_write(self, peer: Peer, row: Row, held: Sequence[Row]) -> None:
        if row.field != ENDED:
            limit = peer.now_ms() + AHEAD_MS
            later = [each for each in held if row.clock <= each.clock and each.clock.ms <= limit]
            assert not later, f"{peer.name} dated {row} before what it had read: {later}"
        read = [each for each in held if row.field in (each.field, ENDED)]
        self._before[row] = frozenset().union(*({_edit(each)} | self.before(each) for each in read))
        self.made.add(row)

    def _check_new(self, peer: Peer, known: Known, rows: Rows) -> None:
        is_restart = known.process is not peer.admin
        for name, row in rows.items():
            if known.rows.get(name) == row:
                continue
            assert row not in self.forged, f"{peer.name} holds a forged row: {row}"
            if row not in self.made:  # its author has lost it since, in a crash, or because it was due to be collected
                author = self._peers[row.author]
                self._made(author, self._of(author), row)
            if is_restart or row.author == peer.id:
                continue
            assert row.author in peer.signers, f"{peer.name} took {row} of one who is no signer"
            is_ahead = row.field != ENDED and row.clock.ms > peer.now_ms() + AHEAD_MS
            assert not is_ahead, f"{peer.name} took {row}, dated ahead"

    def _check_kept(self, peer: Peer, known: Known, rows: Rows) -> None:
        if known.process is not peer.admin:
            pending = {key for key, _ in known.pending}
            lost = {name: row for name, row in known.rows.items() if rows.get(name) != row and name[0] not in pending}
            assert known.was_ahead_of_disk or not lost, f"{peer.name} lost over a restart: {lost}"
            return
        assert peer.admin is not None
        is_copy = known.map is not peer.admin.replica.map
        if is_copy:
            self._check_made_since(peer, known, rows)
        for name, old in known.rows.items():
            new = rows.get(name)
            if new == old or (old.field != ENDED and (name[0], ENDED) in rows):
                continue
            if old.field == ENDED:
                self._check_over(peer, old, new, rows, is_copy=is_copy)
            elif not is_copy:
                assert _gives_way(peer, old, new), f"{peer.name} had {old}, and now {new}"

    def _check_over(self, peer: Peer, old: Row, new: Row | None, rows: Rows, *, is_copy: bool) -> None:
        """What was over stays over."""
        if new is not None or (is_copy and not peer.is_signer):
            return
        is_due = not old.key.startswith(FOR_EVER) and old.clock.ms < peer.now_ms() - KEPT_MS
        is_closed = not peer.is_signer and old.key.startswith(CLOSED)
        lives = [key for key, _ in rows if key == old.key]
        assert (is_due or is_closed) and not lives, f"{peer.name} forgot that {old.key} is over, {old.clock}"

    def _check_made_since(self, peer: Peer, known: Known, rows: Rows) -> None:
        """A copy was taken: what was made here since the last comparison is kept."""
        by_key: dict[str, list[Row]] = {}
        for (key, name), row in known.rows.items():
            if name != ENDED:  # of those more is asked
                by_key.setdefault(key, []).append(row)
        for key, held in by_key.items():
            is_new = all(row.clock.ms > known.last_synced_ms and row.author in peer.signers for row in held)
            is_there = any(name[0] == key for name in rows)
            assert is_there or not is_new, f"{peer.name} took a copy, and lost {held}"

    def _check_lost(self, peer: Peer, known: Known, rows: Rows) -> None:
        """Who edited is told that somebody else's edit counts, who did not know of theirs."""
        # By value: it may have been dated anew just before.
        told = {(row.key, row.field, row.value) for row, _ in peer.told_lost}
        for row, by in peer.told_lost:
            self._told[peer.name, row] += 1
            assert row.author == peer.id, f"{peer.name} was told of an edit of {self._peers[row.author].name}"
            assert _edit(row) not in self.before(by), f"{peer.name} was told that {row} lost to {by}, which had seen it"
            is_again = self._told[peer.name, row] > max(1, known.came[row])
            assert not is_again or known.was_ahead_of_disk, f"{peer.name} was told twice that {row} lost"
        peer.told_lost.clear()
        assert peer.admin is not None
        if known.process is not peer.admin or known.map is not peer.admin.replica.map:
            return
        for name, old in known.rows.items():
            by_row = rows.get((name[0], ENDED)) or rows.get(name)
            if old.author != peer.id or old.field == ENDED or by_row is None or by_row == old:
                continue
            if by_row.author == peer.id or by_row.value == old.value or (*name, old.value) in told:
                continue
            if _edit(old) in self.before(by_row):
                continue
            if any(_edit(old) in self.before(each) for each in self._between(old, by_row)):
                continue
            # Rows remember clocks, a few of them; two edits may have the same.
            is_too_long_ago = len(by_row.before) >= BEFORE_MAX and old.clock < by_row.before[-1]
            is_tie = old.clock in (by_row.over, *by_row.before)
            assert is_too_long_ago or is_tie, f"{peer.name} was not told that {old} lost to {by_row}"

    def _between(self, old: Row, new: Row) -> Iterator[Row]:
        """Rows that may have been there between these two."""
        return (row for row in self.made if row.key == old.key and row.field in (old.field, new.field))

    def _check_clock(self, peer: Peer, known: Known) -> None:
        assert peer.admin is not None
        clock = peer.admin.replica.clock.last
        if known.process is peer.admin:
            assert clock >= known.clock or known.may_go_back, f"the clock of {peer.name} went back: {clock}"

    def _remember(self, peer: Peer, known: Known, rows: Rows) -> None:
        assert peer.admin is not None
        replica = peer.admin.replica
        if known.process is not peer.admin:
            known.may_go_back = False
        known.came.update(r for name, r in rows.items() if r.author == peer.id and known.rows.get(name) != r)
        known.rows, known.map, known.process = rows, replica.map, peer.admin
        known.clock, known.last_synced_ms = replica.clock.last, replica.last_synced_ms
        known.was_ahead_of_disk = peer.is_ahead_of_disk
        known.pending.clear()

    # -- after a while without faults

    def promise(self, members: Sequence[Peer], now_ms: int, *, is_apart_for_long: bool) -> Promise:
        """What these machines hold between them, and must all hold once they have compared their maps.

        What a machine that was away for more than 30 days edited alone is not promised, if others were not. Of rows of
        departed members that is promised what their coordinator, the first, answers for.
        """
        signers = [peer for peer in members if peer.is_signer]
        stale = [peer for peer in signers if peer.admin and peer.admin.replica.last_synced_ms < now_ms - KEPT_MS]
        newest: Rows = {}
        for peer in signers:
            rows = self._of(peer).rows
            self._over |= {key for key, name in rows if name == ENDED}
            if peer in stale and len(stale) < len(signers):
                continue
            for name, row in rows.items():
                is_dated_ahead = row.clock.ms > now_ms + AHEAD_MS
                if (row.author in peer.signers or peer is signers[0]) and not is_dated_ahead:
                    newest[name] = max(newest.get(name, row), row, key=lambda each: each.clock)
        return Promise(newest=newest, is_apart_for_long=is_apart_for_long)

    def settled(self, members: Sequence[Peer], promise: Promise, now_ms: int) -> None:
        """All have compared their maps: they are equal, the newest is there, and what is over is over."""
        signers = [peer for peer in members if peer.is_signer]
        first = _rows_of(signers[0])
        for peer in signers:
            rows = _rows_of(peer)
            assert rows == first, f"{signers[0].name} and {peer.name} differ: {_difference(first, rows)}"
            assert peer.admin is not None and signers[0].admin is not None
            assert peer.admin.replica.map.digest() == signers[0].admin.replica.map.digest(), "equal rows, other digests"
        for peer in members:
            if not peer.is_signer:
                open_rows = {name: row for name, row in first.items() if not name[0].startswith(CLOSED)}
                # What it ended itself before it heard that it is a guest counts there alone.
                rows = {
                    name: row
                    for name, row in _rows_of(peer).items()
                    if row.author in peer.signers or row.field != ENDED
                }
                own = {name[0] for name in _rows_of(peer).keys() - rows.keys()}
                open_rows = {name: row for name, row in open_rows.items() if name[0] not in own}
                assert rows == open_rows, f"{peer.name} is a guest, and differs: {_difference(open_rows, rows)}"
        for row in first.values():
            assert row.author in signers[0].signers, f"{row} is of one who is no signer"
        ended = {key for key, name in first if name == ENDED}
        for name, row in promise.newest.items():
            if name[0] in ended or name[1] == ENDED:
                continue
            assert name in first, f"{row} is gone"
            assert first[name].clock >= row.clock, f"{row} was the newest, and {first[name]} counts"
        for key in self._over:
            if promise.is_apart_for_long and not key.startswith(FOR_EVER):
                continue
            assert not any(name[0] == key and name[1] != ENDED for name in first), f"{key} was over, and lives"
            assert key in ended or not key.startswith(FOR_EVER), f"nobody knows any more that {key} is over"


def _rows_of(peer: Peer) -> Rows:
    assert peer.admin is not None
    return {(row.key, row.field): row for row in peer.admin.replica.map.all_rows()}


def _edit(row: Row) -> Edit:
    return row.key, row.field, row.value, row.clock


def _is_pending(known: Known, row: Row) -> bool:
    return any(key == row.key and values.get(row.field) == row.value for key, values in known.pending)


def _gives_way(peer: Peer, old: Row, new: Row | None) -> bool:
    """True if what was held may go for that."""
    is_departed = old.author not in peer.signers
    if new is None:
        return is_departed or (not peer.is_signer and old.key.startswith(CLOSED))
    if new.clock == old.clock:
        return (new.author in peer.signers, new.author, new.value) > (not is_departed, old.author, old.value)
    return new.clock > old.clock or old.clock.ms > peer.now_ms() + AHEAD_MS


def _difference(one: Rows, other: Rows) -> str:
    names = sorted({name for name in one.keys() | other.keys() if one.get(name) != other.get(name)})
    return "; ".join(f"{'/'.join(name)}: {one.get(name)} and {other.get(name)}" for name in names)
