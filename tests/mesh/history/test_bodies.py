"""Bodies are kept as JSON, without secrets and images, and within a bound."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history.bodies import LIGHT_BYTES_MAX, is_light, stored, stored_at_once

PNG = base64.b64encode(b"\x89PNG" * 3000).decode()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


def unredacted(text: str) -> str:
    return text


def image(data: str) -> dict[str, Any]:
    return {"messages": [{"content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]}]}


@given(st.dictionaries(st.text(), JSON, max_size=8))
def test_what_is_kept_is_the_json_that_was_sent(body: dict[str, Any]) -> None:
    assert json.loads(stored(body, unredacted)) == body
    assert stored_at_once(body, unredacted) == stored(body, unredacted)


def test_text_is_kept_as_it_reads_so_that_it_can_be_searched() -> None:
    assert stored({"prompt": "größer 日本"}, unredacted) == '{"prompt":"größer 日本"}'.encode()


def test_half_a_character_does_not_fail_it() -> None:
    assert json.loads(stored({"text": "a\ud800b"}, unredacted)) == {"text": "a?b"}


@pytest.mark.parametrize("data", [PNG, PNG * 10])
def test_an_image_is_replaced_by_its_size_and_hash(data: str) -> None:
    kept = json.loads(stored(image(data), unredacted))
    assert json.loads(stored_at_once(image(data), unredacted)) == kept
    url = kept["messages"][0]["content"][0]["image_url"]["url"]
    assert (
        url
        == f"data:image/png ({len(data) // 4 * 3:,} bytes, sha256 {hashlib.sha256(data.encode()).hexdigest()} as sent)"
    )


def test_secrets_are_taken_out_before_the_cut_that_would_halve_them() -> None:
    def redact(text: str) -> str:
        return text.replace("sk-secret", "*********")

    text = "x" * 95 + "sk-secret" + "y" * LIGHT_BYTES_MAX
    kept = stored({"p": text}, redact, bytes_max=100)
    assert b"sk-" not in kept
    assert json.loads(kept)["beginning"] == '{"p":"' + "x" * 94


@pytest.mark.parametrize(
    "body",
    [{"p": "é" * 200_000}, {"p": list(range(300_000))}, {"m": [{"c": "x" * 50}] * 9000}, {"p": "x" * 3_000_000}],
)
def test_a_long_body_is_kept_up_to_a_bound(body: dict[str, Any]) -> None:
    kept = stored(body, unredacted, bytes_max=10_000)
    found = json.loads(kept)
    assert set(found) == {"note", "beginning"}
    assert "10,000 bytes" in found["note"]
    assert 9_990 <= len(found["beginning"].encode()) <= 10_000
    assert json.dumps(body, ensure_ascii=False, separators=(",", ":")).startswith(found["beginning"])


def test_a_body_of_exactly_the_bound_is_whole() -> None:
    body = {"p": "x" * 92}
    assert len(stored(body, unredacted, bytes_max=100)) == 100
    assert json.loads(stored(body, unredacted, bytes_max=100)) == body
    assert "note" in json.loads(stored(body, unredacted, bytes_max=99))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "x" * 1000}, True),
        ({"prompt": "x" * LIGHT_BYTES_MAX}, False),
        ({"prompt": list(range(LIGHT_BYTES_MAX))}, False),
        ({"x" * LIGHT_BYTES_MAX: 1}, False),
        ({"a": [[[{"b": "c"}]]]}, True),
        ({"a": [{}] * LIGHT_BYTES_MAX}, False),
    ],
)
def test_what_is_light_is_made_at_once(body: dict[str, Any], expected: bool) -> None:
    assert is_light(body) is expected
