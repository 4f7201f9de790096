"""The constants of gossip: memberlist's LAN values, and a preset for tests on real sockets.

Source: hashicorp/memberlist config.go, DefaultLANConfig; Lifeguard (arXiv 1707.00788) section 4.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipConfig:
    # --- probing
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    relays: int = 3
    # A relay says "no answer" after this share of the time its asker has left: the answer must arrive before the end.
    nack_share: float = 0.8
    health_max: int = 8
    late_s: float = 0.25
    # How many members, on average, look for themselves when they first hear a suspicion: confirmations come from
    # probes of their own, so a crash is confirmed within a probe instead of within a round of probes.
    second_opinions: float = 8.0
    # --- suspicion: minimum suspicion_mult * max(1, log10 n) * probe_interval_s, maximum suspicion_max_mult times that
    suspicion_mult: float = 4.0
    suspicion_max_mult: float = 6.0
    confirmations: int = 3
    # --- rumours
    gossip_interval_s: float = 0.2
    fanout: int = 3
    # Each rumour goes out retransmit_mult * ceil(log10(n + 1)) times.
    retransmit_mult: int = 4
    gossip_to_dead_s: float = 30.0
    # What may ride on a message: so that with framing it fits one TCP segment.
    message_bytes: int = 1100
    # --- sync and retries
    sync_interval_s: float = 30.0
    retry_interval_s: float = 30.0
    # A member that died a moment ago is retried more often: every 1/20 of the time since, at least this long.
    retry_min_s: float = 2.0
    # --- bytes
    bytes_per_s: float = 6000.0
    burst_s: float = 2.0
    bulk_bytes_per_s: float = 64_000.0
    bulk_burst_bytes: int = 1 << 19
    # What one small message costs on the wire beside its own bytes: WebSocket header with mask (up to 8), TLS record,
    # TCP/IP/Ethernet, and the ack.
    frame_overhead_bytes: int = 8 + 29 + 54 + 54
    # Versions of a fast fact that everybody passes on are so far apart that one round of all members' facts, sent this
    # many times over, fits bytes_per_s. Measured at 500 peers: with 1.6 far peers heard nothing at all for most of the
    # time, since the youngest of those nearby took all the room.
    wave_share: float = 3.0
    # Fast facts of others are passed on this many times.
    fact_sends: int = 2
    # --- bounds
    channels_max: int = 64
    # Above channels_max peers, each keeps about this many neighbours (a symmetric random graph).
    neighbours: int = 48
    facts_per_peer_max: int = 64
    fact_bytes_max: int = 1 << 18
    fast_fact_bytes_max: int = 1024
    fetch_timeout_s: float = 5.0
    # --- election
    heartbeat_interval_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    scan_s: float = 1.0
    scan_peers_max: int = 64
    quiet_start_s: float = 3.0


LAN = GossipConfig()
# A whole mesh on loopback, in seconds: every time a tenth.
TEST = GossipConfig(
    probe_interval_s=0.1,
    probe_timeout_s=0.05,
    gossip_interval_s=0.02,
    gossip_to_dead_s=3.0,
    sync_interval_s=3.0,
    retry_interval_s=3.0,
    retry_min_s=0.2,
    bytes_per_s=60_000.0,
    fetch_timeout_s=0.5,
    heartbeat_interval_s=0.1,
    heartbeat_timeout_s=0.3,
    scan_s=0.1,
    quiet_start_s=0.3,
)
