"""What this peer knows of the others, and of itself as one of them: who has which model, how loaded, how to get there.

`Holders` of mesh.dispatch. Everything is read from the local view (gossip's members and facts), so it answers in
microseconds, whoever is offline. It decides nothing: whom to choose is mesh.router's business.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gossip.errors import UnknownPeer
from gossip.member import Fact, MemberView
from inference.errors import ModelNotFound
from inference.models import names
from inference.models.model import HELLO
from mesh.adopted.agent import Agent
from mesh.adopted.holders import AdoptedServers, Lodged, ServerTarget
from mesh.facts import INVENTORY, LOAD, Inventory, Load, ModelFact, ModelLoad, inventory_in, load_in
from mesh.hop import Target
from mesh.inflight import InFlight
from mesh.penalty import PenaltyBox
from mesh.router import Ask, Candidate
from web.services import ModelView

log = logging.getLogger(__name__)

FORWARD_S = 0.003
"""A round trip on a home network, until one was measured."""
NEWEST_SHARE = 0.2
INDEXES_MORE = 16
"""Of those who left, until they are thrown away."""


class Members(Protocol):
    """What gossip knows (gossip.agent)."""

    def members(self) -> Sequence[MemberView]: ...

    def member(self, peer: str) -> MemberView | None: ...

    def fact(self, peer: str, key: str) -> Fact | None: ...

    def addresses(self, peer: str) -> tuple[str, ...]: ...

    def gone(self, peer: str) -> None: ...

    def heard(self, peer: str) -> None: ...


class Own(Protocol):
    """This peer's own facts (mesh.report)."""

    def inventory(self) -> Inventory: ...

    def load(self) -> Load: ...


@dataclass(slots=True)
class _Known:
    """What one other peer told of itself last. `heard_at`: when its load came, by the loop's clock."""

    inventory: Inventory | None = None
    load: Load | None = None
    heard_at: float = 0.0
    is_avoided: bool = False
    forward_s: float = FORWARD_S


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshModel:
    """A model as the whole mesh has it; the fact is the first holder's (this peer's, if it has it).

    `sha256` only if all holders have the same file, as far as anybody knows: then each can go on for each.
    """

    fact: ModelFact
    sha256: str | None
    holders: tuple[str, ...]
    is_loaded: bool
    is_ready: bool

    @property
    def id(self) -> str:
        return self.fact.id

    @property
    def aliases(self) -> tuple[str, ...]:
        return self.fact.aliases

    @property
    def file_name(self) -> str:
        return ""

    @property
    def is_builtin(self) -> bool:
        return self.fact.id == HELLO


@dataclass(frozen=True, slots=True)
class _Holder:
    """One peer that may be asked. `known` and `member` are None for this peer.

    `adopted`: it is no peer, but a registered server. `is_cordoned`: somebody wants it to get no requests.
    """

    peer: str
    inventory: Inventory
    load: Load | None
    known: _Known | None
    member: MemberView | None
    adopted: Agent | None = None
    is_cordoned: bool = False

    def holding(self, fact: ModelFact) -> _Holding:
        load = next((m for m in self.load.models if m.model == fact.id), None) if self.load is not None else None
        return _Holding(self, fact, load)


@dataclass(frozen=True, slots=True)
class _Holding:
    """One model that a peer has; `load` is that model's, None while it is not in memory."""

    holder: _Holder
    fact: ModelFact
    load: ModelLoad | None

    @property
    def peer(self) -> str:
        return self.holder.peer

    @property
    def known(self) -> _Known | None:
        return self.holder.known

    @property
    def is_loaded(self) -> bool:
        """In memory, as far as anybody knows: a server that is no peer does not tell, and is taken to be ready."""
        return self.fact.is_usable if self.holder.adopted is not None else self.load is not None and self.load.is_loaded


class _Index:
    """What one peer has, by name and by file: it is asked at every request, and may be long."""

    __slots__ = ("by_file", "by_id", "inventory")

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.by_id = {fact.id: fact for fact in inventory.models}
        self.by_file: dict[str, list[ModelFact]] = {}
        for fact in inventory.models:
            self.by_file.setdefault(fact.sha256, []).append(fact)

    def named(self, model_id: str, files: set[str]) -> list[ModelFact]:
        """The model of that name, and the same `files` under other names."""
        found = {fact.id: fact for sha256 in files for fact in self.by_file.get(sha256, ())}
        if (fact := self.by_id.get(model_id)) is not None:
            found = {fact.id: fact} | found
        return list(found.values())


class Neighbours:
    """The local view. All methods belong to the loop."""

    def __init__(
        self,
        *,
        me: str,
        own: Own,
        clock: Callable[[], float],
        name_of: Callable[[str], str],
        context_of: Callable[[str], ssl.SSLContext],
        cordoned: Callable[[str], bool] = lambda peer: False,
        adopted: AdoptedServers | None = None,
    ) -> None:
        """`cordoned`: whether an admin wants the peer to get no requests. `adopted`: the registered servers."""
        self._me = me
        self._own = own
        self._clock = clock
        self._name_of = name_of
        self._context_of = context_of
        self._cordoned = cordoned
        self._adopted = adopted
        self._members: Members | None = None
        self._known: dict[str, _Known] = {}
        self._indexes: dict[str, _Index] = {}
        self.in_flight = InFlight()
        self.penalties = PenaltyBox()

    def follow(self, members: Members) -> None:
        """Whose view this is; before, and in a mesh of one, there is only this peer."""
        self._members = members
        self._known.clear()
        self._indexes.clear()

    # -- what gossip tells

    def fact_changed(self, peer: str, key: str) -> None:
        """A newer fact of `peer` is here."""
        fact = self._members.fact(peer, key) if self._members is not None else None
        if fact is None:
            return
        known = self._known.setdefault(peer, _Known())
        if key == LOAD:
            self._take_load(known, fact.value, fact.received_at)
        elif key == INVENTORY and (inventory := inventory_in(fact.value)) is not None:
            known.inventory = inventory

    def avoid(self, peer: str) -> None:
        """Its connection was reset or refused: it gets nothing until it answers again."""
        self._known.setdefault(peer, _Known()).is_avoided = True

    def regained(self, peer: str) -> None:
        self._known.setdefault(peer, _Known()).is_avoided = False

    def forget(self, peers: set[str]) -> None:
        """Only `peers` are members now."""
        for peer in set(self._known) - peers:
            del self._known[peer]
            self._indexes.pop(peer, None)

    # -- what requests tell

    def reported(self, peer: str, load: bytes) -> None:
        """A load that rode on an answer."""
        if peer in self._known or (self._members is not None and self._members.member(peer) is not None):
            self._take_load(self._known.setdefault(peer, _Known()), load, self._clock())

    def failed(self, peer: str, how: str) -> None:
        """`how`: gone (refused, reset: avoided and probed now) or wedged (accepted and did nothing)."""
        if self._adopted is not None and peer in self._adopted:
            self._adopted.failed(peer, how)
            return
        if how == "wedged":
            self.penalties.put(peer, self._clock())
            return
        self.avoid(peer)
        if self._members is not None:
            self._members.gone(peer)

    def proved(self, peer: str) -> None:
        """It served a request."""
        if self._adopted is not None and peer in self._adopted:
            self._adopted.proved(peer)
            return
        self.penalties.release(peer)
        if (known := self._known.get(peer)) is not None:
            known.is_avoided = False
        if self._members is not None:
            self._members.heard(peer)

    def round_trip(self, peer: str, seconds: float) -> None:
        """How long the way to `peer` and back took, its own work not counted."""
        if (known := self._known.get(peer)) is not None:
            known.forward_s += (seconds - known.forward_s) * NEWEST_SHARE

    # -- models of the whole mesh

    def models(self) -> list[MeshModel]:
        """Every model of every peer that is not dead, by id; this peer's first among holders."""
        found: dict[str, list[_Holding]] = {}
        for holding in self._holdings():
            found.setdefault(holding.fact.id, []).append(holding)
        return names.in_order(self._model(holdings) for holdings in found.values())

    def views(self) -> list[ModelView]:
        """What `/v1/models` shows: what can be served first, the built-in model last."""
        models = sorted(self.models(), key=lambda model: (model.is_builtin, not model.is_ready))
        return [_view(model) for model in models]

    def resolve(self, name: str) -> ModelView:
        """The model that `name` means, in the whole mesh. Raises ModelNotFound.

        An id, wherever it is; else what it means on this machine, and only then elsewhere: no alias that another peer
        tells takes a name away from a model.
        """
        if exact := [h for h in self._holdings_of(name) if h.fact.id == name]:
            return _view(self._model(exact))
        models, own = self.models(), {fact.id for fact in self._own.inventory().models}
        found = names.meant(name, [model for model in models if model.id in own])
        return _view(found or names.resolve(name, models))

    def candidates(self, model_id: str, ask: Ask, now: float) -> list[Candidate]:
        """Every peer that has the model, or the same file under another name; none when nobody may be asked now.

        Raises ModelNotFound.
        """
        mine = self._holdings_of(model_id)
        if not mine:
            raise ModelNotFound(f"No peer has the model {model_id} any more.", param="model")
        able = [h for h in mine if not h.holder.is_cordoned]
        usable = [h for h in able if h.fact.is_usable]
        # Where nobody can serve it, this peer is asked all the same if it has the file: it says why not.
        return [self._candidate(h, now) for h in usable or able if h.fact.is_usable or h.known is None]

    def target(self, peer: str, model_id: str) -> Target | ServerTarget | None:
        """How `peer` is reached now, and what it calls the model; None when it is not to be reached."""
        if self._adopted is not None and peer in self._adopted:
            there = self._adopted.target(peer, model_id)
            return self._target(there.peer, there.model_id, "") if isinstance(there, Lodged) else there
        h = next((h for h in self._holdings_of(model_id) if h.peer == peer), None)
        return None if h is None else self._target(peer, h.fact.id, h.fact.sha256)

    def _target(self, peer: str, model_id: str, sha256: str) -> Target | None:
        addresses = self._members.addresses(peer) if self._members is not None else ()
        try:
            context = self._context_of(peer)
        except UnknownPeer:  # it is no member any more
            return None
        return Target(
            peer=peer,
            name=self._name_of(peer),
            addresses=addresses,
            ssl=context,
            model_id=model_id,
            sha256=sha256 or None,
        )

    def inventory(self, peer: str) -> Inventory | None:
        if peer == self._me:
            return self._own.inventory()
        known = self._known.get(peer)
        return known.inventory if known is not None else None

    def load(self, peer: str) -> Load | None:
        if peer == self._me:
            return self._own.load()
        known = self._known.get(peer)
        return known.load if known is not None else None

    # -- one holder

    def _holdings(self) -> Iterator[_Holding]:
        """Every model of every peer that may be asked, this peer's first."""
        for holder in self._holders():
            for fact in holder.inventory.models:
                yield holder.holding(fact)

    def _holdings_of(self, model_id: str) -> list[_Holding]:
        """Those of one model, and of the same file under other names."""
        holders = [(holder, self._index(holder)) for holder in self._holders()]
        if len(self._indexes) > len(holders) + INDEXES_MORE:
            self._indexes = {holder.peer: index for holder, index in holders}
        named = [fact for _, index in holders if (fact := index.by_id.get(model_id)) is not None]
        files = {fact.sha256 for fact in named if fact.sha256}
        return [holder.holding(fact) for holder, index in holders for fact in index.named(model_id, files)]

    def _holders(self) -> Iterator[_Holder]:
        """Every peer that may be asked, this one first; then the registered servers."""
        own, load = self._own.inventory(), self._own.load()
        yield _Holder(self._me, own, load, None, None, is_cordoned=self._cordoned(self._me))
        for member in self._members.members() if self._members is not None else ():
            known = self._known.get(member.peer)
            if known is not None and known.inventory is not None and _is_there(member):
                is_cordoned = self._cordoned(member.peer)
                yield _Holder(member.peer, known.inventory, known.load, known, member, is_cordoned=is_cordoned)
        for server in self._adopted.holders() if self._adopted is not None else ():
            agent = server.agent
            yield _Holder(agent.id, server.inventory, None, _NOBODY, None, agent, agent.is_cordoned)

    def _index(self, holder: _Holder) -> _Index:
        index = self._indexes.get(holder.peer)
        if index is None or index.inventory is not holder.inventory:
            index = self._indexes[holder.peer] = _Index(holder.inventory)
        return index

    def _model(self, holdings: Sequence[_Holding]) -> MeshModel:
        return MeshModel(
            fact=holdings[0].fact,
            sha256=_same(h.fact.sha256 for h in holdings),
            holders=tuple(self._holder_name(h.holder) for h in holdings),
            is_loaded=any(h.is_loaded for h in holdings),
            is_ready=any(h.fact.is_usable and not h.holder.is_cordoned for h in holdings),
        )

    def _holder_name(self, holder: _Holder) -> str:
        return self._name_of(holder.peer) if holder.adopted is None else holder.adopted.name

    def _candidate(self, h: _Holding, now: float) -> Candidate:
        if h.holder.adopted is not None and self._adopted is not None:
            return self._adopted.candidate(h.holder.adopted, self.in_flight, now)
        load, inventory, member = h.holder.load, h.holder.inventory, h.holder.member
        heard_at = now if h.known is None else h.known.heard_at
        gpus = [gpu for gpu in inventory.gpus if gpu.is_usable]
        in_flight = 0 if h.known is None else self.in_flight.unreported(h.peer, h.fact.id, heard_at)
        running = h.load.active + h.load.queued if h.load is not None else 0
        in_flight = max(-running, in_flight)  # what ended since cannot be more than what was there
        loaded = sum(m.is_loaded for m in load.models) if load is not None else 0
        is_loaded = h.load is not None and h.load.is_loaded
        return Candidate(
            peer=h.peer,
            name=self._name_of(h.peer),
            is_local=h.known is None,
            is_suspect=(member is not None and member.state == "suspect")
            or (h.known is not None and h.known.is_avoided),
            is_penalized=self.penalties.holds(h.peer, now),
            is_loaded=is_loaded,
            is_loading=h.load is not None and not h.load.is_loaded,
            slots=h.load.slots if h.load is not None and h.load.slots else h.fact.slots,
            active=h.load.active if h.load is not None else 0,
            queued=h.load.queued if h.load is not None else 0,
            in_flight=in_flight,
            prefill_tokens_per_s=(h.load.prefill_rate or None) if h.load is not None else None,
            decode_tokens_per_s=(h.load.decode_rate or None) if h.load is not None else None,
            service_s=(h.load.service_s or None) if h.load is not None else None,
            load_s=h.fact.load_s or None,
            evicts=not is_loaded and loaded >= inventory.max_loaded and h.fact.id != HELLO,
            forward_s=h.known.forward_s if h.known is not None else 0.0,
            size_bytes=h.fact.size_bytes,
            gpu=bool(gpus),
            gpu_capability=max((gpu.capability for gpu in gpus), default=0.0),
            cpu_percent=load.cpu if load is not None else None,
            memory_percent=load.memory if load is not None else None,
            gpu_percent=load.gpu if load is not None else None,
            active_requests=(load.active if load is not None else 0) + in_flight,
            metrics_age_s=None if load is None else now - heard_at,
            response_ms=(load.response_ms or None) if load is not None else None,
            sha256=h.fact.sha256,
            context=h.fact.context,
        )

    def _take_load(self, known: _Known, data: bytes, at: float) -> None:
        load = load_in(data)
        if load is not None and at >= known.heard_at:
            known.load = load
            known.heard_at = at


_NOBODY = _Known()
"""In the place of what a peer told."""


def _is_there(member: MemberView) -> bool:
    return member.state in ("alive", "suspect") and not member.about.draining


def _same(hashes: Iterable[str]) -> str | None:
    """The hash that all have."""
    (first, *others) = set(hashes)
    return first or None if not others else None


def _view(model: MeshModel) -> ModelView:
    fact = model.fact
    return ModelView(
        id=fact.id,
        created=fact.created,
        size_bytes=fact.size_bytes,
        ready=model.is_ready,
        loaded=model.is_loaded,
        context=fact.context or None,
        capabilities=("embedding",) if fact.is_embedding else ("chat", "completion"),
        quantization=fact.quantization,
        sha256=model.sha256,
        aliases=fact.aliases,
        holders=model.holders,
    )
