"""What of the ctypes layer can be tested without a process of its own: the vocabulary of a real file."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def test_pieces_asked_for_by_two_threads_at_once_are_not_mixed_up(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash the preparer replays answers while the step loop makes text; ctypes lets both in."""
    import llama_cpp.llama_cpp as native

    from inference.engine import llama

    def model() -> llama.Model:
        return llama.Model(str(tiny_gguf), gpu_layers=0, on_progress=lambda fraction: None)

    plain, raced = model(), model()
    first, second = next((a, a + 1) for a in range(10, 300) if plain.piece(a) != plain.piece(a + 1))
    real = native.llama_token_to_piece

    def interrupted(vocab: object, token: int, buffer: ctypes.Array[ctypes.c_char], *rest: object) -> int:
        n: int = real(vocab, token, buffer, *rest)
        if token == first:
            raced.piece(second)  # what another thread does here, before this call has read its buffer
        return n

    monkeypatch.setattr(native, "llama_token_to_piece", interrupted)
    assert raced.piece(first) == plain.piece(first)
    assert raced.piece(second) == plain.piece(second)
