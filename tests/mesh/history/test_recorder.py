"""Every request leaves one Start and one End, no request waits long for the disk, and nothing here ever fails one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, TypeVar

import pytest

from inference.chat import Started, Usage
from mesh.history.bodies import BODY_BYTES_MAX, LIGHT_BYTES_MAX
from mesh.history.entries import Audit, End, Entry, LogId, Start, decode
from mesh.history.recorder import WAIT_S_MAX, Ack, Clocks, Recorder, actor_of, is_acknowledged, record_ids, strictest
from mesh.history.writer import BUSY_S, GROUP_S, LINGER_S, Place, Writer
from tests.fixtures.history_disk import FakeStore
from tests.fixtures.virtual_loop import Network, VirtualLoop
from web.services import Asked, AuditNote, Caller, Outcome, Record, Recording

T = TypeVar("T")

CALLER = Caller(ip="10.0.0.7", key_id="k1", key_name="laptop", username="ann")
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hällo sk-secret"}]}
ANSWER: dict[str, Any] = {"id": "chatcmpl-1", "choices": [{"message": {"content": "sk-secret too"}}]}
USAGE = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2)


def virtually(work: Callable[[], Awaitable[T]]) -> T:
    """Runs it on a clock that jumps. The seconds are exact."""
    loop = VirtualLoop(Network(1))
    try:
        return loop.run_until_complete(asyncio.wait_for(work(), 1000))
    finally:
        loop.close()


class House:
    """A recorder over a disk that a test may hold."""

    def __init__(self, bodies: Recording = "full", ack: Ack = "local", bytes_max: int = 2**20) -> None:
        loop = asyncio.get_running_loop()
        self.store = FakeStore("me")
        self.is_open = True
        self.bodies, self.ack = bodies, ack
        self.elsewhere: Callable[[Place], Awaitable[bool]] = _at_once
        self.writer = Writer(store=lambda: self.store if self.is_open else None, clock=loop.time, bytes_max=bytes_max)
        self.recorder = Recorder(
            writer=self.writer,
            bodies=lambda: self.bodies,
            ack=lambda: self.ack,
            replicated=lambda place: self.elsewhere(place),
            redact=lambda text: text.replace("sk-secret", "***"),
            ip_of={"p1": "10.0.0.1", "p2": "10.0.0.2"}.__getitem__,
            new_id=record_ids(lambda: round(loop.time() * 1000), random.Random(1)),
            clocks=Clocks(now_ms=lambda: 1_000_000 + round(loop.time() * 1000), clock=loop.time),
        )

    @property
    def entries(self) -> list[Entry]:
        log = self.store.disk.logs.get(self.store.own)
        return [decode(item) for item in log.items if item is not None] if log is not None else []

    def begin(self, body: Mapping[str, Any] = BODY, caller: Caller = CALLER, **more: Any) -> Record:
        return self.recorder.begin(
            Asked(request_id="r", kind="chat", model="tiny", body=body, is_stream=True, caller=caller, **more)
        )

    async def took(self, record: Record, outcome: Outcome) -> float:
        """How long a client waits for the end of its request."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await record.ended(outcome)
        return round(loop.time() - began, 6)


async def _at_once(place: Place) -> bool:
    return True


@contextlib.asynccontextmanager
async def house(bodies: Recording = "full", ack: Ack = "local", bytes_max: int = 2**20) -> AsyncIterator[House]:
    made = House(bodies, ack, bytes_max)
    running = asyncio.create_task(made.writer.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def success(body: Mapping[str, Any] | None = None) -> Outcome:
    return Outcome(status="success", http_status=200, body=body, usage=USAGE)


def test_a_request_leaves_a_start_and_an_end_with_everything_that_is_known() -> None:
    """F6: every request is recorded."""

    async def play() -> None:
        async with house() as h:
            record = h.begin()
            await asyncio.sleep(1)
            record.started(Started(prompt_tokens=7, cached_tokens=2, peer="attic", peer_id="p1", attempts=2))
            record.first_token()
            await asyncio.sleep(1)
            record.first_token()
            record.started(
                Started(
                    prompt_tokens=7, cached_tokens=2, peer="attic", peer_id="p2", attempts=2, continued_on=("tower",)
                )
            )
            await asyncio.sleep(1)
            await record.ended(success(ANSWER))
            start, end = h.entries
            assert isinstance(start, Start)
            assert start == Start(
                id=start.id,
                at_ms=1_000_000,
                kind="chat",
                model="tiny",
                client_ip="10.0.0.7",
                key_id="k1",
                key_name="laptop",
                user="ann",
                stream=True,
                recording="full",
                request_body='{"model":"tiny","messages":[{"role":"user","content":"hällo ***"}]}'.encode(),
            )
            assert end == End(
                id=start.id,
                at_ms=1_003_000,
                status="success",
                http_status=200,
                node="p2",
                node_name="tower",
                node_ip="10.0.0.2",
                attempts=2,
                continued_on=("tower",),
                prompt_tokens=7,
                completion_tokens=3,
                cached_tokens=2,
                ttft_ms=1000,
                duration_ms=3000,
                response_body=b'{"id":"chatcmpl-1","choices":[{"message":{"content":"*** too"}}]}',
            )

    virtually(play)


def test_a_request_that_fails_keeps_its_error_and_no_body() -> None:
    async def play() -> None:
        async with house() as h:
            outcome = Outcome(status="error", http_status=404, message="no such model", code="model_not_found")
            await h.begin().ended(outcome)
            end = h.entries[1]
            assert isinstance(end, End)
            assert (end.status, end.http_status, end.message, end.code) == ("error", 404, "no such model", outcome.code)
            assert (end.node, end.node_name, end.prompt_tokens, end.ttft_ms, end.response_body) == (
                "",
                "",
                None,
                None,
                None,
            )

    virtually(play)


def test_a_second_end_is_not_written() -> None:
    async def play() -> None:
        async with house() as h:
            record = h.begin()
            await asyncio.gather(record.ended(success()), record.ended(Outcome(status="cancelled", http_status=499)))
            await record.ended(Outcome(status="error", http_status=500))
            assert [type(entry) for entry in h.entries] == [Start, End]
            assert isinstance(h.entries[1], End)
            assert h.entries[1].status == "success"

    virtually(play)


@pytest.mark.parametrize(
    ("setting", "key", "is_kept", "expected"),
    [
        ("full", None, True, "full"),
        ("full", "metadata", True, "metadata"),
        ("metadata", "full", True, "metadata"),
        ("full", "off", True, None),
        ("off", "full", True, None),
        ("full", "full", False, None),
        ("metadata", None, True, "metadata"),
    ],
)
def test_the_strictest_of_setting_key_and_request_decides_what_is_kept(
    setting: Recording, key: Recording | None, is_kept: bool, expected: str | None
) -> None:
    async def play() -> None:
        async with house(bodies=setting) as h:
            record = h.begin(caller=Caller(ip="", recording=key), is_kept=is_kept)
            record.started(Started(prompt_tokens=1, cached_tokens=0))
            record.first_token()
            await record.ended(success(ANSWER))
            await h.recorder.close()
            if expected is None:
                assert h.entries == []
                return
            start, end = h.entries
            assert isinstance(start, Start)
            assert isinstance(end, End)
            assert start.recording == expected
            assert (start.request_body is not None, end.response_body is not None) == ((expected == "full"),) * 2

    virtually(play)


def test_the_end_is_on_the_disk_when_the_client_gets_the_last_chunk() -> None:
    async def play() -> None:
        async with house() as h:
            record = h.begin()
            h.store.free.clear()
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, h.store.free.set)
            assert await h.took(record, success()) == 0.2
            assert isinstance(h.entries[-1], End)
            assert h.recorder.unacknowledged == 0

    virtually(play)


def test_starts_wait_for_company_and_what_a_client_waits_for_does_not() -> None:
    async def play() -> None:
        async with house() as h:
            first = h.begin()
            await asyncio.sleep(LINGER_S / 2)
            h.begin()
            assert h.entries == []
            await asyncio.sleep(LINGER_S)
            assert [type(entry) for entry in h.entries] == [Start, Start]
            assert await h.took(first, success()) == 0.0
            await asyncio.sleep(BUSY_S)
            assert await h.took(h.begin(), success()) == 0.0
            assert [type(entry) for entry in h.entries] == [Start, Start, End, Start, End]

    virtually(play)


def test_while_commits_follow_each_other_closely_clients_share_them() -> None:
    async def play() -> None:
        async with house() as h:
            h.store.write_s = 0.001
            waits: list[float] = []

            async def client(number: int) -> None:
                for _ in range(20):
                    await asyncio.sleep(0.001 * number)
                    waits.append(await h.took(h.begin(), success()))

            await asyncio.gather(*(client(number) for number in range(1, 9)))
            assert len(waits) == 160
            assert max(waits) <= GROUP_S + 2 * h.store.write_s + 1e-6
            assert h.store.commits < 80

    virtually(play)


def test_recording_goes_on_after_everything_was_written_once() -> None:
    async def play() -> None:
        async with house() as h:
            for _ in range(3):
                await h.recorder.close()
                assert await h.took(h.begin(), success()) <= GROUP_S
                h.begin()
                await h.recorder.close()
            assert len(h.entries) == 9
            assert h.recorder.unacknowledged == 0

    virtually(play)


def test_a_slow_disk_holds_a_client_for_a_quarter_of_a_second_and_the_record_comes_later() -> None:
    async def play() -> None:
        async with house() as h:
            h.store.free.clear()
            record = h.begin()
            assert await h.took(record, success()) == WAIT_S_MAX
            assert (h.recorder.unacknowledged, h.entries) == (1, [])
            h.store.free.set()
            await h.recorder.close()
            assert [type(entry) for entry in h.entries] == [Start, End]

    virtually(play)


def test_a_full_disk_holds_nobody_once_it_is_known_and_loses_nothing() -> None:
    """Drill 12: records wait in the outbox, and are written when there is room again, without a restart."""

    async def play() -> None:
        async with house() as h:
            h.store.is_full = True
            assert await h.took(h.begin(), success()) <= WAIT_S_MAX
            waits = [await h.took(h.begin(), success()) for _ in range(9)]
            assert waits == [0.0] * 9
            assert (h.recorder.unacknowledged, h.entries) == (10, [])
            h.store.is_full = False
            await h.recorder.close()
            assert [type(entry) for entry in h.entries] == [Start, End] * 10
            assert await h.took(h.begin(), success()) < WAIT_S_MAX
            assert h.recorder.unacknowledged == 10

    virtually(play)


def test_a_store_that_is_not_open_yet_is_a_disk_that_fails() -> None:
    async def play() -> None:
        async with house() as h:
            h.is_open = False
            await h.begin().ended(success())
            h.recorder.audit(AuditNote(action="key.create", caller=CALLER))
            h.is_open = True
            await h.recorder.close()
            assert [type(entry) for entry in h.entries] == [Start, End, Audit]

    virtually(play)


def test_a_request_from_before_the_file_could_be_opened_is_written_once() -> None:
    async def play() -> None:
        async with house() as h:
            opened, h.store.disk.own = h.store.own, LogId("me", 0)
            h.store.is_full = True
            await h.begin().ended(success())
            h.store.is_full, h.store.disk.own = False, opened
            await h.recorder.close()
            assert [type(entry) for entry in h.entries] == [Start, End]

    virtually(play)


def test_what_waits_is_bounded_and_what_is_dropped_is_counted() -> None:
    async def play() -> None:
        async with house(bytes_max=20_000) as h:
            h.store.is_full = True
            for _ in range(100):
                await h.begin({"model": "tiny", "prompt": "x" * 1000}).ended(success())
            assert h.writer.outbox.size_bytes <= 20_000
            assert h.writer.outbox.bodies_dropped > 0
            assert h.writer.outbox.entries_dropped > 0
            assert h.recorder.unacknowledged == 100

    virtually(play)


@pytest.mark.parametrize("how", ["no entry", "chokes"])
def test_an_entry_that_the_store_never_takes_does_not_hold_the_others(how: str) -> None:
    async def play() -> None:
        async with house() as h:
            h.store.poison = b"choke on this"
            h.store.free.clear()
            for number in range(4):
                h.recorder.audit(AuditNote(action=f"{number}", caller=CALLER))
            h.writer.put(
                End(id="bad", at_ms=-1, status="success")
                if how == "no entry"
                else Audit(at_ms=1, actor="", actor_kind="system", action="bad", detail="choke on this")
            )
            for number in range(4, 8):
                h.recorder.audit(AuditNote(action=f"{number}", caller=CALLER))
            h.store.free.set()
            await h.recorder.close()
            assert [entry.action for entry in h.entries if isinstance(entry, Audit)] == list("01234567")
            assert h.writer.outbox.entries_dropped == 1
            assert await h.took(h.begin(), success()) < WAIT_S_MAX
            assert not h.writer.outbox.is_sick

    virtually(play)


def test_a_client_that_is_cancelled_while_it_waits_leaves_its_record() -> None:
    async def play() -> None:
        async with house() as h:
            h.store.free.clear()
            ending = asyncio.create_task(h.begin().ended(success()))
            await asyncio.sleep(0.1)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            h.store.free.set()
            await h.recorder.close()
            assert [type(entry) for entry in h.entries] == [Start, End]

    virtually(play)


@pytest.mark.parametrize("which", ["request", "answer", "both"])
def test_large_bodies_are_made_in_a_thread_and_the_end_follows_its_start(which: str) -> None:
    async def play() -> None:
        large = {"prompt": "x" * (LIGHT_BYTES_MAX + 1)}
        async with house() as h:
            record = h.begin(large if which != "answer" else BODY)
            await record.ended(success(large if which != "request" else ANSWER))
            start, end = h.entries
            assert isinstance(start, Start)
            assert isinstance(end, End)
            assert len(start.request_body or b"") > LIGHT_BYTES_MAX or which == "answer"
            assert len(end.response_body or b"") > LIGHT_BYTES_MAX or which == "request"

    virtually(play)


def test_a_body_is_kept_up_to_a_bound_and_says_so() -> None:
    async def play() -> None:
        async with house(bytes_max=64 * 2**20) as h:
            await h.begin({"prompt": "é" * BODY_BYTES_MAX}).ended(success())
            start = h.entries[0]
            assert isinstance(start, Start)
            kept = json.loads(start.request_body or b"")
            assert "cut" in kept["note"]
            assert kept["beginning"].startswith('{"prompt":"ééé')
            assert len(kept["beginning"].encode()) <= BODY_BYTES_MAX

    virtually(play)


def test_a_fault_in_the_recorder_fails_no_request() -> None:
    async def play() -> None:
        async with house() as h:

            def broken(text: str) -> str:
                raise RuntimeError("a mistake of ours")

            h.recorder._redact = broken
            await h.begin().ended(success(ANSWER))
            h.recorder.audit(AuditNote(action="x", caller=None))  # type: ignore[arg-type]

    virtually(play)


def test_a_request_whose_start_was_lost_with_a_damaged_file_is_whole_in_the_new_one() -> None:
    async def play() -> None:
        async with house() as h:
            record = h.begin()
            await h.recorder.close()
            h.store.disk.begin_run(99_999_999)
            await record.ended(success(ANSWER))
            start, end = h.entries
            assert isinstance(start, Start)
            assert isinstance(end, End)
            assert start.id == end.id

    virtually(play)


def test_a_request_whose_end_is_what_finds_the_file_damaged_is_whole_in_the_new_one() -> None:
    async def play() -> None:
        async with house() as h:
            record = h.begin()
            await h.recorder.close()
            h.store.free.clear()
            ending = asyncio.create_task(record.ended(success(ANSWER)))
            await asyncio.sleep(0.01)
            h.store.disk.begin_run(99_999_999)
            h.store.free.set()
            await ending
            await h.recorder.close()
            first, start, end = h.entries
            assert isinstance(start, Start)
            assert isinstance(end, End)
            assert first == end
            assert start.id == end.id

    virtually(play)


# -- on another disk too


def test_replicated_waits_until_another_disk_has_it() -> None:
    async def play() -> None:
        async with house(ack="replicated") as h:
            places: list[Place] = []

            async def in_time(place: Place) -> bool:
                places.append(place)
                await asyncio.sleep(0.1)
                return True

            h.elsewhere = in_time
            assert await h.took(h.begin(), success()) == 0.1
            assert places == [Place(log=h.store.own, seq=2)]
            assert (h.recorder.unacknowledged, h.recorder.unreplicated) == (0, 0)

    virtually(play)


@pytest.mark.parametrize("how", ["late", "alone"])
def test_replicated_does_without_the_other_disk_when_it_must_and_says_so_once(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        async with house(ack="replicated") as h:

            async def never(place: Place) -> bool:
                if how == "late":
                    await asyncio.sleep(10)
                return False

            h.elsewhere = never
            for _ in range(3):
                assert await h.took(h.begin(), success()) == (WAIT_S_MAX if how == "late" else 0.0)
                await asyncio.sleep(BUSY_S)
            assert (h.recorder.unacknowledged, h.recorder.unreplicated) == (0, 3)
            h.elsewhere = _at_once
            await h.begin().ended(success())
            h.elsewhere = never
            await h.begin().ended(success())

    virtually(play)
    said = [record for record in caplog.records if "no other peer has them" in record.message]
    assert len(said) == 2, "once, and once more after it was well again"


def test_the_wait_for_both_disks_together_is_a_quarter_of_a_second() -> None:
    async def play() -> None:
        async with house(ack="replicated") as h:

            async def slow(place: Place) -> bool:
                await asyncio.sleep(0.2)
                return True

            h.elsewhere = slow
            h.store.free.clear()
            asyncio.get_running_loop().call_later(0.2, h.store.free.set)
            assert await h.took(h.begin(), success()) == WAIT_S_MAX
            assert (h.recorder.unacknowledged, h.recorder.unreplicated) == (0, 1)

    virtually(play)


@pytest.mark.parametrize(
    ("is_here", "ack", "is_elsewhere", "expected"),
    [
        (False, "local", True, False),
        (True, "local", False, True),
        (True, "replicated", False, False),
        (True, "replicated", True, True),
        (False, "replicated", True, False),
    ],
)
def test_a_record_is_acknowledged_when_it_is_where_it_has_to_be(
    is_here: bool, ack: Literal["local", "replicated"], is_elsewhere: bool, expected: bool
) -> None:
    async def play() -> None:
        place = Place(log=FakeStore("me").own, seq=1) if is_here else None
        assert is_acknowledged(place, ack, is_elsewhere=is_elsewhere) is expected

    virtually(play)


# -- who, and which


def test_an_action_is_written_down_with_who_did_it() -> None:
    async def play() -> None:
        async with house() as h:
            h.recorder.audit(AuditNote(action="key.create", caller=CALLER, target="k2", detail="for the tower"))
            await h.recorder.close()
            assert h.entries == [
                Audit(
                    at_ms=1_000_000,
                    actor="ann",
                    actor_kind="user",
                    action="key.create",
                    ip="10.0.0.7",
                    target="k2",
                    detail="for the tower",
                )
            ]

    virtually(play)


@pytest.mark.parametrize(
    ("caller", "expected"),
    [
        (Caller(ip="1.2.3.4", username="ann", key_id="k"), ("ann", "user")),
        (Caller(ip="127.0.0.1", key_id="control", is_local=True), ("control", "control")),
        (Caller(ip="1.2.3.4", key_id="k", key_name="laptop"), ("laptop", "key")),
        (Caller(ip="1.2.3.4", key_id="k"), ("k", "key")),
        (Caller(ip="127.0.0.1", is_local=True), ("loopback", "control")),
        (Caller(ip="1.2.3.4"), ("", "user")),
        (Caller(ip=""), ("", "system")),
    ],
)
def test_who_did_it(caller: Caller, expected: tuple[str, str]) -> None:
    assert actor_of(caller) == expected


def test_ids_are_uuids_that_sort_by_time_and_come_twice_never() -> None:
    times = iter([5, 5, 5, 4, 6, *[7] * 10_000, 8])
    new_id = record_ids(lambda: next(times), random.Random(3))
    ids = [new_id() for _ in range(10_006)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}


def test_the_strictest_mode_wins() -> None:
    assert strictest("full", "full") == "full"
    assert strictest("full", "metadata") == "metadata"
    assert strictest("off", "metadata", "full") == "off"
