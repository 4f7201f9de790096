"""Every metric of this peer, declared in one place (Prometheus; a registry of its own).

Labels are bounded: what callers choose freely (model names, unknown routes and methods) never becomes one, and no
metric has `SERIES_MAX` series or more, whatever is asked of the peer. Here nothing is measured; who measures calls
these methods, and `watch_...` (each of them once) takes what is read when somebody asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.registry import Collector

from inference.chat import Usage
from mesh.version import our_version

Kind = Literal["chat", "generate", "embeddings"]
LoginOutcome = Literal["ok", "refused", "limited"]
PassedOutcome = Literal["ok", "refused", "failed", "nobody"]

SERIES_MAX = 200
PEERS_MAX = 64
"""The mesh's size up to which every member is a label; above it, those with the highest values, and `other`."""

CLIENT_LEFT = 499  # as proxies log it: the caller went before the answer was complete
_STATUSES = {s.value for s in HTTPStatus} | {CLIENT_LEFT}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# What strangers can make appear (4xx) has a room of its own, or a scan would hide what the peer answers.
_HTTP_REFUSED_MAX = 80
_HTTP_ANSWERED_MAX = 110

_MOVE_REASONS = {
    "peer_gone", "peer_silent", "peer_draining", "wedged", "worker_died", "holder_full", "overloaded",
    "model_unavailable", "model_load_failed",
}  # fmt: skip
_KEY_REASONS = {401: "invalid", 403: "scope", 429: "limit"}
MEMBER_STATES = ("alive", "suspect", "dead", "left", "unknown")
ADOPTED_STATES = ("online", "offline", "disconnected")

# From a cached prompt on a GPU to a long prompt on a CPU.
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_HTTP_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._watched = _Watched()
        registry.register(self._watched)
        self._requests = Counter(
            "llm_router_requests_total",
            "Requests for tokens, by how they ended.",
            ["kind", "status"],
            registry=registry,
        )
        self._tokens = Counter("llm_router_tokens_total", "Tokens, by what they were.", ["type"], registry=registry)
        self._ttft = Histogram(
            "llm_router_ttft_seconds", "Time to the first token.", ["kind"], buckets=_TTFT_S, registry=registry
        )
        self._duration = Histogram(
            "llm_router_request_duration_seconds",
            "From the request to its end.",
            ["kind"],
            buckets=_DURATION_S,
            registry=registry,
        )
        self._loads = Counter("llm_router_model_loads_total", "Model loads.", ["outcome"], registry=registry)
        self._unloads = Counter("llm_router_model_unloads_total", "Models unloaded.", registry=registry)
        self._crashes = Counter("llm_router_worker_crashes_total", "Workers that ended unasked.", registry=registry)
        self._moves = Counter(
            "llm_router_requests_moved_total",
            "Requests tried again or continued, at another peer or here, by why and whether they had tokens.",
            ["reason", "begun"],
            registry=registry,
        )
        self._http = Counter(
            "llm_router_http_requests_total", "HTTP requests.", ["route", "method", "status"], registry=registry
        )
        self._http_seconds = Histogram(
            "llm_router_http_request_duration_seconds",
            "HTTP requests, by the first part of their path.",
            ["area"],
            buckets=_HTTP_S,
            registry=registry,
        )
        self._lag = Histogram(
            "llm_router_event_loop_lag_seconds",
            "How late this peer's event loop was, sampled ten times a second.",
            buckets=_LAG_S,
            registry=registry,
        )
        self._keys_refused = self._counted("llm_router_keys_refused_total", "API keys refused.", "reason", _REASONS)
        self._logins = self._counted("llm_router_logins_total", "Logins.", "outcome", ("ok", "refused", "limited"))
        self._passed = self._counted(
            "llm_router_requests_passed_total",
            "Requests passed on to the peer that answers them; nobody: there was none.",
            "outcome",
            ("ok", "refused", "failed", "nobody"),
        )
        self._coordinators = Counter(
            "llm_router_mesh_coordinator_changes_total", "Times that another peer coordinated.", registry=registry
        )
        self._http_known: dict[bool, set[tuple[str, str, str]]] = {True: set(), False: set()}
        self._watch_process()

    # -- what happened

    def request_ended(self, kind: Kind, status: int, *, duration_s: float, ttft_s: float | None, usage: Usage) -> None:
        """One request for tokens; `ttft_s` None if it ended before its first."""
        self._requests.labels(kind, _status(status)).inc()
        self._duration.labels(kind).observe(duration_s)
        if ttft_s is not None:
            self._ttft.labels(kind).observe(ttft_s)
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("completion").inc(usage.completion_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)

    def request_moved(self, reason: str | None, *, is_begun: bool) -> None:
        """A try failed, and the request goes on: `reason` is the error's code."""
        label = reason if reason in _MOVE_REASONS else "other"
        self._moves.labels(label, "yes" if is_begun else "no").inc()

    def pool_event(self, event: Literal["loaded", "load_failed", "crashed", "unloaded"]) -> None:
        """What happened in the pool of models."""
        match event:
            case "loaded":
                self._loads.labels("ok").inc()
            case "load_failed":
                self._loads.labels("failed").inc()
            case "crashed":
                self._crashes.inc()
            case "unloaded":
                self._unloads.inc()

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One HTTP request; `route` is the pattern of the route table, not the path."""
        self._http.labels(*self._http_labels(route, method, status)).inc()
        self._http_seconds.labels(_area(route)).observe(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """One sample of the event loop's lateness."""
        self._lag.observe(seconds)

    def coordinator_changed(self) -> None:
        """Another peer coordinates now, or this one."""
        self._coordinators.inc()

    def key_refused(self, status: int) -> None:
        """An API key was answered with 401 (unknown, over, expired), 403 (may not do this) or 429 (above its limit)."""
        self._keys_refused.labels(_KEY_REASONS.get(status, "other")).inc()

    def login_ended(self, outcome: LoginOutcome) -> None:
        """Somebody gave a name and a password; `limited`: too many tries."""
        self._logins.labels(outcome).inc()

    def request_passed(self, outcome: PassedOutcome) -> None:
        """A request was passed on: answered with 2xx or 3xx, with 4xx, with 5xx or not at all; or there was nobody."""
        self._passed.labels(outcome).inc()

    # -- what is read when somebody asks

    def watch(self, *, active: Callable[[], int], queued: Callable[[], int], models_loaded: Callable[[], int]) -> None:
        """What this peer is busy with."""
        self._gauge("llm_router_requests_active", "Requests running or waiting now.", active)
        self._gauge("llm_router_requests_queued", "Requests waiting for a slot now.", queued)
        self._gauge("llm_router_models_loaded", "Models in memory now.", models_loaded)

    def watch_slots(self, *, used: Callable[[], int], total: Callable[[], int]) -> None:
        """The slots of the models in memory here."""
        self._gauge("llm_router_slots_used", "Slots that make an answer now.", used)
        self._gauge("llm_router_slots", "Slots of the models in memory now.", total)

    def watch_mesh(
        self, *, members: Callable[[], Mapping[str, int]], is_coordinator: Callable[[], bool], term: Callable[[], int]
    ) -> None:
        """The mesh as this peer sees it; `members` by state, itself not among them."""
        self._gauge(
            "llm_router_mesh_members",
            "Other members of the mesh, by state.",
            _each(members, MEMBER_STATES),
            label="state",
        )
        self._gauge("llm_router_mesh_is_coordinator", "1 when this peer coordinates.", is_coordinator)
        self._gauge("llm_router_mesh_term", "The highest term heard of.", term)

    def watch_gossip(self, values: Callable[[], Mapping[str, float]]) -> None:
        """Traffic between members since the start: messages_in, messages_out, bytes_in, bytes_out, rounds; and as it is
        now: channels, health (0 is good). What `values` does not know is not shown."""
        self._counter(
            "llm_router_gossip_messages_total",
            "Messages from and to members.",
            lambda: _directed(values(), "messages"),
            label="direction",
        )
        self._counter(
            "llm_router_gossip_bytes_total", "Bytes of those.", lambda: _directed(values(), "bytes"), label="direction"
        )
        self._counter("llm_router_gossip_rounds_total", "Members probed.", lambda: values().get("rounds"))
        self._gauge("llm_router_gossip_channels", "Open channels to members.", lambda: values().get("channels"))
        self._gauge(
            "llm_router_gossip_health_score",
            "How late this peer itself is, by Lifeguard's count; 0 is good.",
            lambda: values().get("health"),
        )

    def watch_history(
        self,
        *,
        records: Callable[[], int],
        lag: Callable[[], Mapping[str, int]],
        unacknowledged: Callable[[], int],
        outbox_bytes: Callable[[], int],
        lost: Callable[[], int],
        bodies_lost: Callable[[], int] = lambda: 0,
        unreplicated: Callable[[], int] = lambda: 0,
    ) -> None:
        """The history that this peer holds. `lag`: entries of each peer's log, by its name, that are not here yet.

        `unacknowledged`: answers that were sent before their record was on the disk, `unreplicated`: on a second one
        where that was wanted; `lost` and `bodies_lost`: what the outbox had no room for.
        """
        self._gauge("llm_router_history_records", "Records of requests held here.", records)
        self._gauge(
            "llm_router_history_lag_entries",
            "Entries of a peer's log that are not here yet.",
            lambda: _largest(lag()),
            label="peer",
        )
        self._counter(
            "llm_router_history_unacknowledged_total",
            "Answers sent before their record was on the disk.",
            unacknowledged,
        )
        self._gauge("llm_router_history_outbox_bytes", "Records that wait for the disk.", outbox_bytes)
        self._counter(
            "llm_router_history_unreplicated_total",
            "Answers sent before their record was on a second disk, where that was wanted.",
            unreplicated,
        )
        self._counter(
            "llm_router_history_lost_total",
            "What the outbox had no room for: entries of requests, or only their bodies.",
            lambda: {"entry": lost(), "body": bodies_lost()},
            label="part",
        )

    def watch_admin(
        self, *, rows: Callable[[], int], refused: Callable[[], int], sync_age_s: Callable[[], float | None]
    ) -> None:
        """The map of users, keys and settings. `sync_age_s`: since it was last compared with another peer's."""
        self._gauge("llm_router_admin_rows", "Rows of the admin map.", rows)
        self._counter("llm_router_admin_rows_refused_total", "Rows of others that do not count.", refused)
        self._gauge(
            "llm_router_admin_sync_age_seconds", "Since the map was last compared with another peer's.", sync_age_s
        )

    def watch_adopted(self, states: Callable[[], Mapping[str, int]]) -> None:
        """Servers that are no peers (Ollama and the like), by state."""
        self._gauge(
            "llm_router_adopted_servers",
            "Registered servers that are no peers, by state.",
            _each(states, ADOPTED_STATES),
            label="state",
        )

    def watch_clock(self, offset_s: Callable[[], float | None]) -> None:
        """How far the own clock is before the members' median; None: nobody to compare with."""
        self._gauge("llm_router_clock_offset_seconds", "This clock minus the median of the members'.", offset_s)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    # -- inside

    def _watch_process(self) -> None:
        """Under the names that every Prometheus client uses for them."""
        process = psutil.Process()
        self._gauge("llm_router_build_info", "1, and the version.", lambda: {our_version(): 1}, label="version")
        self._counter("process_cpu_seconds_total", "CPU time of the peer.", lambda: sum(process.cpu_times()[:2]))
        self._gauge("process_resident_memory_bytes", "Memory of the peer.", lambda: process.memory_info().rss)
        self._gauge("process_start_time_seconds", "When it started, in unix seconds.", process.create_time)
        opened = getattr(process, "num_fds" if os.name == "posix" else "num_handles")
        self._gauge("process_open_fds", "Files and sockets that it has open.", opened)

    def _counted(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        """A counter that shows each of its labels from the start, so that the first one is a change."""
        counter = Counter(name, text, [label], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def _gauge(self, name: str, text: str, read: Read, *, label: str = "") -> None:
        self._watched.add(_Reading(name, text, read, label, is_counter=False))

    def _counter(self, name: str, text: str, read: Read, *, label: str = "") -> None:
        self._watched.add(_Reading(name, text, read, label, is_counter=True))

    def _http_labels(self, route: str, method: str, status: int) -> tuple[str, str, str]:
        labels = (route, method if method in _METHODS else "other", _status(status))
        is_refused = 400 <= status < 500
        known = self._http_known[is_refused]
        if labels not in known and len(known) >= (_HTTP_REFUSED_MAX if is_refused else _HTTP_ANSWERED_MAX):
            return "other", "other", f"{status // 100}xx" if status in _STATUSES else "other"
        known.add(labels)
        return labels


Read = Callable[[], float | Mapping[str, float] | None]
"""A number, or numbers by label; None: not known now, so nothing is shown."""

_REASONS = (*_KEY_REASONS.values(), "other")


@dataclass(frozen=True, slots=True)
class _Reading:
    name: str
    text: str
    read: Read
    label: str
    is_counter: bool


class _Watched(Collector):
    """What is read anew each time."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def add(self, reading: _Reading) -> None:
        assert reading.name not in self._readings, f"{reading.name} is watched already"
        self._readings[reading.name] = reading

    def collect(self) -> Iterator[Metric]:
        """prometheus_client asks for this."""
        for reading in self._readings.values():
            family = CounterMetricFamily if reading.is_counter else GaugeMetricFamily
            shown = family(reading.name, reading.text, labels=[reading.label] if reading.label else [])
            found = reading.read()
            if isinstance(found, Mapping):
                for value, number in found.items():
                    shown.add_metric([value], float(number))
            elif found is not None:
                shown.add_metric([], float(found))
            yield shown


def _each(read: Callable[[], Mapping[str, int]], states: tuple[str, ...]) -> Read:
    """A number for every state, 0 where there is none; what is in no known state counts as `other`."""

    def numbers() -> dict[str, float]:
        found = dict(read())
        shown = {state: float(found.pop(state, 0)) for state in states}
        return shown | ({"other": float(sum(found.values()))} if found else {})

    return numbers


def _directed(values: Mapping[str, float], what: str) -> dict[str, float]:
    return {way: values[f"{what}_{way}"] for way in ("in", "out") if f"{what}_{way}" in values}


def _largest(found: Mapping[str, int]) -> dict[str, float]:
    """By name: the PEERS_MAX largest, the others in one."""
    shown: dict[str, float] = {}
    for name, number in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        text = name.encode("utf-8", "replace").decode()[:64] or "?"
        label = text if len(shown) < PEERS_MAX or text in shown else "other"
        shown[label] = shown.get(label, 0.0) + number
    return shown


def _area(route: str) -> str:
    first = route.split("/")[1:2]
    return first[0] if first in (["v1"], ["api"]) else "other"


def _status(status: int) -> str:
    return str(status) if status in _STATUSES else "other"
