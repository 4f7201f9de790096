"""How much memory a model needs, and which context fits a budget: a first formula, pure arithmetic.

    needed  = weights + KV cache + compute + headroom
    weights = bytes of the file (tensors; the vocabulary in memory is about as large as in the file)
    KV      = context x layers x heads_kv x (key_length + value_length) x 2 bytes (f16)
    compute = 512 x 4 bytes x (vocab + 8 x embedding)
    headroom = 192 MiB + 2 % of the weights

`context` counts KV cells: all slots and parked prefixes share them. 512 is the largest batch of one step; its logits
(f32) are the largest compute buffer, and about eight activations of the embedding's width live beside them. Headroom
is the worker process itself (measured: 46 MiB, 60 MiB more with a vocabulary of 150,000) and what allocators round up.
Measured compute for 0.5B with that vocabulary: 300 MiB, by the formula 311. The formula is an upper bound where
layers differ (`heads_kv` is the largest) or attend to a window only; recurrent models have no KV cache here, and their
state is within the headroom. Not here: who may load, and what to evict for it (the pool).
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.models.model import Header

MIB = 1024 * 1024
KV_BYTES = 2  # f16
BATCH = 512  # the engine's largest step
LOGIT_BYTES = 4
ACTIVATIONS = 8  # tensors of the embedding's width alive at once in a layer
HEADROOM_BYTES = 192 * MIB
HEADROOM_SHARE = 50  # one fiftieth of the weights
CONTEXT_PER_SLOT = 4_096  # what a chat is given unless somebody asks for more (EngineSpec.context)
CONTEXT_MIN = 512  # a chat with less is of no use
CONTEXT_STEP = 256  # llama.cpp pads the KV cache to this


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer to "does it fit": `context` in tokens (0 when none fits), `reason` for a person, with both numbers."""

    fits: bool
    context: int
    needed_bytes: int
    budget_bytes: int
    reason: str


def kv_bytes(header: Header, context: int) -> int:
    """Bytes of the KV cache for `context` cells."""
    return context * header.layers * header.heads_kv * (header.key_length + header.value_length) * KV_BYTES


def bytes_needed(header: Header, size_bytes: int, context: int, slots: int) -> int:
    """Bytes a worker takes with the model loaded: `size_bytes` of file, `context` cells shared by `slots` requests."""
    fixed = size_bytes + size_bytes // HEADROOM_SHARE + HEADROOM_BYTES
    rows = max(BATCH, slots)
    compute = rows * LOGIT_BYTES * (header.vocab + ACTIVATIONS * header.embedding)
    return fixed + compute + kv_bytes(header, context)


def context_wanted(header: Header, slots: int) -> int:
    """The context to aim for when nobody chose one: 4,096 a slot, at most what the model was trained for."""
    return min(header.context, CONTEXT_PER_SLOT * slots)


def context_that_fits(header: Header, size_bytes: int, *, budget_bytes: int, slots: int) -> Fit:
    """The largest context up to `context_wanted` that fits the budget, and whether even the least useful one does."""
    wanted = context_wanted(header, slots)
    context = min(wanted, _context_in(header, size_bytes, budget_bytes, slots))
    if context >= min(CONTEXT_MIN, wanted):
        needed = bytes_needed(header, size_bytes, context, slots)
        reason = f"needs {shown(needed)} of {shown(budget_bytes)} with a context of {context:,} tokens"
        return Fit(fits=True, context=context, needed_bytes=needed, budget_bytes=budget_bytes, reason=reason)
    least = min(CONTEXT_MIN, wanted)
    return _refusal(header, size_bytes, least, budget_bytes=budget_bytes, slots=slots)


def fits(header: Header, size_bytes: int, context: int, *, budget_bytes: int, slots: int) -> Fit:
    """Whether the model fits the budget with exactly this context."""
    needed = bytes_needed(header, size_bytes, context, slots)
    if needed > budget_bytes:
        return _refusal(header, size_bytes, context, budget_bytes=budget_bytes, slots=slots)
    reason = f"needs {shown(needed)} of {shown(budget_bytes)} with a context of {context:,} tokens"
    return Fit(fits=True, context=context, needed_bytes=needed, budget_bytes=budget_bytes, reason=reason)


def shown(count: int) -> str:
    """Bytes for a person: `3.4 GB`, `512 MB` (decimal units, as on the box of a memory stick)."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _refusal(header: Header, size_bytes: int, context: int, *, budget_bytes: int, slots: int) -> Fit:
    needed = bytes_needed(header, size_bytes, context, slots)
    best = _context_in(header, size_bytes, budget_bytes, slots)
    way_out = (
        f"a context of {best:,} would fit"
        if best >= CONTEXT_MIN
        else "a smaller quantization or a smaller model is needed"
    )
    reason = (
        f"needs {shown(needed)} with a context of {context:,} tokens, {shown(budget_bytes)} may be used "
        f"(LLM_NODE_MAX_MEMORY_BYTES); {way_out}"
    )
    return Fit(fits=False, context=0, needed_bytes=needed, budget_bytes=budget_bytes, reason=reason)


def _context_in(header: Header, size_bytes: int, budget_bytes: int, slots: int) -> int:
    """The largest context within the budget and the model's own, in steps of the cache; 0 when nothing is left."""
    left = budget_bytes - bytes_needed(header, size_bytes, 0, slots)
    if left < 0:
        return 0
    cell = kv_bytes(header, 1)
    cells = left // cell if cell else header.context
    if cells >= header.context:
        return header.context
    return cells - cells % CONTEXT_STEP
