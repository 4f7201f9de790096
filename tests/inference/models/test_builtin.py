"""The model in the package."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from inference.models.builtin import FILE, hello_model
from inference.models.model import does_count


def test_the_embedded_model_is_there_and_small() -> None:
    model = hello_model()
    assert model is not None
    assert (model.id, model.origin, model.counts, model.aliases) == ("hello", "builtin", False, ())
    assert model.path == FILE
    assert model.size_bytes <= 4_000_000
    assert model.sha256 == hashlib.sha256(FILE.read_bytes()).hexdigest()
    assert model.header.architecture == "llama" and model.header.template and not model.header.is_embedding


def test_an_installation_without_it_says_so_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = tmp_path / "hello.gguf"
    damaged.write_bytes(FILE.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert hello_model(damaged) is None
        assert hello_model(tmp_path / "absent.gguf") is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_only_small_embedders_do_not_count(tmp_path: Path) -> None:
    """F48: embedding models under 1 GiB do not count in LLM_NODE_MAX_LOADED_MODELS."""
    from dataclasses import replace

    model = hello_model()
    assert model is not None
    embedder = replace(model.header, pooling=1)
    assert not does_count(embedder, 1024**3 - 1)
    assert does_count(embedder, 1024**3)
    assert does_count(model.header, 1)
