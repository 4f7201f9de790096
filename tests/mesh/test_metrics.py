"""What /metrics shows, read back with Prometheus' own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from inference.chat import Usage
from mesh.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.render().decode()
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def test_a_request_counts_once_with_its_tokens() -> None:
    metrics = Metrics()
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4)
    metrics.request_ended("chat", 200, duration_s=2.0, ttft_s=0.3, usage=usage)
    assert value(metrics, "llm_router_requests_total", kind="chat", status="200") == 1
    assert value(metrics, "llm_router_tokens_total", type="prompt") == 10
    assert value(metrics, "llm_router_tokens_total", type="completion") == 5
    assert value(metrics, "llm_router_tokens_total", type="cached") == 4
    assert value(metrics, "llm_router_ttft_seconds_sum", kind="chat") == 0.3
    assert value(metrics, "llm_router_request_duration_seconds_count", kind="chat") == 1


def test_moves_are_counted_by_reasons_that_are_bounded() -> None:
    metrics = Metrics()
    for reason in ("peer_gone", "peer_gone", "what a peer wrote", None):
        metrics.request_moved(reason, is_begun=True)
    metrics.request_moved("holder_full", is_begun=False)
    name = "llm_router_requests_moved_total"
    assert value(metrics, name, reason="peer_gone", begun="yes") == 2
    assert value(metrics, name, reason="other", begun="yes") == 2
    assert value(metrics, name, reason="holder_full", begun="no") == 1


def test_the_mesh_is_counted_as_this_peer_sees_it() -> None:
    metrics = Metrics()
    metrics.watch_mesh(members=lambda: {"alive": 3, "dead": 1}, is_coordinator=lambda: True, term=lambda: 7)
    metrics.loop_lagged(0.03)
    name = "llm_router_mesh_members"
    assert [value(metrics, name, state=state) for state in ("alive", "dead", "suspect")] == [3, 1, 0]
    assert value(metrics, "llm_router_mesh_is_coordinator") == 1 and value(metrics, "llm_router_mesh_term") == 7
    assert value(metrics, "llm_router_event_loop_lag_seconds_bucket", le="0.05") == 1
    assert value(metrics, "llm_router_event_loop_lag_seconds_bucket", le="0.025") == 0


def test_a_request_that_ended_before_its_first_token_has_no_ttft() -> None:
    metrics = Metrics()
    metrics.request_ended(
        "generate", 503, duration_s=0.1, ttft_s=None, usage=Usage(prompt_tokens=0, completion_tokens=0)
    )
    assert value(metrics, "llm_router_ttft_seconds_count", kind="generate") is None
    assert value(metrics, "llm_router_requests_total", kind="generate", status="503") == 1


def test_labels_stay_bounded_whatever_callers_send() -> None:
    metrics = Metrics()
    for n in range(1000):
        metrics.http_request(f"/made/up/{n}", f"VERB{n}", 1000 + n, 0.01)
    counted = [key for key in samples(metrics) if key[0] == "llm_router_http_requests_total"]
    assert len(counted) == 201
    assert value(metrics, "llm_router_http_requests_total", route="other", method="other", status="other") == 800


def test_gauges_are_read_when_asked() -> None:
    metrics = Metrics()
    now = {"active": 0}
    metrics.watch(active=lambda: now["active"], queued=lambda: 2, models_loaded=lambda: 1)
    now["active"] = 7
    assert value(metrics, "llm_router_requests_active") == 7
    assert value(metrics, "llm_router_requests_queued") == 2
    assert value(metrics, "llm_router_models_loaded") == 1


def test_pool_events_are_counted() -> None:
    metrics = Metrics()
    for event in ("loaded", "load_failed", "crashed", "crashed", "unloaded"):
        metrics.pool_event(event)
    assert value(metrics, "llm_router_model_loads_total", outcome="ok") == 1
    assert value(metrics, "llm_router_model_loads_total", outcome="failed") == 1
    assert value(metrics, "llm_router_worker_crashes_total") == 2
    assert value(metrics, "llm_router_model_unloads_total") == 1


def test_two_peers_in_one_process_count_apart_and_no_created_series_is_shown() -> None:
    first, second = Metrics(), Metrics()
    first.pool_event("crashed")
    assert value(second, "llm_router_worker_crashes_total") == 0
    assert not any(name.endswith("_created") for name, _ in samples(first))
