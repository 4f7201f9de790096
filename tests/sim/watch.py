"""What the simulator sees: the invariants, checked on every step, and the figures.

Invariants, by the numbers of docs: 4 terms never fall on a peer; 6 no live, reachable peer is called dead; 7 only its
owner raises an incarnation; 8 bytes stay within the buckets; 10 garbage never raises (by running at all).
5 (one coordinator after a heal) is asked for by the scenarios, when things had time to settle.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from typing import TYPE_CHECKING

from gossip.effects import MemberChanged
from gossip.election import Claim
from gossip.messages import ELECTION_TAG, TAGS, Digest, Fetch, Table, Values

if TYPE_CHECKING:
    from tests.sim.world import Host, World

BULK_TAGS = {tag for tag, cls in TAGS.items() if cls in (Digest, Table, Fetch, Values)}
# After a fault of the network, for so long deaths may still be announced that it caused.
DISTURBED_S = 60.0


class Broken(AssertionError):
    """An invariant does not hold."""


class Watch:
    def __init__(self, world: World) -> None:
        self._world = world
        self._disturbed_until = -math.inf
        self._stalled_until: dict[Host, float] = defaultdict(lambda: -math.inf)
        self._terms: dict[Host, int] = {}
        self._seen_claims: dict[Host, Claim | None] = {}
        self._levels: dict[Host, tuple[float, float]] = {}
        self._bulk_levels: dict[Host, tuple[float, float]] = {}
        self.level_max = 0.0
        self.bytes: dict[Host, int] = defaultdict(int)
        self.bytes_by_kind: dict[str, int] = defaultdict(int)
        self.messages = 0
        self.dials = 0
        self.suspicions: list[tuple[float, Host, Host]] = []
        self.deaths: list[tuple[float, Host, Host]] = []
        self.false_deaths: list[tuple[float, Host, Host]] = []
        self.avoids: list[tuple[float, Host, Host]] = []
        self.offices: list[tuple[float, Host, Claim | None]] = []

    # --- the world tells --------------------------------------------------------------------------

    def disturbed(self, seconds: float = DISTURBED_S) -> None:
        """From now on deaths may be told that are nobody's mistake."""
        self._disturbed_until = math.inf if self._is_split() else self._world.now + seconds

    def stalled(self, host: Host, until: float) -> None:
        self._stalled_until[host] = until

    def _is_split(self) -> bool:
        return bool(self._world.cut_ways) or any(host.side for host in self._world.hosts)

    def started(self, host: Host) -> None:
        self._seen_claims.pop(host, None)

    def ended(self, host: Host) -> None:
        pass

    def sent(self, host: Host, data: bytes, size: int) -> None:
        """Invariant 8, measured apart from the core's own accounts."""
        self.messages += 1
        self.bytes[host] += size
        tag = data[1]
        if tag >= ELECTION_TAG:
            self.bytes_by_kind["election"] += size
            return
        config, now = self._world.config, self._world.now
        if tag in BULK_TAGS:
            self.bytes_by_kind["bulk"] += size
            levels, rate = self._bulk_levels, config.bulk_bytes_per_s
            bound = 2.0 * config.bulk_burst_bytes + (1 << 18)
        else:
            self.bytes_by_kind["gossip"] += size
            levels, rate = self._levels, config.bytes_per_s
            bound = 2 * config.bytes_per_s * config.burst_s
        level, at = levels.get(host, (0.0, now))
        level = max(0.0, level - (now - at) * rate) + size
        levels[host] = (level, now)
        if levels is self._levels:
            self.level_max = max(self.level_max, level)
        if level > bound:
            raise Broken(
                f"8: host {host.index} sent {level:.0f} B more than {rate:.0f} B/s allow, tag {tag} at {now:.2f}"
            )

    def dialled(self, host: Host) -> None:
        self.dials += 1
        self.bytes[host] += 2700
        self.bytes_by_kind["set-up"] += 2700

    def stepped(self, host: Host) -> None:
        if host.core is None:
            return
        claim = host.core.claim
        if claim is not self._seen_claims.get(host):
            self._seen_claims[host] = claim
            term = claim.term if claim else 0
            if term < self._terms.get(host, 0):
                raise Broken(f"4: the term of host {host.index} fell from {self._terms[host]} to {term}")
            self._terms[host] = term

    def persisted(self, host: Host, claim: Claim) -> None:
        if host.claim is not None and claim.term < host.claim.term:
            raise Broken(f"4: host {host.index} writes {claim} over {host.claim}")

    def changed(self, host: Host, other: Host, event: MemberChanged) -> None:
        world = self._world
        view = host.core.member(other.peer) if host.core else None
        if (
            view is not None
            and other.core is not None
            and (view.run, view.incarnation) > (other.core.run, other.core.incarnation)
        ):
            raise Broken(f"7: host {host.index} has {view.run, view.incarnation} of host {other.index}")
        if event.before != "suspect" and event.after == "suspect":
            self.suspicions.append((world.now, host, other))
        if event.after == "dead":
            self.deaths.append((world.now, host, other))
            was_stalled = max(self._stalled_until[host], self._stalled_until[other]) + DISTURBED_S > world.now
            if other.core is not None and world.now > self._disturbed_until and not was_stalled:
                self.false_deaths.append((world.now, host, other))

    def avoided(self, host: Host, other: Host) -> None:
        self.avoids.append((self._world.now, host, other))

    def coordinates(self, host: Host, claim: Claim | None) -> None:
        self.offices.append((self._world.now, host, claim))

    # --- figures ----------------------------------------------------------------------------------

    def is_converged(self) -> bool:
        """Everybody living has everybody living as alive, and the others not."""
        world = self._world
        living = {host.peer for host in world.living()}
        return all(
            (view.state == "alive") == (view.peer in living)
            for host in world.living()
            if host.core is not None
            for view in host.core.members()
        )

    def has_one_coordinator(self) -> bool:
        """Invariant 5: everybody living follows the same, who lives and is in office."""
        living = self._world.living()
        claims = {host.core.coordinator for host in living if host.core}
        if len(claims) != 1:
            return False
        claim = claims.pop()
        return claim is not None and any(host.peer == claim.peer for host in living)

    def has_all_inventory(self) -> bool:
        """Slow facts arrived everywhere."""
        living = self._world.living()
        return all(
            a.core is not None
            and b.core is not None
            and getattr(a.core.fact(b.peer, "inventory"), "value", None)
            == getattr(b.core.fact(b.peer, "inventory"), "value", b"")
            for a in living
            for b in living
        )

    def age_of_load(self, host: Host, other: Host) -> float | None:
        fact = host.core.fact(other.peer, "load") if host.core else None
        if fact is None or not fact.value:
            return None
        set_at: float = struct.unpack("!d16x", fact.value)[0]
        return self._world.now - set_at


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan
