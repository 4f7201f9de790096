"""What other peers tell of their models, and what a name then means here: no word of theirs takes anything away."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gossip.member import About, Fact, MemberView
from inference.errors import ModelNotFound
from mesh.facts import (
    ALIASES_MAX,
    INVENTORY,
    LOAD,
    MODELS_IN_LOAD_MAX,
    GpuFact,
    Inventory,
    Load,
    ModelFact,
    ModelLoad,
    inventory_in,
    inventory_out,
    load_in,
    load_out,
)
from mesh.neighbours import Neighbours

ME, HONEST, MALLORY = "me", "honest", "mallory"
IDLE = Load(cpu=1.0, memory=1.0, gpu=0.0, active=0, queued=0, response_ms=0.0)


def model(name: str, *aliases: str, sha256: str = "") -> ModelFact:
    return ModelFact(
        id=name,
        sha256=sha256,
        size_bytes=1,
        context=512,
        is_embedding=False,
        quantization="Q4_0",
        created=1,
        slots=1,
        load_s=0.0,
        is_usable=True,
        aliases=aliases,
    )


def having(*models: ModelFact) -> Inventory:
    return Inventory(
        client_port=8080, engine="cpu", cores=4, memory_bytes=1, budget_bytes=1, max_loaded=1, models=models
    )


class Own:
    def __init__(self, *models: ModelFact) -> None:
        self._models = models

    def inventory(self) -> Inventory:
        return having(*self._models)

    def load(self) -> Load:
        return IDLE


class Told:
    """Members and the facts that they told."""

    def __init__(self, **inventories: bytes) -> None:
        self._inventories = inventories

    def members(self) -> Sequence[MemberView]:
        return [
            MemberView(
                peer=peer, role="active", state="alive", run=1, incarnation=0, about=About(), since=0, is_connected=True
            )
            for peer in self._inventories
        ]

    def member(self, peer: str) -> MemberView | None:
        return next((view for view in self.members() if view.peer == peer), None)

    def fact(self, peer: str, key: str) -> Fact | None:
        value = self._inventories[peer] if key == INVENTORY else load_out(IDLE) if key == LOAD else None
        return None if value is None else Fact(version=1, value=value, received_at=0.0, set_at=0.0)

    def addresses(self, peer: str) -> tuple[str, ...]:
        return ()

    def gone(self, peer: str) -> None: ...

    def heard(self, peer: str) -> None: ...


def neighbours(own: Own, **inventories: Inventory) -> Neighbours:
    found = Neighbours(
        me=ME, own=own, clock=lambda: 0.0, name_of=str, context_of=lambda peer: ssl.create_default_context()
    )
    found.follow(Told(**{peer: inventory_out(inventory) for peer, inventory in inventories.items()}))
    for peer in inventories:
        found.fact_changed(peer, INVENTORY)
    return found


@pytest.mark.parametrize("name", ["org/mine", "alias-of-mine", "mine", "Mine.gguf", "theirs"])
def test_an_alias_of_another_peer_takes_no_name_away(name: str) -> None:
    own = Own(model("org/mine", "alias-of-mine"))
    evil = model("evil", "org/mine", "alias-of-mine", "mine", "Mine.gguf", "theirs")
    known = neighbours(own, honest=having(model("theirs")), mallory=having(evil))
    assert known.resolve(name).id == ("theirs" if name == "theirs" else "org/mine")


def test_an_alias_means_a_model_elsewhere_when_none_here_has_the_name() -> None:
    known = neighbours(Own(model("mine")), honest=having(model("org/theirs", "t")))
    assert [known.resolve(name).id for name in ("t", "theirs", "mine")] == ["org/theirs", "org/theirs", "mine"]
    with pytest.raises(ModelNotFound, match="Nearest: `org/theirs`"):
        known.resolve("org/their")


@pytest.mark.parametrize(
    "name", ["", "\x1b[2J", "a\nb", "<b>x</b>", "../../etc/passwd", "openai:gpt", "x" * 201, "a b", "\u202eabc"]
)
def test_a_model_with_a_name_that_none_may_have_is_not_there(name: str) -> None:
    known = neighbours(Own(), mallory=having(model(name), model("fine")))
    assert [found.id for found in known.views()] == ["fine"]


def test_what_is_told_of_a_model_is_fit_to_be_shown() -> None:
    evil = [
        replace(model("a"), quantization="\x1b[31m"),
        replace(model("b"), sha256="../x"),
        replace(model("c"), load_s=-1e9),
        replace(model("d"), slots=1 << 40),
    ]
    aliased = model("e", "\x07", "x" * 4000, "", *(f"n{number}" for number in range(100)))
    found = inventory_in(inventory_out(having(*evil, aliased)))
    assert found is not None
    assert [m.id for m in found.models] == ["e"]
    assert found.models[0].aliases == tuple(f"n{number}" for number in range(ALIASES_MAX))


@pytest.mark.parametrize(
    "inventory",
    [
        replace(having(), engine="x" * 1000),
        replace(having(), client_port=1 << 30),
        replace(having(), gpus=(GpuFact(name="\x1b]0;x\x07", memory_bytes=1, is_usable=True, capability=1.0),)),
        replace(having(), gpus=(GpuFact(name="x", memory_bytes=1, is_usable=True, capability=1e9),)),
        replace(having(), gpus=(GpuFact(name="x", memory_bytes=1, is_usable=True, capability=1.0),) * 65),
    ],
)
def test_what_no_peer_of_ours_would_say_is_not_believed(inventory: Inventory) -> None:
    assert inventory_in(inventory_out(inventory)) is None


def test_a_load_is_of_few_models_with_few_slots() -> None:
    loaded = ModelLoad(model="m", is_loaded=True, active=0, queued=0, slots=1)
    assert load_in(load_out(replace(IDLE, models=(loaded,)))) is not None
    assert load_in(load_out(replace(IDLE, models=(loaded,) * (MODELS_IN_LOAD_MAX + 1)))) is None
    assert load_in(load_out(replace(IDLE, models=(replace(loaded, slots=1 << 40),)))) is None
