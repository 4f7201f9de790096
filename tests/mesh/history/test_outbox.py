"""What waits for the disk keeps its order and its bound, whatever the disk does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.history.entries import Audit, End, Entry, Start
from mesh.history.outbox import BATCH_ENTRIES_MAX, FIELDS_BYTES, RETRY_S, RETRY_S_MAX, Outbox, Waiting


def start(number: int, body: bytes | None = None) -> Start:
    return Start(id=str(number), at_ms=number, kind="chat", model="m", request_body=body)


def end(number: int, body: bytes | None = None) -> End:
    return End(id=str(number), at_ms=number, status="success", response_body=body)


def audit(number: int) -> Audit:
    return Audit(at_ms=number, actor="ann", actor_kind="user", action="key.create")


def entries(batch: list[Waiting]) -> list[object]:
    return [waiting.entry for waiting in batch]


def test_entries_are_written_in_the_order_in_which_they_came() -> None:
    outbox = Outbox()
    made: list[Entry] = [start(1), start(2, b"x"), end(2), audit(3), end(1)]
    for entry in made:
        outbox.put(entry)
    assert entries(outbox.batch(0.0)) == made
    outbox.written()
    assert (len(outbox), outbox.size_bytes) == (0, 0)


def test_nothing_is_written_beside_what_is_being_written() -> None:
    outbox = Outbox()
    outbox.put(start(1))
    assert len(outbox.batch(0.0)) == 1
    outbox.put(start(2))
    assert outbox.batch(0.0) == []
    assert len(outbox) == 2


def test_what_a_sick_disk_did_not_take_comes_again_before_what_came_later() -> None:
    outbox = Outbox()
    outbox.put(start(1))
    outbox.put(end(1, b"body"))
    outbox.batch(0.0)
    outbox.put(start(2))
    outbox.failed(0.0)
    assert outbox.is_sick
    assert outbox.batch(RETRY_S / 2) == []
    assert entries(outbox.batch(RETRY_S)) == [start(1), end(1, b"body"), start(2)]


def test_the_waits_between_tries_double_up_to_five_seconds_and_begin_anew_after_a_success() -> None:
    outbox, now, waits = Outbox(), 0.0, []
    outbox.put(start(1))
    for _ in range(9):
        assert outbox.batch(now)
        outbox.failed(now)
        waits.append(round(outbox.retry_at - now, 3))
        now = outbox.retry_at
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, RETRY_S_MAX]
    outbox.batch(now)
    outbox.written()
    assert not outbox.is_sick
    outbox.put(start(2))
    outbox.batch(now)
    outbox.failed(now)
    assert round(outbox.retry_at - now, 3) == RETRY_S


def test_who_waits_for_an_entry_is_told_when_it_is_written() -> None:
    outbox, told = Outbox(), list[object]()
    outbox.put(start(1), lambda is_written: told.append((1, is_written)))
    outbox.put(start(2), lambda is_written: told.append((2, is_written)))
    outbox.batch(0.0)
    outbox.failed(0.0)
    assert told == []
    outbox.batch(RETRY_S)
    outbox.written()
    assert told == [(1, True), (2, True)]


def test_when_it_is_too_full_the_oldest_bodies_go_first() -> None:
    outbox = Outbox(bytes_max=3 * FIELDS_BYTES + 250)
    for number in (1, 2, 3):
        outbox.put(start(number, b"x" * 100))
    assert entries(outbox.batch(0.0)) == [start(1), start(2, b"x" * 100), start(3, b"x" * 100)]
    assert (outbox.bodies_dropped, outbox.entries_dropped) == (1, 0)


def test_when_no_bodies_are_left_the_oldest_entries_go_and_who_waits_is_told() -> None:
    told = list[bool]()
    outbox = Outbox(bytes_max=2 * FIELDS_BYTES)
    outbox.put(start(1, b"x"), told.append)
    outbox.put(start(2))
    outbox.put(audit(3))
    assert told == [False]
    assert entries(outbox.batch(0.0)) == [start(2), audit(3)]
    assert (outbox.bodies_dropped, outbox.entries_dropped) == (1, 1)


def test_what_is_being_written_is_never_dropped() -> None:
    outbox = Outbox(bytes_max=FIELDS_BYTES + 10)
    outbox.put(start(1, b"x" * 10))
    batch = outbox.batch(0.0)
    outbox.put(start(2, b"y" * 10))
    assert entries(batch) == [start(1, b"x" * 10)]
    assert outbox.entries_dropped == 1
    outbox.written()
    assert outbox.size_bytes == 0


def test_an_entry_that_can_never_be_written_goes_alone() -> None:
    """The others around it are written, in their order."""
    outbox, written = Outbox(), list[object]()
    for number in range(1, 6):
        outbox.put(start(number))
    while batch := outbox.batch(0.0):
        if start(3) in entries(batch):
            outbox.refused()
        else:
            written += entries(outbox.written())
    assert written == [start(1), start(2), start(4), start(5)]
    assert outbox.entries_dropped == 1


def test_a_batch_is_bounded() -> None:
    outbox = Outbox()
    for number in range(BATCH_ENTRIES_MAX + 1):
        outbox.put(start(number))
    assert len(outbox.batch(0.0)) == BATCH_ENTRIES_MAX
    outbox.written()
    for number in range(10):
        outbox.put(start(number, b"x" * 2**20))
    assert len(outbox.batch(0.0)) == 5  # the one that was left, and the first four of a MiB each


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 2000)), st.sampled_from([("batch", 0), ("ok", 0), ("fail", 0)])
        ),
        max_size=60,
    )
)
def test_whatever_happens_order_size_and_bound_hold(steps: list[tuple[str, int]]) -> None:
    outbox, now, number, ended = Outbox(bytes_max=6000), 0.0, 0, dict[int, bool]()
    written, is_writing = list[int](), False
    for what, size in steps:
        if what == "put":
            number += 1

            def told(is_written: bool, number: int = number) -> None:
                assert number not in ended
                ended[number] = is_written

            outbox.put(start(number, b"x" * size if size else None), told)
        elif what == "batch":
            now += 10.0
            is_writing = bool(outbox.batch(now)) or is_writing
        elif what == "ok" and is_writing:
            written += [waiting.entry.at_ms for waiting in outbox.written()]
            is_writing = False
        elif what == "fail" and is_writing:
            outbox.failed(now)
            is_writing = False
        assert outbox.size_bytes <= 6000 + 4 * 2**20 * is_writing
    if is_writing:
        written += [waiting.entry.at_ms for waiting in outbox.written()]
    while outbox.batch(now + 100.0):
        written += [waiting.entry.at_ms for waiting in outbox.written()]
    assert written == sorted(set(written))
    assert len(written) + outbox.entries_dropped == number
    assert ended == {each: each in written for each in range(1, number + 1)}
    assert (len(outbox), outbox.size_bytes) == (0, 0)
