"""The `messages` of a chat: turns with roles, parts and earlier tool calls, parsed into `Message`s.

Every model served so far reads text only, so a part that is a picture, a sound or a file is checked and then refused.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, cast, get_args

from inference.chat import Message, Role, TextPart, ToolCall
from inference.errors import InvalidRequest
from inference.openai.fields import Fields, empty_array, missing, not_one_of, wrong_type

ROLES: tuple[str, ...] = get_args(Role)
PART_TYPES = ("text", "image_url", "input_audio", "file", "refusal")
# OpenAI's limit for one picture.
IMAGE_BYTES_MAX = 20 * 1024 * 1024
_BASE64_SLICE = 1024 * 1024
_IMAGE_URL = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp);base64,", re.IGNORECASE)


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The messages of a chat body. Raises InvalidRequest naming the first that is wrong."""
    value = fields.raw("messages")
    if value is None:
        raise missing("messages")
    if not isinstance(value, list):
        raise wrong_type("messages", "an array of objects", value)
    if not value:
        raise empty_array("messages")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(value: Any, path: str) -> Message:
    if value is None:
        raise missing(f"{path}.role")
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    fields = Fields(value, path)
    role = fields.raw("role")
    if role is None:
        raise missing(f"{path}.role")
    if role not in ROLES:
        raise not_one_of(f"{path}.role", role, ROLES)
    tool_calls = _tool_calls(fields) if role == "assistant" else ()
    tool_call_id = fields.string("tool_call_id", 256) if role == "tool" else None
    if role == "tool" and tool_call_id is None:
        raise missing(f"{path}.tool_call_id")
    return Message(
        role=cast(Role, role),
        content=_content(fields, has_tool_calls=bool(tool_calls)),
        name=fields.string("name", 256),
        tool_calls=tool_calls,
        tool_call_id=tool_call_id,
    )


def _content(fields: Fields, *, has_tool_calls: bool) -> str | tuple[TextPart, ...] | None:
    value, param = fields.raw("content"), fields.param("content")
    if isinstance(value, str):
        return value
    if value is None and has_tool_calls:
        return None
    if not fields.has("content"):
        raise missing(param)
    if not isinstance(value, list):
        raise wrong_type(param, "a string or an array of content parts", value)
    if not value:
        raise empty_array(param)
    return tuple(_part(item, f"{param}[{index}]") for index, item in enumerate(value))


def _part(value: Any, path: str) -> TextPart:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    kind = value.get("type")
    if kind is None:
        raise missing(f"{path}.type")
    if kind not in PART_TYPES:
        raise not_one_of(f"{path}.type", kind, PART_TYPES)
    if kind == "image_url":
        _check_image(value.get("image_url"), f"{path}.image_url")
    if kind not in ("text", "refusal"):
        raise InvalidRequest(
            f"Unsupported content: the model reads text only, and '{path}' is of type '{kind}'.",
            param=path,
            code="unsupported_content",
        )
    text = value.get(kind)
    if text is None:
        raise missing(f"{path}.{kind}")
    if not isinstance(text, str):
        raise wrong_type(f"{path}.{kind}", "a string", text)
    return TextPart(text=text)


def _check_image(value: Any, path: str) -> None:
    """Raises unless `value` is a picture in a data: URL; a URL that a caller sent is never fetched."""
    if value is None:
        raise missing(path)
    url = value.get("url") if isinstance(value, dict) else value
    if url is None:
        raise missing(f"{path}.url")
    if not isinstance(url, str):
        raise wrong_type(f"{path}.url", "a string", url)
    prefix = _IMAGE_URL.match(url)
    if prefix is None:
        raise _bad_image(
            path, "pictures are taken as data:image/...;base64, URLs (png, jpeg, gif, webp) and never fetched"
        )
    size = (len(url) - prefix.end()) * 3 // 4
    if size > IMAGE_BYTES_MAX:
        raise _bad_image(path, f"the picture has {size:,} bytes, the limit is {IMAGE_BYTES_MAX:,}")
    if size == 0:
        raise _bad_image(path, "the picture is empty")
    try:
        for start in range(prefix.end(), len(url), _BASE64_SLICE):  # in slices: each holds the interpreter's lock
            binascii.a2b_base64(url[start : start + _BASE64_SLICE], strict_mode=True)
    except ValueError:
        raise _bad_image(path, "the picture is not base64") from None


def _bad_image(path: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid image URL: {reason}.", param=f"{path}.url", code="invalid_image_url")


def _tool_calls(fields: Fields) -> tuple[ToolCall, ...]:
    """Calls the assistant made earlier in this chat; they are shown to the model through its template."""
    value = fields.raw("tool_calls")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong_type(fields.param("tool_calls"), "an array", value)
    return tuple(_tool_call(item, f"{fields.param('tool_calls')}[{index}]") for index, item in enumerate(value))


def _tool_call(value: Any, path: str) -> ToolCall:
    if not isinstance(value, dict):
        raise wrong_type(path, "an object", value)
    if value.get("type", "function") != "function":
        raise not_one_of(f"{path}.type", value.get("type"), ("function",))
    function = value.get("function")
    if function is None:
        raise missing(f"{path}.function")
    if not isinstance(function, dict):
        raise wrong_type(f"{path}.function", "an object", function)
    inner = Fields(function, f"{path}.function")
    call_id = Fields(value, path).string("id", 256)
    name = inner.string("name", 256)
    arguments = inner.raw("arguments")
    for param, found in ((f"{path}.id", call_id), (inner.param("name"), name), (inner.param("arguments"), arguments)):
        if found is None:
            raise missing(param)
    if not isinstance(arguments, str):
        raise wrong_type(inner.param("arguments"), "a string", arguments)
    return ToolCall(id=cast(str, call_id), name=cast(str, name), arguments=arguments)
