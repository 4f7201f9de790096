"""What of the ctypes layer can be tested without a process of its own: the vocabulary of a real file."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


_COUNTED = """
import json, sys
from inference.engine.llama import Model

model = Model(sys.argv[1], gpu_layers=0, on_progress=lambda fraction: None)
tokens = [model.tokenize(text, special=True, add_special=True) for text in json.load(sys.stdin)]
print(json.dumps([b"".join(model.piece(int(token)) for token in row).decode() for row in tokens]))
"""


@pytest.mark.parametrize("splitter", [b"gpt-2", b"bloom"])
def test_a_hundred_thousand_letters_without_a_space_are_tokenized(
    tiny_gguf: Path, tmp_path: Path, splitter: bytes
) -> None:
    """`bloom` stands for the vocabularies that llama.cpp splits by std::regex, which ended the process by SIGSEGV."""
    key = b"tokenizer.ggml.pre" + b"\x08\x00\x00\x00" + b"\x05" + b"\x00" * 7
    data = tiny_gguf.read_bytes()
    assert data.count(key + b"gpt-2") == 1
    model = tmp_path / "model.gguf"
    model.write_bytes(data.replace(key + b"gpt-2", key + splitter))
    texts = ["a" * 100_000, "hi " + "b" * 50_000 + " ho", "short"]
    found = subprocess.run(
        [sys.executable, "-c", _COUNTED, str(model)],
        input=json.dumps(texts).encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == texts


@given(st.lists(st.tuples(st.sampled_from(["a", " ", ".", "\u4e2d", "a,b", "\n"]), st.integers(1, 9000)), max_size=4))
def test_text_is_cut_only_where_a_run_is_too_long(runs: list[tuple[str, int]]) -> None:
    from inference.engine.llama import RUN_CHARS_MAX, has_long_run, parts

    text = "".join(piece * count for piece, count in runs)
    longest = max((len(run) for run in re.findall(r"\S+|\s+", text)), default=0)
    cut = list(parts(text))
    assert "".join(cut) == text
    assert (len(cut) > 1) == (longest > RUN_CHARS_MAX)
    assert all(len(run) <= RUN_CHARS_MAX for part in cut for run in re.findall(r"\S+|\s+", part))
    assert has_long_run(text) or longest <= RUN_CHARS_MAX


def test_a_run_is_cut_before_punctuation() -> None:
    from inference.engine.llama import parts

    first, *_ = parts("\u4e2d\u6587\uff0c" * 3000)
    assert first.endswith("\u6587")
