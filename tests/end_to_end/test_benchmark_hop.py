"""benchmarks/hop.py runs: two peers, two streams, a few tokens, nobody to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import hop


def test_benchmark_of_the_hop_measures_every_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_at = tmp_path / "rows.json"
    words = "--no-nginx --rates 100 --rounds 1 --seconds 0.2 --streams 2 --flood 50 --idle 0.1 --json"
    hop.main([*words.split(), str(rows_at)])
    rows = json.loads(rows_at.read_text())
    loads = ("first token", "100/s", "flood")
    assert {(row["way"], row["load"]) for row in rows} == {(way, load) for way in ("direct", "hop") for load in loads}
    assert all(row["tokens_per_s"] > 0 and row["ttft_p50_ms"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "| 100/s | LiteLLM | not measured |" in printed and "| nginx | not measured |" in printed
    assert "idle ingress: " in printed
