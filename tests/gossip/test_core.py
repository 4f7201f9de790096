"""The core as a whole: garbage never raises, chance and time come only from outside, claims ride along."""

from __future__ import annotations

import random

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.codec import pack
from gossip.config import LAN
from gossip.core import CODEC, Core
from gossip.effects import CoordinatorChanged, Effect, Persist, Transmit
from gossip.election import Claim, Claimed, Heartbeat, HeartbeatAck, Scan, ScanAnswer
from gossip.member import About
from gossip.messages import Ack, Digest, Fetch, Gossip, Nack, Ping, PingReq, Rumour, Table, Values

ME, A, B = (letter * 52 for letter in "mab")
RUN = 1_700_000_000_000


def a_core(seed: int = 1, claim: Claim | None = None) -> Core:
    core = Core(me=ME, run=RUN, about=About(), config=LAN, rng=random.Random(seed), now=0.0, claim=claim)
    core.members_are({ME: "active", A: "active", B: "active"}, 0.0)
    return core


refs = st.sampled_from([ME[:12], A[:12], B[:12], A, "nobody", ""])
# small ones meet what is there, large ones the bounds
numbers = st.integers(0, 3) | st.integers(RUN - 1, RUN + 1) | st.integers(0, (1 << 63) - 1)
abouts = st.none() | st.builds(
    About,
    addresses=st.lists(st.text(max_size=9), max_size=2).map(tuple),
    draining=st.booleans(),
    eligibility=numbers,
    version=st.text(max_size=5),
)
rumours = st.lists(
    st.builds(
        Rumour, peer=refs, rank=st.integers(0, 4) | numbers, run=numbers, incarnation=numbers, source=refs, about=abouts
    ),
    max_size=3,
).map(tuple)
keys = st.sampled_from(["load", "inventory", "k" * 65])
facts = st.lists(st.tuples(refs, keys, numbers, numbers, st.binary(max_size=4)), max_size=3).map(tuple)
news = st.lists(st.tuples(refs, keys, numbers), max_size=3).map(tuple)
claims = st.builds(Claim, term=numbers, peer=st.sampled_from([ME, A, B, "nobody"]), is_solo=st.booleans())
packed = st.binary(max_size=4) | claims.map(pack)
digests = st.lists(numbers, max_size=70).map(tuple)
messages = st.one_of(
    st.builds(Ping, seq=numbers, rumours=rumours, facts=facts, news=news, claim=packed),
    st.builds(Ack, seq=numbers, rumours=rumours, facts=facts, news=news, claim=packed),
    st.builds(Gossip, rumours=rumours, facts=facts, news=news, claim=packed),
    st.builds(PingReq, seq=numbers, target=refs),
    st.builds(Nack, seq=numbers),
    st.builds(Digest, digests=digests, claim=packed),
    st.builds(
        Table, width=numbers, buckets=digests, rumours=rumours, news=news, facts=facts, is_answer=st.booleans(),
        claim=packed,
    ),
    st.builds(Fetch, wanted=news),
    st.builds(Values, facts=facts),
    st.builds(Heartbeat, claim=st.none() | claims),
    st.builds(HeartbeatAck, claim=st.none() | claims, is_in_office=st.booleans()),
    st.builds(Scan, number=numbers, claim=st.none() | claims),
    st.builds(ScanAnswer, number=numbers, hears=st.booleans(), may_claim=st.booleans(), claim=st.none() | claims),
    st.builds(Claimed, claim=claims),
)  # fmt: skip
frames = messages.map(CODEC.encode) | st.binary(max_size=60)
steps = st.lists(
    st.tuples(
        st.sampled_from([A, B, "stranger" * 6]),
        frames,
        st.floats(0, 5),
        st.sampled_from(["", "connected", "disconnected", "parted", "heard", "hinted", "tick"]),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(steps, st.integers(0, 9))
def test_no_frame_in_no_order_raises_and_what_comes_out_is_well_formed(
    told: list[tuple[str, bytes, float, str]], seed: int
) -> None:
    core = a_core(seed)
    now = 0.0
    for sender, frame, later, also in told:
        now += later
        effects = core.receive(sender, frame, now)
        if also == "tick":
            effects += core.tick(now)
        elif also:
            effects += getattr(core, also)(sender, now)
        check(core, effects)
    for _ in range(40):
        now = max(now, core.wake_at)
        check(core, core.tick(now))


def check(core: Core, effects: list[Effect]) -> None:
    for effect in effects:
        if isinstance(effect, Transmit):
            assert effect.to in (A, B)
            CODEC.decode(effect.data)
    assert 0 <= core.health <= LAN.health_max
    assert {member.peer for member in core.members()} == {A, B}


@given(st.data(), messages)
def test_a_damaged_frame_never_raises(data: st.DataObject, message: object) -> None:
    frame = bytearray(CODEC.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    core = a_core()
    check(core, core.receive(A, bytes(frame), 1.0))


def test_garbage_is_counted_and_changes_nothing() -> None:
    core = a_core()
    before = core.members()
    for frame in (b"", b"\xc1", msgpack.packb([1]), msgpack.packb([99, 1]), b"\x91" * 3000):
        assert core.receive(A, frame, 1.0) == []
    assert core.garbage == 5
    assert core.members() == before


def test_the_same_seed_and_inputs_give_the_same_effects() -> None:
    def effects() -> list[Effect]:
        core = a_core(seed=5)
        rumour = Rumour(peer=A[:12], rank=0, run=RUN, incarnation=0, about=About())
        found = core.receive(A, CODEC.encode(Gossip(rumours=(rumour,))), 0.1)
        while core.wake_at < 20.0:
            found += core.tick(core.wake_at)
        return found

    assert effects() == effects()


def test_a_claim_that_rides_along_is_persisted_before_anything_tells_of_it() -> None:
    core = a_core()
    claim = Claim(term=4, peer=A)
    effects = core.receive(A, CODEC.encode(Ping(seq=1, claim=pack(claim))), 1.0)
    assert effects[0] == Persist(claim=claim)
    assert CoordinatorChanged(claim=claim) in effects
    assert core.coordinator == claim


def test_the_highest_claim_rides_on_messages_for_a_while_and_on_every_sync() -> None:
    claim = Claim(term=4, peer=A)
    core = a_core(claim=claim)
    (ack,) = [
        CODEC.decode(each.data)
        for each in core.receive(B, CODEC.encode(Ping(seq=1)), 0.5)[:1]
        if isinstance(each, Transmit)
    ]
    assert isinstance(ack, Ack)
    assert ack.claim == pack(claim)
    digests = [
        message
        for effect in core.connected(B, 5.0)
        if isinstance(effect, Transmit) and isinstance(message := CODEC.decode(effect.data), Digest)
    ]
    assert [digest.claim for digest in digests] == [pack(claim)]


def test_who_tells_a_lower_claim_is_told_the_higher() -> None:
    core = a_core(claim=Claim(term=4, peer=A))
    effects = core.receive(B, CODEC.encode(Gossip(claim=pack(Claim(term=3, peer=B)))), 1.0)
    told = [CODEC.decode(effect.data) for effect in effects if isinstance(effect, Transmit) and effect.to == B]
    assert any(isinstance(each, Gossip) and each.claim == pack(Claim(term=4, peer=A)) for each in told)
    assert core.claim == Claim(term=4, peer=A)


def test_pinging_oneself_is_impossible() -> None:
    core = a_core()
    assert core.receive(ME, CODEC.encode(Ping(seq=1)), 1.0) == []
    assert core.hinted(ME, 1.0) == []
    assert core.disconnected(ME, 1.0) == []
