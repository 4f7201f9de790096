"""A model and its context in llama.cpp, through llama-cpp-python's low-level ctypes bindings (0.3.36).

This is the only module that touches native code, and only a worker process may import it: a wrong call here
ends the process. It decides nothing. What llama.cpp answers with abort() is kept away by construction:

- partial `seq_cp` needs `kv_unified`, which is always on here;
- `n_outputs_max` is the number of sequences, and a batch never asks for more rows of logits than that;
- sequence ids come from `range(sequences)`;
- no run of letters longer than RUN_CHARS_MAX reaches the tokenizer (see `parts`).

The batch is a set of numpy arrays made once, which llama.cpp reads in place. Logits are a view of llama.cpp's
own buffer, valid until the next `decode`.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

import llama_cpp.llama_cpp as C
import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

UBATCH = 512
"""Tokens of one evaluation: llama.cpp's own default; larger gains nothing on a CPU and delays first tokens."""

EMBED_CONTEXT_MAX = 8192
"""Longest input of an embedding model: all of it is one evaluation, and buffers grow with it."""

RUN_CHARS_MAX = 4096
"""llama.cpp splits text by std::regex for many vocabularies. libstdc++'s recurses for each character of a match, by
about 400 bytes: 30,000 letters without a space overran a stack of 8 MiB."""

DECODE_OK, DECODE_NO_ROOM, DECODE_ABORTED = 0, 1, 2

_errors: list[str] = []


class LoadError(Exception):
    """llama.cpp refused the file or the memory; the message holds what it logged."""


def _logged(level: int, text: bytes, _data: object) -> None:
    """Keep llama.cpp's warnings and errors; they also go to stderr, which the peer logs."""
    if level in (3, 4):  # GGML_LOG_LEVEL_WARN, _ERROR
        line = text.decode("utf-8", "replace").rstrip()
        if level == 4:
            _errors.append(line)
            del _errors[:-5]
        print(line, file=sys.stderr)


_log = C.llama_log_callback(_logged)


class Model:
    """The weights and the vocabulary of one file."""

    def __init__(self, path: str, *, gpu_layers: int, on_progress: Callable[[float], None]) -> None:
        """Load `path`. Raises LoadError. `on_progress` gets a fraction, 0..1."""
        C.llama_log_set(_log, ctypes.c_void_p(0))
        C.llama_backend_init()
        params = C.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def progress(fraction: float, _data: object) -> bool:
            on_progress(fraction)
            return True

        params.progress_callback = C.llama_progress_callback(progress)
        self.handle = C.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError("; ".join(_errors) or "llama.cpp cannot load the file")
        self.vocab = C.llama_model_get_vocab(self.handle)
        self.vocab_size: int = C.llama_vocab_n_tokens(self.vocab)
        self.context_trained: int = C.llama_model_n_ctx_train(self.handle)
        self.embedding_dim: int = C.llama_model_n_embd_out(self.handle)
        self.can_rewind = not (C.llama_model_is_recurrent(self.handle) or C.llama_model_is_hybrid(self.handle))
        self.is_eog = bytes(bool(C.llama_vocab_is_eog(self.vocab, t)) for t in range(self.vocab_size))
        self.pieces: list[bytes | None] = [None] * self.vocab_size
        self._longest = 0  # bytes of the longest token, once somebody asked

    def tokenize(self, text: str, *, special: bool, add_special: bool) -> Tokens:
        """Token ids of `text`, int32 (n,). `special`: control tokens in the text are parsed as such."""
        if C.llama_vocab_type(self.vocab) != C.LLAMA_VOCAB_TYPE_BPE or not has_long_run(text):
            return self._tokenized(text, special=special, add_special=add_special)
        begin = [C.llama_vocab_bos(self.vocab)] if add_special and C.llama_vocab_get_add_bos(self.vocab) else []
        end = [C.llama_vocab_eos(self.vocab)] if add_special and C.llama_vocab_get_add_eos(self.vocab) else []
        middle = [self._tokenized(part, special=special, add_special=False) for part in parts(text)]
        return np.concatenate([np.asarray(begin, np.int32), *middle, np.asarray(end, np.int32)])

    def least_tokens(self, text: str) -> int:
        """How many tokens `text` has at least: as if all were the longest there is. 0 where nothing can be said.

        Other kinds of vocabulary than these two leave out, or merge, what they do not know.
        """
        if C.llama_vocab_type(self.vocab) not in (C.LLAMA_VOCAB_TYPE_BPE, C.LLAMA_VOCAB_TYPE_SPM):
            return 0
        if self._longest == 0:
            texts = (self.piece(t) or self.token_text(t).encode() for t in range(self.vocab_size))
            self._longest = max(map(len, texts))
        return len(text) // max(1, self._longest)

    def _tokenized(self, text: str, *, special: bool, add_special: bool) -> Tokens:
        data = text.encode()
        out = np.empty(len(data) + 8, np.int32)
        pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        n = C.llama_tokenize(self.vocab, data, len(data), pointer, len(out), add_special, special)
        if n < 0:  # more tokens than bytes: a vocabulary with strange normalization
            out = np.empty(-n, np.int32)
            pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = C.llama_tokenize(self.vocab, data, len(data), pointer, len(out), add_special, special)
        return out[: max(n, 0)].copy()

    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens have none. Any thread: each call has a buffer of its own."""
        known = self.pieces[token]
        if known is None:
            buffer = ctypes.create_string_buffer(64)
            n = C.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = C.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
            known = self.pieces[token] = buffer.raw[:n]
        return known

    def token_text(self, token: int) -> str:
        """The text of a control token as templates write it; empty for "none" (-1)."""
        if token < 0:
            return ""
        text: bytes = C.llama_vocab_get_text(self.vocab, token)
        return text.decode("utf-8", "replace")

    @property
    def bos_text(self) -> str:
        """The begin-of-sequence token, written out."""
        return self.token_text(C.llama_vocab_bos(self.vocab))

    @property
    def eos_text(self) -> str:
        """The end-of-sequence token, written out."""
        return self.token_text(C.llama_vocab_eos(self.vocab))

    @property
    def template(self) -> str | None:
        """The chat template in the file, or None."""
        raw: bytes | None = C.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw else None


def has_long_run(text: str) -> bool:
    """True when `text` holds a run of RUN_CHARS_MAX characters that are all space or all none; maybe for half of it."""
    half = RUN_CHARS_MAX // 2
    windows = (text[at : at + half] for at in range(0, len(text) - half + 1, half))
    return any(window.isspace() or len(window.split(None, 1)[0]) == half for window in windows)


def parts(text: str) -> Iterator[str]:
    """`text` in pieces without a run longer than RUN_CHARS_MAX, cut before punctuation if possible.

    Nothing but damaged or hostile text has such runs; it gets a few other tokens at the cuts than it would uncut.
    """
    start = 0
    for run in _RUNS.finditer(text):
        at = run.start()
        while run.end() - at > RUN_CHARS_MAX:
            half = at + RUN_CHARS_MAX // 2
            ends = [found.end() for found in _WORD_ENDS.finditer(text, half, at + RUN_CHARS_MAX)]
            at = ends[-1] if ends else at + RUN_CHARS_MAX
            yield text[start:at]
            start = at
    yield text[start:]


_RUNS = re.compile(r"\S+|\s+")
_WORD_ENDS = re.compile(r"\w(?=[^\w\s])")


class Context:
    """One llama_context: KV cells shared by `sequences` sequences, and the batch that is evaluated."""

    def __init__(self, model: Model, *, cells: int, sequences: int, threads: int, embedding: bool) -> None:
        """Raises LoadError when llama.cpp cannot have the memory, or does not take what it was told."""
        self._model = model
        if not embedding:  # llama.cpp rounds up too, but after it has bounded the batch by the context
            cells = -(-cells // 256) * 256
        self.batch_size = cells if embedding else min(cells, max(UBATCH, sequences))
        params = C.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = self.batch_size
        params.n_seq_max = sequences
        params.n_outputs_max = self.batch_size if embedding else sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.swa_full = True
        params.no_perf = True
        params.embeddings = embedding
        # A Python abort callback would need the GIL at every graph node. strlen() of a two-byte buffer is a
        # native one: "" goes on, "x" stops the evaluation.
        self._abort = ctypes.create_string_buffer(2)
        libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
        params.abort_callback = ctypes.cast(libc.strlen, C.ggml_abort_callback)
        params.abort_callback_data = ctypes.addressof(self._abort)
        _errors.clear()
        self.handle = C.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError("; ".join(_errors) or f"llama.cpp cannot make a context of {cells:,} tokens")
        if C.llama_n_seq_max(self.handle) != sequences or C.llama_n_batch(self.handle) != self.batch_size:
            raise LoadError("the context's parameters were not taken: llama-cpp-python does not match its library")
        self._memory = C.llama_get_memory(self.handle)
        self.cells: int = C.llama_n_ctx(self.handle)
        self.pooling: int = C.llama_pooling_type(self.handle)
        self._make_batch(self.batch_size)
        self._logits_at = 0
        self._logits = np.empty((0, model.vocab_size), np.float32)

    def _make_batch(self, size: int) -> None:
        self.token = np.zeros(size, np.int32)
        self.position = np.zeros(size, np.int32)
        self.sequence = np.zeros(size, np.int32)
        self.wants_row = np.zeros(size, np.int8)
        self._one = np.ones(size, np.int32)
        self._sequence_at = self.sequence.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        pointer = ctypes.POINTER
        self._batch = C.llama_batch(
            0,
            self.token.ctypes.data_as(pointer(ctypes.c_int32)),
            None,
            self.position.ctypes.data_as(pointer(ctypes.c_int32)),
            self._one.ctypes.data_as(pointer(ctypes.c_int32)),
            self._sequence_at.ctypes.data_as(pointer(pointer(ctypes.c_int32))),
            self.wants_row.ctypes.data_as(pointer(ctypes.c_int8)),
        )

    def decode(self, n: int) -> int:
        """Evaluate the first `n` tokens of the batch. DECODE_OK, _NO_ROOM, _ABORTED, or negative: failed.

        Models without a KV cache (BERT) take the same call; llama.cpp turns it into `llama_encode`.
        """
        self._batch.n_tokens = n
        return int(C.llama_decode(self.handle, self._batch))

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """(rows, vocab_size): one row for each token with `wants_row`, in the order of the batch."""
        at = ctypes.cast(C.llama_get_logits(self.handle), ctypes.c_void_p).value or 0
        if at != self._logits_at or rows > len(self._logits):
            size = rows * self._model.vocab_size
            flat = np.ctypeslib.as_array((ctypes.c_float * size).from_address(at))
            self._logits_at, self._logits = at, flat.reshape(rows, self._model.vocab_size)
        return self._logits

    def pooled(self, sequence: int) -> npt.NDArray[np.float32]:
        """(embedding_dim,): the pooled embedding of one sequence of the batch just evaluated; a copy."""
        pointer = C.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, (self._model.embedding_dim,)).copy()

    def forget(self, sequence: int, start: int = -1) -> bool:
        """Drop the cells of `sequence` from position `start` on (-1: all). False: this model cannot go back."""
        return bool(C.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def share(self, source: int, target: int, end: int) -> None:
        """Let `target` use `source`'s cells for positions 0 .. end-1. Copies nothing."""
        C.llama_memory_seq_cp(self._memory, source, target, 0, end)

    def save(self, sequence: int) -> npt.NDArray[np.uint8]:
        """The cells of `sequence`, copied out; for `restore` in this context only."""
        size = C.llama_state_seq_get_size(self.handle, sequence)
        state = np.empty(size, np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: C.llama_state_seq_get_data(self.handle, pointer, size, sequence)]

    def restore(self, sequence: int, state: object) -> bool:
        """Put what `save` returned into `sequence`, whose own cells go. False: there is no room."""
        assert isinstance(state, np.ndarray)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(C.llama_state_seq_set_data(self.handle, pointer, state.nbytes, sequence))

    def clear(self) -> None:
        """Forget every sequence."""
        C.llama_memory_clear(self._memory, True)

    def abort(self, on: bool) -> None:
        """Any thread: `decode` returns DECODE_ABORTED soon (CPU only), until called with False."""
        self._abort[0] = b"x" if on else b"\0"

    def set_threads(self, n: int) -> None:
        """Use `n` threads from the next evaluation on."""
        C.llama_set_n_threads(self.handle, n, n)


def build() -> str:
    """The engine build, for `version` and for comparing peers."""
    info: bytes = C.llama_print_system_info()
    return f"llama-cpp-python {version('llama-cpp-python')}; {info.decode('utf-8', 'replace').strip()}"
