"""Requests in OpenAI's format, parsed into typed values: one function per route, no dict travels further.

A parameter that is known but cannot be honoured is refused by name, never ignored; one that nobody knows is ignored
with a debug log, because clients send such things. Values are checked before support is: `n: 0` is out of range,
`n: 2` is unsupported. Field names: https://platform.openai.com/docs/api-reference, and llama.cpp's and vLLM's names
for the samplers OpenAI has not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from inference.chat import (
    ChatPrompt,
    EmbeddingInput,
    EmbeddingRequest,
    Generation,
    Produced,
    Prompt,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from inference.openai.fields import (
    Fields,
    array_too_long,
    bad_value,
    checked_decimal,
    checked_integer,
    checked_string,
    empty_array,
    missing,
    not_one_of,
    unsupported,
    wrong_type,
)
from inference.openai.messages import messages_of

_log = logging.getLogger(__name__)

# The longest id we make is `hf/<repo>/<file>`; GitHub and Hugging Face names stay under 100 characters each.
MODEL_NAME_MAX = 512
TOKENS_MAX = 2**31 - 1
STOP_STRINGS_MAX = 4
# A stop string is held back while it may still come: longer ones would hold back whole answers.
STOP_LENGTH_MAX = 1024
LOGIT_BIAS_MAX = 1024
EMBEDDING_INPUTS_MAX = 2048
# What OpenAI documents for /v1/completions when `max_tokens` is left out.
COMPLETION_TOKENS_DEFAULT = 16

# Parameters of other engines' native APIs: they reach into the process, or change the answer in a way we do not build.
ENGINE_PARAMETERS = (
    "grammar", "guided_choice", "guided_decoding_backend", "guided_grammar", "guided_json", "guided_regex",
    "structured_outputs", "json_schema", "grammar_lazy", "lora", "lora_request", "model_path", "mmproj", "slot_id",
    "id_slot", "n_discard", "n_keep", "n_predict", "num_predict", "n_probs", "n_ctx", "num_ctx", "n_gpu_layers",
    "samplers", "logits_processors", "mirostat", "mirostat_tau", "mirostat_eta", "typical_p", "tfs_z", "top_a",
    "top_n_sigma", "dynatemp_range", "dynatemp_exponent", "dry_multiplier", "dry_base", "dry_allowed_length",
    "xtc_probability", "xtc_threshold", "min_tokens", "use_beam_search", "length_penalty", "bad_words",
    "allowed_token_ids", "stop_token_ids", "prompt_logprobs", "chat_template", "chat_template_kwargs", "image_data",
    "input_prefix", "input_suffix",
)  # fmt: skip
# OpenAI's own that belong to features not built.
_CHAT_UNSUPPORTED = ("audio", "functions", "prediction", "reasoning_effort", "verbosity", "web_search_options")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """What the peer that a request came in on adds to it; see `Generation`."""

    id: str
    now: float
    utc_offset_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationCall:
    """A parsed chat or completion: what to make, and how the caller wants to get it."""

    generation: Generation
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingCall:
    """A parsed embeddings request, and how the caller wants the vectors written."""

    request: EmbeddingRequest
    encoding: Literal["float", "base64"]


def chat_call(body: dict[str, Any], ingress: Ingress) -> GenerationCall:
    """The call in the body of /v1/chat/completions. Raises InvalidRequest."""
    fields = Fields(body)
    model = _model(fields)
    prompt = ChatPrompt(messages=messages_of(fields))
    _refuse_tools(fields)
    _refuse_response_format(fields)
    _refuse_chat_logprobs(fields)
    _refuse_modalities(fields)
    _refuse_present(fields, _CHAT_UNSUPPORTED)
    return _call(fields, ingress, model, prompt, kind="chat", max_tokens=_chat_max_tokens(fields))


def completion_call(body: dict[str, Any], ingress: Ingress, max_tokens_default: int | None) -> GenerationCall:
    """The call in the body of /v1/completions. Raises InvalidRequest."""
    fields = Fields(body)
    model = _model(fields)
    prompt = _prompt(fields)
    if fields.string("suffix"):
        raise unsupported("suffix")
    if fields.boolean("echo"):
        raise unsupported("echo")
    if fields.integer("logprobs", 0, 5) is not None:
        raise unsupported("logprobs")
    if fields.integer("best_of", 1, 20) not in (None, 1):
        raise unsupported("best_of", "send 1 or leave it out")
    max_tokens = fields.integer("max_tokens", 1, TOKENS_MAX)
    return _call(fields, ingress, model, prompt, kind="generate", max_tokens=max_tokens or max_tokens_default)


def embedding_call(body: dict[str, Any], ingress: Ingress) -> EmbeddingCall:
    """The call in the body of /v1/embeddings. Raises InvalidRequest."""
    fields = Fields(body)
    model = _model(fields)
    inputs = _inputs(fields.raw("input"))
    dimensions = fields.integer("dimensions", 1, 2**16)
    encoding = fields.raw("encoding_format")
    if encoding is None:
        encoding = "float"
    if encoding not in ("float", "base64"):
        raise not_one_of("encoding_format", encoding, ("float", "base64"))
    fields.string("user")
    fields.boolean("store")  # whether the request may be recorded: that is for who keeps the history
    _finish(fields)
    request = EmbeddingRequest(id=ingress.id, model=model, inputs=inputs, dimensions=dimensions)
    return EmbeddingCall(request=request, encoding=encoding)


def hop_call(body: dict[str, Any], *, is_chat: bool) -> Generation:
    """The generation in the body that another peer sent (`upstream.hop_body`). Raises InvalidRequest.

    A client's body never comes here: what stands in its `mesh` is ignored like everything unknown.
    """
    mesh = _mesh(body)
    kind = mesh.raw("kind")
    if kind not in ("chat", "generate"):
        raise not_one_of("mesh.kind", kind, ("chat", "generate"))
    now = mesh.decimal("now", -1e12, 1e12)
    offset = mesh.integer("utc_offset_s", -200_000, 200_000)
    ingress = Ingress(id=_mesh_id(mesh), now=now or 0.0, utc_offset_s=offset or 0)
    call = chat_call(body, ingress) if is_chat else completion_call(body, ingress, None)
    tokens = mesh.raw("produced")
    produced = Produced(
        tokens=_tokens("mesh.produced", tokens) if tokens else (), draws=mesh.integer("draws", 0, TOKENS_MAX) or 0
    )
    return replace(call.generation, kind=kind, produced=produced)


def hop_embedding_call(body: dict[str, Any]) -> EmbeddingRequest:
    """The same for embeddings (`upstream.hop_embedding_body`). Raises InvalidRequest."""
    return embedding_call(body, Ingress(id=_mesh_id(_mesh(body)), now=0.0, utc_offset_s=0)).request


def _mesh(body: dict[str, Any]) -> Fields:
    mesh = body.get("mesh")
    if not isinstance(mesh, dict):
        raise missing("mesh")
    return Fields(mesh, "mesh")


def _mesh_id(mesh: Fields) -> str:
    request_id = mesh.string("id", 256)
    if request_id is None:
        raise missing("mesh.id")
    return request_id


def _call(
    fields: Fields,
    ingress: Ingress,
    model: str,
    prompt: Prompt,
    *,
    kind: Literal["chat", "generate"],
    max_tokens: int | None,
) -> GenerationCall:
    sampling = _sampling(fields)
    stop = _stop(fields.raw("stop"))
    if fields.integer("n", 1, 128) not in (None, 1):
        raise unsupported("n", "send 1 or leave it out")
    stream = fields.boolean("stream") or False
    include_usage = _include_usage(fields, stream)
    ignore_eos = fields.boolean("ignore_eos") or False
    fields.string("user")
    fields.boolean("store")  # whether the request may be recorded: that is for who keeps the history
    _finish(fields)
    generation = Generation(
        id=ingress.id,
        model=model,
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop,
        now=ingress.now,
        utc_offset_s=ingress.utc_offset_s,
        kind=kind,
        ignore_eos=ignore_eos,
    )
    return GenerationCall(generation=generation, stream=stream, include_usage=include_usage)


def _model(fields: Fields) -> str:
    if not fields.has("model"):
        raise missing("model")
    name = checked_string("model", fields.raw("model"), MODEL_NAME_MAX)
    if not name.strip():
        raise bad_value("model", "it is empty")
    if not name.isprintable():
        raise bad_value("model", "it holds a control character")
    return name


def _sampling(fields: Fields) -> Sampling:
    default = Sampling()
    temperature = fields.decimal("temperature", 0, 2)
    top_p = fields.decimal("top_p", 0, 1)
    top_k = fields.integer("top_k", -1, TOKENS_MAX)
    min_p = fields.decimal("min_p", 0, 1)
    presence = fields.decimal("presence_penalty", -2, 2)
    frequency = fields.decimal("frequency_penalty", -2, 2)
    repeat_last_n = fields.integer("repeat_last_n", 0, 2**16)
    return Sampling(
        temperature=default.temperature if temperature is None else temperature,
        top_p=default.top_p if top_p is None else top_p,
        top_k=max(0, top_k or 0),  # -1 is how vLLM and llama.cpp also say "off"
        min_p=default.min_p if min_p is None else min_p,
        presence_penalty=presence or 0.0,
        frequency_penalty=frequency or 0.0,
        repeat_penalty=_repeat_penalty(fields),
        repeat_last_n=default.repeat_last_n if repeat_last_n is None else repeat_last_n,
        seed=fields.integer("seed", -(2**63), 2**63 - 1),
        logit_bias=_logit_bias(fields.raw("logit_bias")),
    )


def _repeat_penalty(fields: Fields) -> float:
    """llama.cpp calls it repeat_penalty, Hugging Face and vLLM repetition_penalty; logits are divided by it."""
    here = fields.decimal("repeat_penalty", 0.01, 10)
    there = fields.decimal("repetition_penalty", 0.01, 10)
    if here is not None and there is not None and here != there:
        raise bad_value("repetition_penalty", f"it is {there}, but 'repeat_penalty', the same thing, is {here}")
    return here or there or 1.0


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise wrong_type("logit_bias", "an object", value)
    if len(value) > LOGIT_BIAS_MAX:
        raise bad_value("logit_bias", f"it has {len(value):,} tokens, the limit is {LOGIT_BIAS_MAX:,}")
    pairs = []
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise bad_value("logit_bias", 'its names are token ids, such as "50256"')
        pairs.append(
            (checked_integer("logit_bias", int(token), 0, TOKENS_MAX), checked_decimal("logit_bias", bias, -100, 100))
        )
    return tuple(pairs)


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(value) > STOP_STRINGS_MAX:
        raise array_too_long("stop", len(value), STOP_STRINGS_MAX)
    for item in value:
        if not isinstance(item, str) or not item:
            raise bad_value("stop", "every stop sequence is a string that is not empty")
        checked_string("stop", item, STOP_LENGTH_MAX)
    return tuple(value)


def _chat_max_tokens(fields: Fields) -> int | None:
    """`max_tokens` is the older name of `max_completion_tokens`; both may be there if they agree."""
    older = fields.integer("max_tokens", 1, TOKENS_MAX)
    newer = fields.integer("max_completion_tokens", 1, TOKENS_MAX)
    if older is not None and newer is not None and older != newer:
        raise bad_value("max_completion_tokens", f"it is {newer}, but 'max_tokens', the same thing, is {older}")
    return newer or older


def _include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.raw("stream_options")
    if value is None:
        return False
    if not isinstance(value, dict):
        raise wrong_type("stream_options", "an object", value)
    if not stream:
        raise bad_value("stream_options", "it is only allowed when 'stream' is true")
    return Fields(value, "stream_options").boolean("include_usage") or False


def _refuse_tools(fields: Fields) -> None:
    """Tools come in a later version; with `tool_choice` "none" they change nothing and are let pass."""
    tools = fields.raw("tools")
    if tools is not None and not isinstance(tools, list):
        raise wrong_type("tools", "an array", tools)
    names = [_tool_name(tool, f"tools[{index}]") for index, tool in enumerate(tools or ())]
    choice = fields.raw("tool_choice")
    _check_tool_choice(choice, names)
    if names and choice != "none":
        raise unsupported("tools", "leave them out or send tool_choice 'none'")
    if fields.raw("function_call") not in (None, "none"):
        raise unsupported("function_call")
    fields.boolean("parallel_tool_calls")


def _check_tool_choice(choice: Any, names: list[str]) -> None:
    if choice is None:
        return
    supported = ("none", "auto", "required")
    if isinstance(choice, str):
        if choice not in supported:
            raise not_one_of("tool_choice", choice, supported)
        if choice != "none" and not names:
            raise bad_value("tool_choice", "it is only allowed when 'tools' are given")
    elif not isinstance(choice, dict):
        raise wrong_type("tool_choice", "a string or an object", choice)
    elif choice.get("type") not in ("function", "allowed_tools"):
        raise not_one_of("tool_choice", choice.get("type"), ("function", "allowed_tools"))
    else:
        function = choice.get("function")
        wanted = function.get("name") if isinstance(function, dict) else None
        if wanted not in names:
            raise bad_value("tool_choice", "it names a tool that is not in 'tools'")


def _tool_name(tool: Any, path: str) -> str:
    if not isinstance(tool, dict):
        raise wrong_type(path, "an object", tool)
    if tool.get("type") != "function":
        raise not_one_of(f"{path}.type", tool.get("type"), ("function",))
    function = tool.get("function")
    if not isinstance(function, dict):
        raise missing(f"{path}.function")
    name = Fields(function, f"{path}.function").string("name", 256)
    if not name:
        raise missing(f"{path}.function.name")
    return name


def _refuse_response_format(fields: Fields) -> None:
    value = fields.raw("response_format")
    if value is None:
        return
    if not isinstance(value, dict):
        raise wrong_type("response_format", "an object", value)
    kind = value.get("type")
    if kind is None:
        raise missing("response_format.type")
    supported = ("text", "json_object", "json_schema")
    if kind not in supported:
        raise not_one_of("response_format.type", kind, supported)
    if kind != "text":
        raise unsupported("response_format", "send the type 'text' or leave it out")


def _refuse_chat_logprobs(fields: Fields) -> None:
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, 20)
    if wanted:
        raise unsupported("logprobs")
    if top:
        raise unsupported("top_logprobs")


def _refuse_modalities(fields: Fields) -> None:
    value = fields.raw("modalities")
    if value is None:
        return
    if not isinstance(value, list):
        raise wrong_type("modalities", "an array", value)
    if value != ["text"]:
        raise unsupported("modalities", 'send ["text"] or leave it out')


def _refuse_present(fields: Fields, names: tuple[str, ...]) -> None:
    for name in names:
        if fields.raw(name) is not None:
            raise unsupported(name)


def _finish(fields: Fields) -> None:
    _refuse_present(fields, ENGINE_PARAMETERS)
    if unread := fields.unread():
        _log.debug("unknown fields ignored", extra={"fields": [name[:40] for name in unread[:20]]})


def _prompt(fields: Fields) -> TextPrompt | TokenPrompt:
    value = fields.raw("prompt")
    if value is None:
        raise missing("prompt")
    prompts = _texts_or_tokens("prompt", value)
    if len(prompts) > 1:
        raise unsupported("prompt", f"it holds {len(prompts):,} prompts; send one at a time")
    (prompt,) = prompts
    return TextPrompt(text=prompt) if isinstance(prompt, str) else TokenPrompt(tokens=prompt)


def _inputs(value: Any) -> tuple[EmbeddingInput, ...]:
    if value is None:
        raise missing("input")
    inputs = _texts_or_tokens("input", value)
    if len(inputs) > EMBEDDING_INPUTS_MAX:
        raise array_too_long("input", len(inputs), EMBEDDING_INPUTS_MAX)
    return inputs


def _texts_or_tokens(param: str, value: Any) -> tuple[EmbeddingInput, ...]:
    """OpenAI's four ways to give texts: one, several, the token ids of one, the token ids of several."""
    expected = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"
    if isinstance(value, str):
        return (_text(param, value),)
    if not isinstance(value, list):
        raise wrong_type(param, expected, value)
    if not value:
        raise empty_array(param)
    if isinstance(value[0], str):
        return tuple(_text(param, item) for item in value)
    if isinstance(value[0], list):
        return tuple(_tokens(param, item) for item in value)
    return (_tokens(param, value),)


def _text(param: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_type(param, "an array of strings only", value)
    if not value:
        raise bad_value(param, "it is an empty string")
    return value


def _tokens(param: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise wrong_type(param, "arrays of token ids only", value)
    if not value:
        raise empty_array(param)
    for token in value:
        checked_integer(param, token, 0, TOKENS_MAX)
    return tuple(value)
