"""Every metric of this peer, declared in one place (Prometheus; a registry of its own).

Labels are bounded: what callers choose freely (model names, unknown routes and methods) never becomes one. Here
nothing is measured; who measures calls these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import disable_created_metrics

from inference.chat import Usage

Kind = Literal["chat", "generate", "embeddings"]

CLIENT_LEFT = 499  # as proxies log it: the caller went before the answer was complete
_STATUSES = {s.value for s in HTTPStatus} | {CLIENT_LEFT}
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_ROUTES_MAX = 200  # far above the route table

_MOVE_REASONS = {
    "peer_gone", "peer_silent", "peer_draining", "wedged", "worker_died", "holder_full", "overloaded",
    "model_unavailable", "model_load_failed",
}  # fmt: skip

# From a cached prompt on a GPU to a long prompt on a CPU.
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DURATION_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
MEMBER_STATES = ("alive", "suspect", "dead", "left", "unknown")
_HTTP_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
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
            "llm_router_http_request_duration_seconds", "HTTP requests.", ["route"], buckets=_HTTP_S, registry=registry
        )
        self._lag = Histogram(
            "llm_router_event_loop_lag_seconds",
            "How late this peer's event loop was, sampled ten times a second.",
            buckets=_LAG_S,
            registry=registry,
        )
        self._routes: set[str] = set()

    def watch_mesh(
        self, *, members: Callable[[], Mapping[str, int]], is_coordinator: Callable[[], bool], term: Callable[[], int]
    ) -> None:
        """Gauges of the mesh as this peer sees it; `members` by state, itself not among them. Call it once."""
        gauge = Gauge(
            "llm_router_mesh_members", "Other members of the mesh, by state.", ["state"], registry=self._registry
        )
        for state in MEMBER_STATES:
            gauge.labels(state).set_function(lambda state=state: float(members().get(state, 0)))  # type: ignore[misc]
        self._gauge("llm_router_mesh_is_coordinator", "1 when this peer coordinates.", is_coordinator)
        self._gauge("llm_router_mesh_term", "The highest term heard of.", term)

    def loop_lagged(self, seconds: float) -> None:
        """One sample of the event loop's lateness."""
        self._lag.observe(seconds)

    def watch(self, *, active: Callable[[], int], queued: Callable[[], int], models_loaded: Callable[[], int]) -> None:
        """Gauges that are read when somebody asks. Call it once."""
        self._gauge("llm_router_requests_active", "Requests running or waiting now.", active)
        self._gauge("llm_router_requests_queued", "Requests waiting for a slot now.", queued)
        self._gauge("llm_router_models_loaded", "Models in memory now.", models_loaded)

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
        if len(self._routes) < _ROUTES_MAX:
            self._routes.add(route)
        if route not in self._routes:
            route = "other"
        self._http.labels(route, method if method in _METHODS else "other", _status(status)).inc()
        self._http_seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str, read: Callable[[], int]) -> None:
        Gauge(name, text, registry=self._registry).set_function(lambda: float(read()))


def _status(status: int) -> str:
    return str(status) if status in _STATUSES else "other"
