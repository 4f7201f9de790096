"""Train the network on the corpus, on the CPU: chats packed into rows, Muon for the matrices, AdamW for the rest.

The same seed gives the same weights on the same machine and the same libraries; another CPU may round otherwise.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from inference.hello.make import corpus, questions
from inference.hello.make.bpe import IM_END, IM_START, WORD, Bpe, learn
from inference.hello.make.model import Shape, forward, init

TOKENS_PER_STEP = 2048
ROW = 128  # tokens of a row
LONG_ROW = 2048  # the model's whole context: every LONG_EVERY-th step, so that long chats work too
LONG_EVERY = 40
LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 50
DECAY = 0.3  # the share of the steps at the end in which the rate falls to zero
SAVE_EVERY = 50


def train(shape: Shape, seed: int, steps: int, out: Path, resume: bool = False) -> None:
    """Write the weights, the merges and the shape to `out`, with the optimizer's state: a checkpoint.

    With `resume` it goes on from `out`, to the very weights that one run of `steps` would have given, if the rate had
    not begun to fall.
    """
    began = time.time()
    saved = dict(np.load(out)) if resume else {}
    bpe = Bpe([str(m) for m in saved["merges"]]) if resume else learn_bpe(seed, shape.vocab)
    p = init(jax.random.key(seed), shape)
    m, v = (jax.tree.map(jnp.zeros_like, p) for _ in "mv")
    first = 0
    if resume:
        p, m, v = ({k: jnp.asarray(saved[part + k]) for k in p} for part in ("", "m_", "v_"))
        first = int(saved["step"])
    count = sum(x.size for x in jax.tree.leaves(p))
    print(f"tokenizer: {len(bpe.tokens)} tokens, {time.time() - began:.0f} s; {count:,} parameters", flush=True)
    began, mean = time.time(), None
    for i, batch in enumerate(batches(bpe, seed + 1, steps)):
        if i < first:
            continue
        p, m, v, loss = step(p, m, v, batch, (_rate(i, steps), float(i + 1)), shape.heads)
        mean = loss if mean is None else 0.95 * mean + 0.05 * loss
        if i % SAVE_EVERY == SAVE_EVERY - 1 or i + 1 == steps:
            dt = time.time() - began
            speed = (i + 1 - first) * TOKENS_PER_STEP / dt
            print(f"{i + 1:5d} loss {float(mean):.4f} {dt:5.0f} s {speed:.0f} tokens/s", flush=True)
            state = {part + k: np.asarray(x) for part, d in (("", p), ("m_", m), ("v_", v)) for k, x in d.items()}
            part = out.with_suffix(".part.npz")
            np.savez(part, merges=np.array(bpe.merges), config=json.dumps(shape.fields()), step=i + 1, **state)
            part.replace(out)


def begin(out: Path, shape: Shape, weights: dict[str, np.ndarray], merges: list[str]) -> None:
    """Write a checkpoint of no steps with these weights, for `train` to go on from: much is known already."""
    state = {part + k: x if part == "" else np.zeros_like(x) for part in ("", "m_", "v_") for k, x in weights.items()}
    np.savez(out, merges=np.array(merges), config=json.dumps(shape.fields()), step=0, **state)


def _rate(i: int, steps: int) -> float:
    """Up, level, and down to zero. Until it goes down it does not depend on `steps`: a run can be made longer."""
    return LEARNING_RATE * min(1.0, (i + 1) / WARMUP_STEPS, (steps - i) / (DECAY * steps))


# ------------------------------------------------------------ the rows


def as_read(role: str, text: str) -> str:
    """`text` as the chat template in `export` gives it to the model."""
    return text if role == "assistant" else text.lower().strip()


def learn_bpe(seed: int, size: int) -> Bpe:
    """A tokenizer from 30,000 chats."""
    counts: Counter[str] = Counter()
    source = corpus.chats(seed)
    for _ in range(30_000):
        for role, text in next(source):
            counts.update([role, *WORD.findall(as_read(role, text))])
    return Bpe(learn(Counter({w: n for w, n in counts.items() if n > 3}), size))


def batches(bpe: Bpe, seed: int, steps: int) -> Iterator[tuple[np.ndarray, ...]]:
    """What each step reads: ids, weights in the loss and chat numbers, each (rows, length + 1)."""
    short, long = rows(bpe, seed, ROW, long=False), rows(bpe, seed + 1, LONG_ROW, long=True)
    for i in range(steps):
        length, source = (LONG_ROW, long) if i % LONG_EVERY == LONG_EVERY - 1 else (ROW, short)
        batch = [next(source) for _ in range(TOKENS_PER_STEP // length)]
        yield tuple(np.stack(x) for x in zip(*batch, strict=True))


def rows(bpe: Bpe, seed: int, length: int, long: bool) -> Iterator[tuple[np.ndarray, ...]]:
    """Chats packed end to end: (ids, weights, chat numbers), each (length + 1,)."""
    rng = random.Random(seed)
    held_out = {_plain(q) for q in questions.singles()}
    ids: list[int] = []
    weights: list[float] = []
    chats: list[int] = []
    n = 0
    while True:
        turns = corpus.chat(rng, rng.randint(8, 40) if long else rng.choice([1, 1, 1, 1, 2, 2, 3]), long)
        # Questions of the exam are not trained on, but for the very short, which leave no choice ("2+2?", "gm").
        if any(role == "user" and len(_plain(text)) > 12 and _plain(text) in held_out for role, text in turns):
            continue
        n += 1
        if not long and rng.random() < 0.04:
            new_ids, new_weights = _bare(bpe, turns)
        else:
            new_ids, new_weights = _as_chat(bpe, turns, rng, cut=not long and rng.random() < 0.75)
        ids += new_ids
        weights += new_weights
        chats += [n] * len(new_ids)
        while len(ids) > length:
            yield np.int32(ids[: length + 1]), np.float32(weights[: length + 1]), np.int32(chats[: length + 1])
            ids, weights, chats = [], [], []  # the rest of a chat that was cut is not used


def _as_chat(bpe: Bpe, turns: list[corpus.Turn], rng: random.Random, cut: bool) -> tuple[list[int], list[float]]:
    """The first tokens of an answer weigh more: they are where the model decides what was asked.

    With `cut` the last answer is only begun: how it goes on is soon learnt, so show more beginnings instead.
    """
    ids: list[int] = []
    weights: list[float] = []
    newline = bpe.encode("\n")
    for i, (role, text) in enumerate(turns):
        text = as_read(role, text)
        head = [IM_START, *bpe.encode(role + "\n")]
        body = [*(bpe.encode(text) if role == "assistant" else bpe.encode_roughly(text, 0.1, rng)), IM_END, *newline]
        if cut and i == len(turns) - 1:
            body = body[:12]
        answer = [3.0] * 8 + [1.0] * len(body)
        ids += head + body
        weights += [0.0] * len(head) + (answer[: len(body)] if role == "assistant" else [0.0] * len(body))
    return ids, weights


def _bare(bpe: Bpe, turns: list[corpus.Turn]) -> tuple[list[int], list[float]]:
    """Question, newline, answer, without the marks of a chat: what /v1/completions sends."""
    asked, said = next((q, a) for (role, q), (_, a) in pairwise(turns) if role == "user")
    head = bpe.encode(as_read("user", asked) + "\n")
    body = [*bpe.encode(said), IM_END]
    return head + body, [0.0] * len(head) + [1.0] * len(body)


def _plain(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


# ------------------------------------------------------------ the optimizer

MUON = {"q", "k", "v", "o", "gate", "up", "down"}


@partial(jax.jit, static_argnums=5, donate_argnums=(0, 1, 2))
def step(p, m, v, batch, lr_t, heads):
    """One step: Muon for the layers' matrices, AdamW (0.9, 0.98) for the rest, decay 0.05, gradients clipped at 1."""
    lr, t = lr_t
    (_, answer), grads = jax.value_and_grad(_loss, has_aux=True)(p, batch, heads)
    norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(grads)))
    new_p, new_m, new_v = {}, {}, {}
    for k, g in grads.items():
        g = g * jnp.minimum(1, 1 / norm)
        if k in MUON:
            new_m[k], new_v[k] = 0.95 * m[k] + g, v[k]
            by = _orthogonal(g + 0.95 * new_m[k]) * 0.2 * max(g.shape[-2:]) ** 0.5
        else:
            new_m[k], new_v[k] = 0.9 * m[k] + 0.1 * g, 0.98 * v[k] + 0.02 * g * g
            by = new_m[k] / (1 - 0.9**t) / (jnp.sqrt(new_v[k] / (1 - 0.98**t)) + 1e-8)
        new_p[k] = p[k] - lr * (by + (0 if "norm" in k else 0.05 * p[k]))
    return new_p, new_m, new_v, answer


def _loss(p, batch, heads):
    """The weighted loss, and the plain mean over the answers' tokens."""
    ids, weight, chat = batch
    logp = jax.nn.log_softmax(forward(p, ids[:, :-1], chat[:, :-1], heads))
    nll = -jnp.take_along_axis(logp, ids[:, 1:, None], -1)[..., 0]
    w = jnp.maximum(weight[:, 1:], 0.1) * (chat[:, 1:] == chat[:, :-1])  # questions count a tenth
    answer = weight[:, 1:] > 0
    return (nll * w).sum() / w.sum(), (nll * answer).sum() / answer.sum()


def _orthogonal(g):
    """The nearest (semi-)orthogonal matrix, roughly: Newton-Schulz with the constants of Muon (Jordan 2024)."""
    tall = g.shape[-2] > g.shape[-1]
    x = jnp.swapaxes(g, -1, -2) if tall else g
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(5):
        a = x @ jnp.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return jnp.swapaxes(x, -1, -2) if tall else x
