"""What an engine is told when it starts, and what it says of itself when it is ready. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How to load one model.

    `context` is the number of KV cells shared by all slots and parked prefixes (0: 8,192, or as many as the slots can
    use); `context_per_request` bounds one request (0: the model's own). `slots` requests run at the same time; `parked`
    finished prefixes are kept beside them.
    `threads` 0: chosen from the cores of this machine. `gpu_layers` -1: all that fit.
    `shelf_bytes` of plain memory keep prefixes that had to leave the KV cache (inference.engine.shelf).
    """

    path: str
    slots: int = 8
    parked: int = 8
    context: int = 0
    context_per_request: int = 0
    threads: int = 0
    shelf_bytes: int = 0
    gpu_layers: int = -1
    embedding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What a loaded model can do.

    `context` is the longest prompt plus answer of one request, in tokens. `build` names the engine build: the
    llama-cpp-python version and its system info.
    """

    context: int
    slots: int
    vocab: int
    embedding_dim: int
    can_chat: bool
    can_embed: bool
    build: str
    threads: int
    load_s: float
