"""The bodies of OpenAI's API as far as this peer reads and writes them, for `/openapi.json`.

`inference.openai` parses and writes the real ones: it knows more than types can say, and what stands here is less than
it accepts. Field names: https://platform.openai.com/docs/api-reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from inference.openai.request import (
    EMBEDDING_INPUTS_MAX,
    MODEL_NAME_MAX,
    STOP_LENGTH_MAX,
    STOP_STRINGS_MAX,
    TOKENS_MAX,
)
from web.route import Answer, Operation
from web.shapes import Many, Number, Text

_Model = Annotated[str, Text(MODEL_NAME_MAX, is_line=True)]
_Stop = Annotated[str, Text(STOP_LENGTH_MAX, pattern="[^\\x00]")]
_Tokens = Annotated[list[Annotated[int, Number(0, TOKENS_MAX)]], Many(10**6, 1)]
_Penalty = Annotated[float, Number(-2, 2)]
_Filled = Annotated[str, Text(pattern="[^\\x00]")]


class ContentPart(TypedDict):
    """A piece of a message. Models served so far read text only."""

    type: Literal["text", "image_url", "input_audio", "file", "refusal"]
    text: NotRequired[str]


class ChatMessage(TypedDict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: NotRequired[str | Annotated[list[ContentPart], Many(10**5, 1)] | None]
    name: NotRequired[Annotated[str, Text(256)] | None]
    tool_call_id: NotRequired[Annotated[str, Text(256)] | None]


class StreamOptions(TypedDict):
    """`include_usage`: the last event before [DONE] holds the token counts."""

    include_usage: NotRequired[bool | None]


class _Sampled(TypedDict, total=False):
    """What chats and completions share."""

    max_tokens: Annotated[int, Number(1, TOKENS_MAX)] | None
    temperature: Annotated[float, Number(0, 2)] | None
    top_p: Annotated[float, Number(0, 1)] | None
    top_k: Annotated[int, Number(-1, TOKENS_MAX)] | None
    min_p: Annotated[float, Number(0, 1)] | None
    presence_penalty: _Penalty | None
    frequency_penalty: _Penalty | None
    repeat_penalty: Annotated[float, Number(0.01, 10)] | None
    seed: Annotated[int, Number(-(2**63), 2**63 - 1)] | None
    stop: _Stop | Annotated[list[_Stop], Many(STOP_STRINGS_MAX)] | None
    n: Annotated[int, Number(1, 128)] | None
    stream: bool | None
    stream_options: StreamOptions | None
    user: str | None


class ChatCompletionRequest(_Sampled):
    """Other parameters of OpenAI's that are not supported are refused by name; unknown ones are ignored."""

    model: _Model
    messages: Annotated[list[ChatMessage], Many(10**5, 1)]
    max_completion_tokens: NotRequired[Annotated[int, Number(1, TOKENS_MAX)] | None]


class CompletionRequest(_Sampled):
    """`prompt` is one text, or the token ids of one."""

    model: _Model
    prompt: _Filled | Annotated[list[_Filled], Many(1, 1)] | _Tokens | Annotated[list[_Tokens], Many(1, 1)]


class EmbeddingsRequest(TypedDict):
    """`input` is one text or several, or the token ids of one or several."""

    model: _Model
    input: (
        _Filled
        | Annotated[list[_Filled], Many(EMBEDDING_INPUTS_MAX, 1)]
        | _Tokens
        | Annotated[list[_Tokens], Many(EMBEDDING_INPUTS_MAX, 1)]
    )
    dimensions: NotRequired[Annotated[int, Number(1, 2**16)] | None]
    encoding_format: NotRequired[Literal["float", "base64"] | None]
    user: NotRequired[str | None]


class TokenUsage(TypedDict):
    """Tokens in and out."""

    prompt_tokens: int
    completion_tokens: NotRequired[int]
    total_tokens: int


class AnswerMessage(TypedDict):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(TypedDict):
    """The answer."""

    index: int
    message: AnswerMessage
    finish_reason: str


class ChatCompletion(TypedDict):
    """A whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


class TextChoice(TypedDict):
    """The text that goes on from the prompt."""

    index: int
    text: str
    finish_reason: str


class TextCompletion(TypedDict):
    """A whole answer to a completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage


class Embedding(TypedDict):
    """One vector: numbers, or their bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsList(TypedDict):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TokenUsage


class ModelObject(TypedDict):
    """A model, as OpenAI lists it, and whether it can be used now."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    ready: bool
    loaded: bool
    size_bytes: int
    context_length: int | None
    quantization: str | None
    capabilities: list[str]
    aliases: list[str]
    holders: list[Any]


class ModelList(TypedDict):
    """Every model of the mesh."""

    object: Literal["list"]
    data: list[ModelObject]


_STREAM = ("text/event-stream",)
_FAILURES = (404, 429, 502, 504)

CHAT = Operation(
    summary="Answer a chat",
    tag="inference",
    body=ChatCompletionRequest,
    answers={200: Answer(shape=ChatCompletion, media=_STREAM)},
    errors=_FAILURES,
)
COMPLETION = Operation(
    summary="Go on from a prompt",
    tag="inference",
    body=CompletionRequest,
    answers={200: Answer(shape=TextCompletion, media=_STREAM)},
    errors=_FAILURES,
)
EMBEDDINGS = Operation(
    summary="Make vectors of texts",
    tag="inference",
    body=EmbeddingsRequest,
    answers={200: Answer(shape=EmbeddingsList)},
    errors=_FAILURES,
)
MODELS = Operation(summary="Models of the mesh", tag="inference", answers={200: Answer(shape=ModelList)})
MODEL = Operation(summary="One model", tag="inference", answers={200: Answer(shape=ModelObject)}, errors=(404,))
