"""Write the weights as a GGUF, and check that llama.cpp computes what the training computed."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

from inference.hello.make import corpus
from inference.hello.make.bpe import END, IM_END, SPECIALS, Bpe

# What people type is lowered, so that capitals are nothing the model has to learn. Roles it does not know are "system".
TEMPLATE = (
    "{%- for m in messages %}"
    "{%- set role = m.role if m.role in ['user', 'assistant'] else 'system' %}"
    "{%- if m.content is string %}{%- set text = m.content %}{%- else %}"
    "{%- set text = (m.content or []) | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}"
    "{%- endif %}"
    "{{- '<|im_start|>' + role + '\\n' + (text if role == 'assistant' else text | lower | trim) + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# The logits are multiplied by this (the last norm is), so that the temperature 1 that clients send samples as
# temperature 1/3 would: a model this small has too much to say in its tail.
SHARPNESS = 3.0
KIND = gguf.GGMLQuantizationType.Q8_0
NAMES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "norm1": "attn_norm",
    "norm2": "ffn_norm",
}


def load(path: Path) -> tuple[dict[str, np.ndarray], Bpe, dict[str, int]]:
    """The weights, the tokenizer and the shape that `train` wrote."""
    weights = dict(np.load(path))
    bpe = Bpe([str(m) for m in weights.pop("merges")])
    shape = json.loads(str(weights.pop("config")))
    weights = {k: weights[k] for k in ("emb", "norm", *NAMES)}  # without the optimizer's state
    weights["norm"] = weights["norm"] * SHARPNESS
    return weights, bpe, shape


def read(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights and the merges in a file that `write` wrote, as far as rounding left them: a run can begin there."""
    reader = gguf.GGUFReader(path)
    raw = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    layers = int(reader.fields["llama.block_count"].contents())
    weights = {"emb": raw["token_embd.weight"], "norm": raw["output_norm.weight"] / SHARPNESS}
    for k, name in NAMES.items():
        found = [raw[f"blk.{i}.{name}.weight"] for i in range(layers)]
        weights[k] = np.stack([x if x.ndim == 1 else x.T for x in found])
    return weights, [str(m) for m in reader.fields["tokenizer.ggml.merges"].contents()]


def write(path: Path, weights: dict[str, np.ndarray], bpe: Bpe, shape: dict[str, int]) -> dict[str, np.ndarray]:
    """Write the file; returns the weights as they are in it, rounded, for `check`."""
    w = gguf.GGUFWriter(path, "llama")
    _header(w, bpe, shape)
    stored = {}

    def put(name: str, data: np.ndarray) -> np.ndarray:
        if data.ndim == 1:
            w.add_tensor(name, data.astype(np.float32))
            return data
        raw = quantize(np.ascontiguousarray(data, np.float32), KIND)
        w.add_tensor(name, raw, raw_dtype=KIND)
        return dequantize(raw, KIND)

    # The embedding is also the output matrix, so it is there once.
    stored["emb"] = put("token_embd.weight", weights["emb"])
    stored["norm"] = put("output_norm.weight", weights["norm"])
    for k, name in NAMES.items():
        layers = [put(f"blk.{i}.{name}.weight", x if x.ndim == 1 else x.T) for i, x in enumerate(weights[k])]
        stored[k] = np.stack([x if x.ndim == 1 else x.T for x in layers])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return stored


def _header(w: gguf.GGUFWriter, bpe: Bpe, shape: dict[str, int]) -> None:
    w.add_name("LLM Router built-in")
    w.add_description("Answers first questions about LLM Router. Trained only on text made by the project.")
    w.add_license("MIT")
    w.add_context_length(shape["context"])
    w.add_embedding_length(shape["d"])
    w.add_block_count(shape["layers"])
    w.add_feed_forward_length(shape["ff"])
    w.add_head_count(shape["heads"])
    w.add_head_count_kv(shape["heads"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(shape["d"] // shape["heads"])
    w.add_vocab_size(len(bpe.tokens))
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(bpe.tokens)
    kinds = gguf.TokenType
    w.add_token_types([kinds.CONTROL] * len(SPECIALS) + [kinds.NORMAL] * (len(bpe.tokens) - len(SPECIALS)))
    w.add_token_merges(bpe.merges)
    w.add_bos_token_id(END)
    w.add_eos_token_id(IM_END)
    w.add_pad_token_id(END)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


CHECKED = 512  # tokens of a chat whose logits are compared


def check(path: Path, stored: dict[str, np.ndarray], bpe: Bpe, shape: dict[str, int]) -> None:
    """Compare tokens of 1,000 chats and logits of 20 with llama.cpp's; raises ValueError when they differ."""
    import jax
    import llama_cpp

    from inference.hello.make.model import forward

    llm = llama_cpp.Llama(
        str(path), n_ctx=1024, logits_all=True, verbose=False, n_threads=2, flash_attn=False, type_k=0, type_v=0
    )
    params = {k: jax.numpy.asarray(v) for k, v in stored.items()}
    one_chat = np.zeros((1, CHECKED), np.int32)
    logits = jax.jit(lambda ids: forward(params, ids, one_chat, shape["heads"])[0])
    wrong = texts = agree = total = 0
    worst = 0.0
    for i, chat in enumerate(islice(corpus.chats(99), 1000)):
        for _, text in chat:
            texts += 1
            wrong += bpe.encode(text) != llm.tokenize(text.encode(), add_bos=False, special=False)
        if i >= 20:
            continue
        text = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in chat)
        ids = llm.tokenize(text.encode(), add_bos=False, special=True)[:CHECKED]
        llm.reset()
        llm.eval(ids)
        theirs = llm.scores[: len(ids)]
        padded = np.int32([[*ids, *[END] * (CHECKED - len(ids))]])  # what follows a token does not change it
        ours = np.asarray(logits(padded))[: len(ids)]
        worst = max(worst, float(np.abs(ours - theirs).max()))
        agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        total += len(ids)
    print(f"check: {wrong} of {texts} texts tokenize differently; logits differ by at most {worst:.4f}, ", end="")
    print(f"the same best token at {agree} of {total} places", flush=True)
    if wrong or agree < 0.98 * total:
        raise ValueError("llama.cpp does not compute what was trained: is its version another one?")
