"""The network: a small llama (RMSNorm, RoPE, SwiGLU, tied embedding) in JAX, as llama.cpp computes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp

EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network. `d` is the width of the residual stream, `ff` of the hidden layer."""

    d: int = 128
    ff: int = 384
    layers: int = 4
    heads: int = 4
    vocab: int = 1536
    context: int = 2048

    def fields(self) -> dict[str, int]:
        return asdict(self)


def init(key, shape: Shape):
    """Random weights; the matrices that end a branch begin smaller, by the square root of their number."""
    d, ff, n, v = shape.d, shape.ff, shape.layers, shape.vocab
    keys = iter(jax.random.split(key, 8))
    s, end = d**-0.5, (2 * n) ** -0.5

    def matrix(rows, columns, std):
        return jax.random.normal(next(keys), (n, rows, columns)) * std

    return {
        "emb": jax.random.normal(next(keys), (v, d)) * s,
        "norm": jnp.ones(d),
        "norm1": jnp.ones((n, d)),
        "norm2": jnp.ones((n, d)),
        "q": matrix(d, d, s),
        "k": matrix(d, d, s),
        "v": matrix(d, d, s),
        "o": matrix(d, d, s * end),
        "gate": matrix(d, ff, s),
        "up": matrix(d, ff, s),
        "down": matrix(ff, d, ff**-0.5 * end),
    }


def forward(p, ids, chat, heads: int):
    """Logits (batch, time, vocab) of `ids` (batch, time). A token sees only earlier ones with its `chat` number."""
    b, t = ids.shape
    sees = jnp.tril(jnp.ones((t, t), bool)) & (chat[:, :, None] == chat[:, None, :])
    h = p["emb"][ids]
    d = h.shape[-1]
    for i in range(p["q"].shape[0]):
        a = _rms(h, p["norm1"][i])
        q, k, v = ((a @ p[n][i]).reshape(b, t, heads, d // heads) for n in "qkv")
        q, k = _rope(q), _rope(k)
        w = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (d // heads) ** -0.5
        w = jax.nn.softmax(jnp.where(sees[:, None], w, -1e9), -1)
        a = jnp.einsum("bhqk,bkhd->bqhd", w, v)
        h = h + a.reshape(b, t, d) @ p["o"][i]
        a = _rms(h, p["norm2"][i])
        h = h + (jax.nn.silu(a @ p["gate"][i]) * (a @ p["up"][i])) @ p["down"][i]
    return _rms(h, p["norm"]) @ p["emb"].T


def _rms(x, w):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * w


def _rope(x):
    """Turn neighbouring pairs (x0, x1), (x2, x3)...: llama.cpp's order for the llama architecture."""
    t, d = x.shape[1], x.shape[-1]
    angle = jnp.arange(t)[:, None] * 10000.0 ** (-jnp.arange(0, d, 2) / d)
    c, s = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack([even * c - odd * s, even * s + odd * c], -1).reshape(x.shape)
