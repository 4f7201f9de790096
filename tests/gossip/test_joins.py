"""Who asks to join, as another member tells it: shown to people, so nothing else than what it should be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip.admission import WAITING_MAX
from gossip.askers import DENIED_MAX, Asker, Joins, joins_in
from gossip.codec import pack
from gossip.identity import Identity

ASKER = Asker(
    id="a" * 32,
    name="kitchen",
    certificate=Identity.generate().certificate_der,
    digits="481 920",
    address="192.168.1.9",
    until_s=1.0,
)


def test_who_asks_at_another_member_is_known_here() -> None:
    joins = Joins(askers=(ASKER,), denied=("b" * 32,))
    assert joins_in(pack(joins)) == joins


@pytest.mark.parametrize(
    "asker",
    [
        replace(ASKER, name="\x1b[2J\x1b]0;owned\x07"),
        replace(ASKER, name="x" * 4000),
        replace(ASKER, name=""),
        replace(ASKER, digits="approve me"),
        replace(ASKER, digits="\u0664\u0668\u0661 920"),
        replace(ASKER, address="\nllm-router approve"),
        replace(ASKER, address="x" * 4000),
        replace(ASKER, id=""),
        replace(ASKER, id="x" * 65),
        replace(ASKER, certificate=b"none"),
    ],
)
def test_who_cannot_be_is_left_out(asker: Asker) -> None:
    assert joins_in(pack(Joins(askers=(asker, ASKER)))).askers == (ASKER,)


def test_more_than_there_can_be_are_none() -> None:
    assert joins_in(pack(Joins(askers=(ASKER,) * (WAITING_MAX + 1)))) == Joins()
    assert joins_in(pack(Joins(denied=("x",) * (DENIED_MAX + 1)))) == Joins()
    assert joins_in(b"\xc1") == Joins()
