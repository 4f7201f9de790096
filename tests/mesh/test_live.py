"""Settings that the mesh gives: where they count, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from inference.errors import InvalidRequest
from mesh.config import load
from mesh.live import MESH_SETTINGS, LiveSettings, checked


def live(rows: dict[str, dict[str, Any]], environ: dict[str, str] | None = None) -> LiveSettings:
    return LiveSettings(load({}, environ or {}), rows.get)


def test_the_mesh_counts_before_the_default_and_after_what_the_machine_says() -> None:
    rows = {"setting/history_days": {"value": "30"}}
    assert live({}).history_days == 7
    assert live(rows).history_days == 30
    assert live(rows, {"LLM_ROUTER_HISTORY_DAYS": "3"}).history_days == 3


def test_a_changed_row_counts_at_once() -> None:
    rows: dict[str, dict[str, Any]] = {}
    found = live(rows)
    rows["setting/load_balancer_mode"] = {"value": "metrics"}
    assert found.load_balancer_mode == "metrics"
    rows["setting/load_balancer_mode"] = {"value": None}
    assert found.load_balancer_mode == "auto"


def test_a_row_that_cannot_be_read_counts_for_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    found = live({"setting/history_bodies": {"value": "some of them"}})
    with caplog.at_level(logging.WARNING):
        assert (found.history_bodies, found.history_bodies) == ("full", "full")
    assert len(caplog.records) == 1


def test_each_setting_is_shown_with_where_it_comes_from() -> None:
    shown = live({"setting/history_ack": {"value": "replicated"}}, {"LLM_ROUTER_NODE_TIMEOUT": "5"}).shown()
    assert set(shown) == {setting.name for setting in MESH_SETTINGS}
    assert (shown["history_ack"]["value"], shown["history_ack"]["origin"]) == ("replicated", "mesh")
    assert (shown["node_timeout"]["value"], shown["node_timeout"]["origin"]) == ("5", "this machine")
    assert shown["history_days"]["origin"] == "default"


def test_changes_become_text_and_null_takes_a_setting_back() -> None:
    assert checked({"history_days": 3, "history_bodies": " metadata ", "node_timeout": None}) == {
        "history_days": "3",
        "history_bodies": "metadata",
        "node_timeout": None,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"port": 1}, "no setting of a mesh"),
        ({"nonsense": 1}, "no setting of a mesh"),
        ({"history_days": 0}, "history_days"),
        ({"history_days": True}, "history_days"),
        ({"history_days": {}}, "history_days"),
        ({"history_bodies": "x" * 5000}, "history_bodies"),
    ],
)
def test_what_cannot_be_is_refused_with_the_setting_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        checked(changes)


def test_a_pinned_coordinator_is_a_peer_id_or_nobody() -> None:
    assert live({"mesh/coordinator": {"peer": "abc"}}).pinned == "abc"
    assert live({"mesh/coordinator": {"peer": None}}).pinned is None
    assert live({}).pinned is None
