"""Who holds whose logs, who may send and read them, and what travels next."""

from __future__ import annotations

import pytest

from mesh.history.entries import LogId
from mesh.history.replicas import (
    Behind,
    Mate,
    View,
    Want,
    accepts,
    behind,
    believed_low,
    held_through,
    is_written,
    keepers,
    may_hold,
    may_take,
    next_run,
    shown,
    sources,
    targets,
    to_push,
    wanted,
)

OWN = LogId("me", 100)


def view(
    *mates: Mate, me: str = "me", coordinator: str | None = "a", succession: tuple[str, ...] | None = None, **mine: bool
) -> View:
    """Seen from `me`; all mates succeed in the order given, this peer last."""
    by_id = {mate.peer: mate for mate in mates}
    line = succession if succession is not None else (*by_id, me)
    return View(me=me, mates=by_id, coordinator=coordinator, succession=line, **mine)


def mates(*peers: str) -> list[Mate]:
    return [Mate(peer=peer, is_alive=True) for peer in peers]


# -- who holds what


def test_a_log_is_held_by_the_coordinator_and_one_successor() -> None:
    assert keepers("me", view(*mates("a", "b", "c"))) == ("a", "b")


def test_the_coordinators_log_is_held_by_two_successors() -> None:
    assert keepers("a", view(*mates("a", "b", "c"))) == ("b", "c")


def test_the_first_successors_log_is_held_by_the_coordinator_and_the_second() -> None:
    assert keepers("b", view(*mates("a", "b", "c"))) == ("a", "c")


def test_without_a_coordinator_the_first_two_successors_hold_it() -> None:
    assert keepers("me", view(*mates("a", "b", "c"), coordinator=None)) == ("a", "b")


def test_two_machines_hold_two_copies_and_one_alone_its_own() -> None:
    assert targets(view(*mates("a"))) == ("a",)
    assert targets(view(coordinator="me")) == ()


@pytest.mark.parametrize(
    "unfit",
    [
        Mate(peer="a", is_alive=False),
        Mate(peer="a", is_alive=True, is_guest=True),
        Mate(peer="a", is_alive=True, is_eligible=False),
    ],
)
def test_the_dead_guests_and_those_who_never_coordinate_hold_nothing(unfit: Mate) -> None:
    seen = view(unfit, *mates("b", "c"))
    assert keepers("me", seen) == ("b", "c")
    assert not may_hold("a", seen)


def test_a_guest_pushes_nothing_and_asks_nobody() -> None:
    seen = view(*mates("a", "b"), is_guest=True)
    assert targets(seen) == ()
    assert sources(seen, recovers=True) == ()


def test_the_coordinator_asks_everybody_but_the_dead_and_guests() -> None:
    dead, guest = Mate(peer="x", is_alive=False), Mate(peer="y", is_alive=True, is_guest=True)
    assert sources(view(*mates("b", "c"), dead, guest, coordinator="me"), recovers=False) == ("b", "c")


def test_its_successors_ask_the_coordinator_and_nobody_else_asks_anyone() -> None:
    members = mates("a", "b", "c", "d")
    assert sources(view(*members, succession=("a", "me", "b", "c", "d")), recovers=False) == ("a",)
    assert sources(view(*members, succession=("a", "b", "c", "d", "me")), recovers=False) == ()


def test_who_lost_its_disk_asks_everybody() -> None:
    assert sources(view(*mates("a", "b", "c", "d")), recovers=True) == ("a", "b", "c", "d")


# -- whose word counts


def test_entries_come_from_their_origin_while_it_is_alive() -> None:
    seen = view(*mates("a", "b"))
    log = LogId("b", 1)
    assert accepts(log, "b", seen, own=OWN, recovers=False)
    assert not accepts(log, "a", seen, own=OWN, recovers=False)


def test_entries_of_a_dead_or_former_member_come_from_any_full_member() -> None:
    seen = view(*mates("a"), Mate(peer="b", is_alive=False), Mate(peer="guest", is_alive=True, is_guest=True))
    for gone in ("b", "sold"):
        assert accepts(LogId(gone, 1), "a", seen, own=OWN, recovers=False)
        assert not accepts(LogId(gone, 1), "guest", seen, own=OWN, recovers=False)
        assert not accepts(LogId(gone, 1), "b", seen, own=OWN, recovers=False)


def test_a_guests_own_log_stays_with_it() -> None:
    seen = view(*mates("a"), Mate(peer="guest", is_alive=True, is_guest=True))
    assert not accepts(LogId("guest", 1), "guest", seen, own=OWN, recovers=False)


def test_who_never_coordinates_takes_no_others_logs() -> None:
    assert not accepts(LogId("a", 1), "a", view(*mates("a"), is_eligible=False), own=OWN, recovers=False)


def test_own_logs_are_taken_back_after_a_loss_only_and_never_the_one_that_is_written() -> None:
    for is_eligible in (True, False):
        seen = view(*mates("a"), is_eligible=is_eligible)
        assert not accepts(LogId("me", 1), "a", seen, own=OWN, recovers=False)
        assert accepts(LogId("me", 1), "a", seen, own=OWN, recovers=True)
        assert not accepts(OWN, "a", seen, own=OWN, recovers=True)


def test_a_log_is_given_to_those_who_may_coordinate_and_to_its_origin() -> None:
    never, guest = Mate(peer="n", is_alive=True, is_eligible=False), Mate(peer="g", is_alive=True, is_guest=True)
    seen = view(*mates("a"), never, guest)
    assert may_take("a", LogId("b", 1), seen)
    assert may_take("n", LogId("n", 1), seen)
    assert not may_take("n", LogId("b", 1), seen)
    assert not may_take("g", LogId("b", 1), seen)
    assert not may_take("g", LogId("g", 1), seen)
    assert not may_take("stranger", LogId("b", 1), seen)


# -- what travels next


def test_what_is_asked_for_goes_on_where_the_copy_ends() -> None:
    seen = view(*mates("b"), coordinator="me")
    found = wanted({LogId("b", 1): (0, 5)}, {"b": {LogId("b", 1): (2, 9)}}, seen, own=OWN, recovers=False)
    assert found == {"b": [Want(log=LogId("b", 1), after=5)]}


def test_nothing_is_asked_for_that_is_here_or_belongs_elsewhere() -> None:
    theirs = {"b": {LogId("b", 1): (0, 5), LogId("c", 1): (0, 5)}}
    coordinating = view(*mates("b"), coordinator="me")
    assert wanted({LogId("b", 1): (0, 5), LogId("c", 1): (0, 7)}, theirs, coordinating, own=OWN, recovers=False) == {}
    last_in_line = view(*mates("a", "b", "c"))
    assert wanted({}, {"a": {LogId("gone", 1): (0, 5)}}, last_in_line, own=OWN, recovers=False) == {}


def test_a_copy_without_a_hole_is_better_than_a_longer_one() -> None:
    seen, log = view(*mates("b", "c", "d"), coordinator="me"), LogId("gone", 1)
    theirs = {"b": {log: (6, 90)}, "c": {log: (5, 50)}, "d": {log: (0, 40)}}
    assert wanted({log: (0, 5)}, theirs, seen, own=OWN, recovers=False) == {"c": [Want(log=log, after=5)]}


def test_the_successor_takes_what_it_should_hold_of_the_coordinator() -> None:
    seen = view(*mates("a", "b"), Mate(peer="off", is_alive=False), succession=("a", "me", "b"))
    theirs = {"a": {LogId("off", 1): (0, 3), LogId("b", 1): (0, 3), LogId("a", 1): (0, 3), LogId("me", 1): (0, 3)}}
    found = wanted({}, theirs, seen, own=OWN, recovers=False)
    assert found == {"a": [Want(log=LogId("a", 1), after=0), Want(log=LogId("off", 1), after=0)]}


def test_who_lost_its_disk_asks_for_its_older_logs() -> None:
    seen = view(*mates("a", "b", "c"))
    theirs = {"a": {LogId("me", 1): (0, 3), OWN: (0, 9)}, "b": {LogId("me", 1): (0, 7), LogId("c", 1): (0, 7)}}
    assert wanted({}, theirs, seen, own=OWN, recovers=True) == {"b": [Want(log=LogId("me", 1), after=0)]}


def test_the_newest_run_is_pushed_first_and_what_the_other_has_is_not() -> None:
    mine = {LogId("me", 1): (0, 5), LogId("me", 2): (0, 3), LogId("a", 9): (0, 8)}
    assert to_push(mine, {}, "me", {}) == Want(log=LogId("me", 2), after=0)
    assert to_push(mine, {LogId("me", 2): (0, 3)}, "me", {}) == Want(log=LogId("me", 1), after=0)
    assert to_push(mine, {LogId("me", 2): (0, 3), LogId("me", 1): (0, 5)}, "me", {}) is None


def test_what_was_retired_is_not_pushed_but_told() -> None:
    log = LogId("me", 1)
    assert to_push({log: (4, 9)}, {}, "me", {}) == Want(log=log, after=4)
    assert to_push({log: (4, 9)}, {log: (0, 9)}, "me", {}) == Want(log=log, after=9)
    assert to_push({log: (4, 9)}, {log: (4, 9)}, "me", {}) is None
    assert to_push({log: (9, 9)}, {log: (0, 5)}, "me", {}) == Want(log=log, after=9)
    assert to_push({log: (9, 9)}, {}, "me", {}) is None


def test_private_entries_are_never_pushed() -> None:
    log, older = LogId("me", 2), LogId("me", 1)
    mine = {log: (0, 9), older: (0, 5)}
    assert to_push(mine, {}, "me", {log: 4, older: 5}) == Want(log=log, after=4)
    assert to_push(mine, {log: (4, 9)}, "me", {log: 4, older: 5}) is None
    assert shown(log, (0, 9), {log: 4}) == (4, 9)
    assert shown(older, (0, 5), {older: 7}) == (5, 5)


def test_what_is_retired_is_believed_of_the_origin_alone() -> None:
    log = LogId("b", 1)
    assert believed_low(log, "b", (0, 5), 6, 4) == 4
    assert believed_low(log, "a", (0, 5), 6, 4) == 0
    assert believed_low(log, "a", (2, 5), 6, 4) == 2
    assert believed_low(log, "a", (0, 5), 8, 99) == 7, "over a hole that no other copy fills"


def test_a_new_run_is_above_every_run_that_is_known() -> None:
    known = [LogId("me", 500), LogId("b", 900)]
    assert next_run(known, "me", 400) == 501
    assert next_run(known, "me", 700) == 700
    assert next_run(known, "me", 400, above=600) == 601
    assert next_run([], "me", 400) == 400


def test_a_log_is_on_as_many_disks_as_have_it() -> None:
    assert held_through([9, 7, 3], 1) == 9
    assert held_through([3, 9, 7], 2) == 7
    assert held_through([9], 2) == 0


# -- what is missing


def test_a_log_is_written_while_its_peer_lives_and_until_there_is_a_newer_one() -> None:
    seen = view(Mate(peer="a", is_alive=True, run=50), Mate(peer="b", is_alive=False, run=50))
    known = [LogId("a", 40), LogId("a", 60), LogId("a", 70), LogId("b", 60), OWN, LogId("me", 7), LogId("sold", 60)]
    assert [log for log in known if is_written(log, known, seen, own=OWN)] == [LogId("a", 70), OWN]


def test_a_log_of_a_process_before_the_one_that_lives_is_not_written_any_more() -> None:
    """Though the new one has recorded nothing yet."""
    known = [LogId("a", 40)]
    assert not is_written(known[0], known, view(Mate(peer="a", is_alive=True, run=50)), own=OWN)
    assert is_written(known[0], known, view(Mate(peer="a", is_alive=True, run=40)), own=OWN)


def test_a_peer_that_is_off_may_have_more_than_came() -> None:
    seen = view(Mate(peer="b", is_alive=False, since_ms=77), *mates("a"))
    told = {"a": {LogId("a", 1): (0, 4)}, "b": {LogId("b", 1): (0, 5)}}
    mine = {LogId("a", 1): (0, 4), LogId("b", 1): (0, 3)}
    assert behind(mine, told, seen) == [Behind(peer="b", reason="offline", entries=2, since_ms=77)]


def test_a_peer_that_said_goodbye_and_whose_records_are_here_is_not_missed() -> None:
    seen = view(Mate(peer="b", is_alive=False, has_left=True))
    assert behind({LogId("b", 1): (0, 5)}, {"b": {LogId("b", 1): (0, 5)}}, seen) == []
    assert behind({}, {}, seen) == []
    assert behind({LogId("b", 1): (0, 4)}, {"b": {LogId("b", 1): (0, 5)}}, seen) == [
        Behind(peer="b", reason="offline", entries=1)
    ]


def test_a_peer_that_was_not_asked_yet_is_missed_and_so_is_a_guest() -> None:
    guest = Mate(peer="g", is_alive=True, is_guest=True)
    seen = view(*mates("a", "b"), guest)
    told = {"b": {LogId("b", 1): (3, 5)}}
    assert behind({}, told, seen) == [
        Behind(peer="a", reason="behind"),
        Behind(peer="b", reason="behind", entries=2),
        Behind(peer="g", reason="guest"),
    ]
