"""Who has which model: names and files over several peers (mesh.neighbours)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import replace

import pytest

from gossip.errors import UnknownPeer
from gossip.member import About, Fact, MemberView
from inference.errors import ModelNotFound
from mesh.facts import INVENTORY, Inventory, Load, ModelFact, inventory_out
from mesh.neighbours import Neighbours
from mesh.router import Ask

CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
NOW = 10.0
MODEL = ModelFact(
    id="chat", sha256="a" * 64, size_bytes=1, context=4096, is_embedding=False, quantization=None, created=1, slots=8,
    load_s=0.0, is_usable=True,
)  # fmt: skip
OTHER_NAME = replace(MODEL, id="kaiwa")
OTHER_FILE = replace(MODEL, id="other", sha256="b" * 64)
UNHASHED = replace(MODEL, sha256="")
MEMBER = MemberView(
    peer="", role="active", state="alive", run=1, incarnation=1, since=0.0, is_connected=True,
    about=About(addresses=("192.0.2.1:8081",), draining=False, eligibility=1, version="1"),
)  # fmt: skip


def inventory(*models: ModelFact) -> Inventory:
    return Inventory(
        client_port=8080, engine="x", cores=2, memory_bytes=1, budget_bytes=1, max_loaded=2, models=models
    )  # fmt: skip


class Own:
    """This peer."""

    def __init__(self, has: Inventory) -> None:
        self.has = has

    def inventory(self) -> Inventory:
        return self.has

    def load(self) -> Load:
        return Load(cpu=0.0, memory=0.0, gpu=0.0, active=0, queued=0, response_ms=0.0)


class Mesh:
    """What gossip says: members and their inventories."""

    def __init__(self, **has: Inventory) -> None:
        self.has = has
        self.views = {peer: replace(MEMBER, peer=peer) for peer in has}
        self.strangers: set[str] = set()

    def members(self) -> list[MemberView]:
        return list(self.views.values())

    def member(self, peer: str) -> MemberView | None:
        return self.views.get(peer)

    def fact(self, peer: str, key: str) -> Fact | None:
        return Fact(version=1, value=inventory_out(self.has[peer]), received_at=NOW, set_at=NOW)

    def addresses(self, peer: str) -> tuple[str, ...]:
        return self.views[peer].about.addresses

    def context_of(self, peer: str) -> ssl.SSLContext:
        if peer in self.strangers:
            raise UnknownPeer("no member")
        return CONTEXT

    def heard(self, peer: str) -> None:
        """Nobody doubts."""

    def gone(self, peer: str) -> None:
        """Nobody is avoided."""


def neighbours(mesh: Mesh, own: Inventory | None = None) -> Neighbours:
    made = Neighbours(
        me="me",
        own=Own(own or inventory()),
        clock=lambda: NOW,
        name_of=lambda peer: peer,
        context_of=mesh.context_of,
    )
    made.follow(mesh)
    for peer in mesh.has:
        made.fact_changed(peer, INVENTORY)
    return made


def asked(view: Neighbours, model: str) -> list[str]:
    return [c.peer for c in view.candidates(model, Ask(model_id=model, prompt_tokens=1), NOW)]


def names(view: Neighbours) -> Mapping[str, tuple[str, ...]]:
    return {model.id: model.holders for model in view.models()}


def test_the_same_file_under_another_name_is_asked_too_by_the_name_it_has_there() -> None:
    view = neighbours(Mesh(a=inventory(OTHER_FILE, MODEL), b=inventory(OTHER_NAME), c=inventory(OTHER_FILE)))
    assert asked(view, "chat") == ["a", "b"] == asked(view, "kaiwa")
    assert names(view) == {"chat": ("a",), "kaiwa": ("b",), "other": ("a", "c")}
    assert [target.model_id for peer in "ab" if (target := view.target(peer, "chat"))] == ["chat", "kaiwa"]
    assert view.target("c", "chat") is None


def test_who_has_the_file_under_two_names_is_asked_by_the_one_that_was_meant() -> None:
    view = neighbours(Mesh(a=inventory(OTHER_NAME, MODEL)))
    for name in ("chat", "kaiwa"):
        target = view.target("a", name)
        assert target is not None and target.model_id == name
        assert view.resolve(name).id == name


def test_files_without_a_hash_are_the_same_by_name_only() -> None:
    view = neighbours(Mesh(a=inventory(UNHASHED), b=inventory(replace(UNHASHED, id="kaiwa"))))
    assert asked(view, "chat") == ["a"]


def test_a_peer_whose_certificate_is_no_members_any_more_is_not_reached() -> None:
    mesh = Mesh(a=inventory(MODEL))
    view = neighbours(mesh)
    assert view.target("a", "chat") is not None
    mesh.strangers = {"a"}
    assert view.target("a", "chat") is None


def test_this_peer_comes_first() -> None:
    view = neighbours(Mesh(a=inventory(MODEL)), own=inventory(MODEL))
    assert asked(view, "chat") == ["me", "a"] == list(view.resolve("chat").holders)


def test_exact_name_means_what_the_list_says_and_an_alias_is_found_as_well() -> None:
    main = replace(MODEL, aliases=("main",))
    view = neighbours(Mesh(a=inventory(main), b=inventory(MODEL, OTHER_FILE), c=inventory(OTHER_NAME)))
    for name in ("chat", "other", "kaiwa"):
        assert view.resolve(name) in view.views()
    assert view.resolve("main").id == "chat" == view.resolve("CHAT.gguf").id
    with pytest.raises(ModelNotFound):
        view.resolve("nothing like it")


def test_newer_inventory_replaces_the_older_one() -> None:
    mesh = Mesh(a=inventory(MODEL), b=inventory(MODEL))
    view = neighbours(mesh)
    assert asked(view, "chat") == ["a", "b"]
    mesh.has["a"] = inventory(OTHER_FILE)
    view.fact_changed("a", INVENTORY)
    assert asked(view, "chat") == ["b"] and asked(view, "other") == ["a"]


@pytest.mark.parametrize("change", [{"state": "dead"}, {"state": "left"}, {"is_draining": True}])
def test_peers_that_are_gone_or_go_are_not_asked(change: dict[str, object]) -> None:
    mesh = Mesh(a=inventory(MODEL), b=inventory(MODEL))
    about = replace(MEMBER.about, draining=bool(change.pop("is_draining", False)))
    mesh.views["a"] = replace(mesh.views["a"], about=about, **change)  # type: ignore[arg-type]
    view = neighbours(mesh)
    assert asked(view, "chat") == ["b"] and view.target("a", "chat") is None
    assert names(view) == {"chat": ("b",)}


def test_model_that_nobody_has_any_more_is_not_found() -> None:
    view = neighbours(Mesh(a=inventory(OTHER_FILE)))
    with pytest.raises(ModelNotFound):
        asked(view, "chat")
