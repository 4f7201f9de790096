"""What /metrics shows, read back with Prometheus' own parser."""

from __future__ import annotations

import collections
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from inference.chat import Usage
from mesh.metrics import SERIES_MAX, Kind, Metrics
from mesh.version import our_version
from tests.fixtures.tree import read


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


def watching(metrics: Metrics, *, peers: int = 3) -> Metrics:
    """The same with everything watched, as the peer does it."""
    metrics.watch(active=lambda: 7, queued=lambda: 2, models_loaded=lambda: 1)
    metrics.watch_slots(used=lambda: 3, total=lambda: 8)
    metrics.watch_mesh(members=lambda: {"alive": 3, "dead": 1}, is_coordinator=lambda: True, term=lambda: 7)
    traffic = {"messages_in": 5, "messages_out": 6, "bytes_in": 700, "bytes_out": 800, "rounds": 9, "channels": 3}
    metrics.watch_gossip(lambda: traffic | {"health": 0, "unheard_of": 4})
    metrics.watch_history(
        records=lambda: 1000,
        lag=lambda: {f"peer {number}": number for number in range(peers)},
        unacknowledged=lambda: 2,
        outbox_bytes=lambda: 4096,
        lost=lambda: 1,
        bodies_lost=lambda: 4,
        unreplicated=lambda: 3,
    )
    metrics.watch_admin(rows=lambda: 40, refused=lambda: 3, sync_age_s=lambda: 4.5)
    metrics.watch_adopted(lambda: {"online": 2, "melted": 1})
    metrics.watch_clock(lambda: -0.25)
    return metrics


def with_everything_counted(metrics: Metrics) -> Metrics:
    """The same after one of each thing that can happen."""
    usage = Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=1)
    metrics.request_ended("chat", 200, duration_s=1.0, ttft_s=0.1, usage=usage)
    metrics.request_moved("peer_gone", is_begun=True)
    metrics.pool_event("loaded")
    metrics.http_request("/v1/models", "GET", 200, 0.01)
    metrics.loop_lagged(0.001)
    metrics.coordinator_changed()
    return metrics


def series(metrics: Metrics) -> dict[str, int]:
    """How many there are of each name."""
    return collections.Counter(name for name, _ in samples(metrics))


def test_labels_stay_bounded_whatever_callers_send() -> None:
    metrics = Metrics()
    for n in range(1000):
        metrics.http_request(f"/made/up/{n}", f"VERB{n}", 1000 + n, 0.01)
    assert series(metrics)["llm_router_http_requests_total"] == 111
    assert value(metrics, "llm_router_http_requests_total", route="other", method="other", status="other") == 890


def test_what_strangers_are_refused_hides_nothing_that_is_answered() -> None:
    metrics = Metrics()
    for n in range(1000):
        metrics.http_request(f"/api/{n}", "GET", 401, 0.01)
    metrics.http_request("/v1/chat/completions", "POST", 500, 0.01)
    name = "llm_router_http_requests_total"
    assert value(metrics, name, route="/v1/chat/completions", method="POST", status="500") == 1
    assert value(metrics, name, route="other", method="other", status="4xx") == 1000 - 80


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_no_metric_has_200_series_whatever_names_there_are(data: st.DataObject) -> None:
    metrics = Metrics()
    words = st.text(max_size=12)
    names = data.draw(st.lists(words, min_size=300, max_size=400))
    watched = {
        "members": lambda: dict.fromkeys(names, 1),
        "is_coordinator": lambda: False,
        "term": lambda: 1,
    }
    metrics.watch_mesh(**watched)  # type: ignore[arg-type]
    metrics.watch_adopted(lambda: dict.fromkeys(names, 1))
    metrics.watch_gossip(lambda: dict.fromkeys(names, 1))
    metrics.watch_history(
        records=lambda: 0,
        lag=lambda: {name: number for number, name in enumerate(names)},
        unacknowledged=lambda: 0,
        outbox_bytes=lambda: 0,
        lost=lambda: 0,
    )
    for number, name in enumerate(names):
        kind: Kind = ("chat", "generate", "embeddings")[number % 3]
        for status in (100 + number, 200, 401, 503):
            metrics.http_request(f"/api/{name}", name, status, 0.1)
            metrics.http_request(f"/{number}", "GET", status, 0.1)
            usage = Usage(prompt_tokens=1, completion_tokens=1)
            metrics.request_ended(kind, status, duration_s=1, ttft_s=1, usage=usage)
            metrics.key_refused(status)
        metrics.request_moved(name, is_begun=bool(number % 2))
    counts = series(metrics)
    assert max(counts.values()) < SERIES_MAX, counts


def test_members_beyond_64_that_lag_are_one_series_and_none_is_lost() -> None:
    metrics = watching(Metrics(), peers=100)
    name = "llm_router_history_lag_entries"
    found = {dict(labels)["peer"]: number for (sample, labels), number in samples(metrics).items() if sample == name}
    assert len(found) == 65 and found["other"] == sum(range(36))
    assert found["peer 99"] == 99 and "peer 35" not in found


def test_any_name_of_a_peer_makes_valid_text() -> None:
    metrics = Metrics()
    names = ['quo"te', "back\\slash", "line\nend", "\ud800half", "", "Käse 🧀", "x" * 500]
    metrics.watch_history(
        records=lambda: 0,
        lag=lambda: dict.fromkeys(names, 5),
        unacknowledged=lambda: 0,
        outbox_bytes=lambda: 0,
        lost=lambda: 0,
    )
    found = [dict(labels)["peer"] for name, labels in samples(metrics) if name == "llm_router_history_lag_entries"]
    assert sorted(found) == sorted(['quo"te', "back\\slash", "line\nend", "?half", "?", "Käse 🧀", "x" * 64])


def test_what_the_peer_watches_is_shown() -> None:
    found = watching(Metrics())
    shown = {
        "llm_router_requests_active": 7,
        "llm_router_slots_used": 3,
        "llm_router_slots": 8,
        "llm_router_gossip_rounds_total": 9,
        "llm_router_gossip_channels": 3,
        "llm_router_gossip_health_score": 0,
        "llm_router_history_records": 1000,
        "llm_router_history_unacknowledged_total": 2,
        "llm_router_history_outbox_bytes": 4096,
        "llm_router_history_unreplicated_total": 3,
        "llm_router_admin_rows": 40,
        "llm_router_admin_rows_refused_total": 3,
        "llm_router_admin_sync_age_seconds": 4.5,
        "llm_router_clock_offset_seconds": -0.25,
    }
    assert {name: value(found, name) for name in shown} == shown
    assert value(found, "llm_router_history_lost_total", part="entry") == 1
    assert value(found, "llm_router_history_lost_total", part="body") == 4
    assert value(found, "llm_router_gossip_messages_total", direction="in") == 5
    assert value(found, "llm_router_gossip_bytes_total", direction="out") == 800
    assert value(found, "llm_router_history_lag_entries", peer="peer 2") == 2
    adopted = {
        state: value(found, "llm_router_adopted_servers", state=state) for state in ("online", "offline", "other")
    }
    assert adopted == {"online": 2, "offline": 0, "other": 1}
    assert "unheard_of" not in found.render().decode()


def test_what_is_not_known_yet_is_not_shown() -> None:
    metrics = Metrics()
    metrics.watch_admin(rows=lambda: 0, refused=lambda: 0, sync_age_s=lambda: None)
    metrics.watch_clock(lambda: None)
    metrics.watch_gossip(dict)
    names = set(series(metrics))
    assert not {name for name in names if "sync_age" in name or "clock" in name or "gossip" in name}
    assert "llm_router_admin_rows" in names


def test_what_is_refused_and_passed_on_is_counted_by_its_outcome() -> None:
    metrics = Metrics()
    for status in (401, 401, 403, 429, 500):
        metrics.key_refused(status)
    metrics.login_ended("ok")
    metrics.login_ended("limited")
    metrics.request_passed("nobody")
    metrics.coordinator_changed()
    reasons = {
        r: value(metrics, "llm_router_keys_refused_total", reason=r) for r in ("invalid", "scope", "limit", "other")
    }
    assert reasons == {"invalid": 2, "scope": 1, "limit": 1, "other": 1}
    logins = {o: value(metrics, "llm_router_logins_total", outcome=o) for o in ("ok", "refused", "limited")}
    assert logins == {"ok": 1, "refused": 0, "limited": 1}
    assert value(metrics, "llm_router_requests_passed_total", outcome="nobody") == 1
    assert value(metrics, "llm_router_requests_passed_total", outcome="ok") == 0  # there from the start
    assert value(metrics, "llm_router_mesh_coordinator_changes_total") == 1


def test_the_process_is_shown_under_the_usual_names() -> None:
    metrics = Metrics()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"):
        assert (value(metrics, name) or 0) > 0
    assert value(metrics, "llm_router_build_info", version=our_version()) == 1


def test_every_metric_keeps_the_rules_of_names_and_says_what_it_is() -> None:
    """Base units at the end, counters `_total`: what promtool checks."""
    text = with_everything_counted(watching(Metrics())).render().decode()
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"(llm_router|process)_[a-z_]+", family.name)
        assert family.documentation.endswith("."), family.name
        is_counter = any(sample.name.endswith("_total") for sample in family.samples)
        assert is_counter == (family.type == "counter"), family.name
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)(_|$)", family.name)


def test_a_name_is_watched_once() -> None:
    metrics = watching(Metrics())
    with pytest.raises(AssertionError, match="watched already"):
        metrics.watch_clock(lambda: 0.0)


# The dashboard


DASHBOARD = json.loads(read("docs/grafana/llm-router.json"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_dashboard_asks_only_for_metrics_and_labels_that_there_are() -> None:
    shown = samples(with_everything_counted(watching(Metrics())))
    labels: dict[str, set[str]] = {}
    for name, found in shown:
        labels.setdefault(name, set()).update(label for label, _ in found)
    for expression in (
        *expressions(),
        *(v["definition"] for v in DASHBOARD["templating"]["list"] if "definition" in v),
    ):
        names = set(re.findall(r"\b(?:llm_router|process)_\w+", expression))
        assert names and names <= set(labels), expression
        asked = {label for braces in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)=", braces)}
        asked |= {label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")}
        assert asked <= {"instance"}.union(*(labels[name] for name in names)), expression


def test_the_dashboard_shows_every_metric() -> None:
    text = with_everything_counted(watching(Metrics())).render().decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    asked = " ".join(expressions())
    assert not {family for family in families if family not in asked}


def test_counters_are_shown_as_rates_and_quantiles_keep_the_buckets() -> None:
    for expression in expressions():
        for counter in re.findall(r"(?:\w+\()*\w+_total\{", expression):
            assert "lost" in counter or re.match(r"(\w+\()?(rate|increase)\(", counter), expression
        if "_bucket" in expression:
            assert expression.startswith("histogram_quantile(") and "by (le" in expression


def test_the_dashboard_can_be_imported() -> None:
    """Grafana's classic model: what it needs to open the file, on whatever data source there is."""
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] and DASHBOARD["title"]
    assert DASHBOARD["schemaVersion"] == 41
    (source,) = (v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource")
    assert source["query"] == "prometheus"
    uses = {json.dumps(part["datasource"]) for panel in panels() for part in (panel, *panel["targets"])}
    assert uses == {json.dumps({"type": "prometheus", "uid": f"${{{source['name']}}}"})}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) and panel["title"]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows[:5] == ["Mesh", "Requests", "Latency", "Models, queue, slots", "History and admin state"]
    assert rows[5:] == ["Gossip and election", "Process"]


def test_no_panel_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


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
