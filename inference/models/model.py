"""A model file that this machine has: what the store knows of it and what its header says. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HELLO = "hello"  # the id of the embedded model
SMALL_EMBEDDER_BYTES = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The facts of a GGUF header that the peer needs (read in Python, before native code sees the file).

    Counts are of the model: `heads_kv` is the largest over the layers, `weights_bytes` the sum of the tensors.
    `pooling` is GGUF's pooling type (0 none) or None when the file does not say. `template` tells whether a chat
    template is in the file.
    """

    architecture: str
    name: str | None
    context: int
    layers: int
    embedding: int
    heads: int
    heads_kv: int
    key_length: int
    value_length: int
    vocab: int
    experts: int
    pooling: int | None
    template: bool
    quantization: str | None
    parameters: int
    weights_bytes: int

    @property
    def is_embedding(self) -> bool:
        """True for models made to embed (they pool), which cannot chat."""
        return self.pooling is not None and self.pooling > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model ready to be loaded. `counts` False: not counted in LLM_NODE_MAX_LOADED_MODELS (`hello`, small embedders).

    `added_at` is unix seconds. `origin` says where it came from: "builtin", "import", "folder".
    """

    id: str
    path: Path
    size_bytes: int
    sha256: str | None
    header: Header
    origin: str
    added_at: float
    aliases: tuple[str, ...] = ()
    counts: bool = True

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def is_builtin(self) -> bool:
        """True for the model that ships with the program."""
        return self.origin == "builtin"


def is_another_file(before: StoredModel, now: StoredModel) -> bool:
    """Whether the file behind a name was exchanged. One that has no hash yet may be the same."""
    if (before.path, before.size_bytes) != (now.path, now.size_bytes):
        return True
    return None not in (before.sha256, now.sha256) and before.sha256 != now.sha256


def does_count(header: Header, size_bytes: int) -> bool:
    """Whether a model of the folder counts in LLM_NODE_MAX_LOADED_MODELS: all but embedding models under 1 GiB.

    A default of one loaded model would otherwise load and unload with every question of a RAG user.
    """
    return not (header.is_embedding and size_bytes < SMALL_EMBEDDER_BYTES)
