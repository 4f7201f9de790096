"""What must never be kept is taken out of bodies, in time that follows their length."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history.redaction import MASK, redactor

KEY = "x" * 40
PATTERNS = [
    "sk-" + "a1B2" * 8,
    "sk-proj-" + "a1_B2-" * 8,
    "sk-ant-api03-" + "a1B2" * 20,
    "sk-mesh-abc123-" + "a" * 43,
    "AIza" + "Sy" + "a1_-" * 9,
    "hf_" + "aB3" * 12,
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1_" * 10,
    "AKIA" + "ABCD1234" * 2,
    "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
]


@pytest.mark.parametrize("secret", PATTERNS)
@pytest.mark.parametrize("around", ['{{"a":"{}"}}', "my key is {}.", "key={}&x=1", "日本{}語", "{}"])
def test_what_looks_like_a_secret_is_taken_out(secret: str, around: str) -> None:
    text = redactor()(around.format(secret))
    assert secret not in text
    assert MASK in text
    assert text.replace(MASK, "") in around.format("") or secret.startswith("xox")


def test_a_bearer_token_goes_and_its_word_stays() -> None:
    text = 'curl -H "Authorization: Bearer abc.DEF-123_456~789+/=" and bearer ' + "t" * 20
    assert redactor()(text) == 'curl -H "Authorization: Bearer ***" and bearer ***'


@pytest.mark.parametrize(
    "text",
    [
        "a risk-based approach, task-oriented-and-very-long-word-indeed",
        "sk-short",
        "the bearer of bad news",
        "highlight ghost gherkin",
        "https://hf_co and AIza",
        "eyJ is how it begins. It ends elsewhere. Really.",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redactor()(text) == text


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_private_keys_go_whole(kind: str) -> None:
    pem = f"-----BEGIN {kind}PRIVATE KEY-----\n{KEY}\n{KEY}\n-----END {kind}PRIVATE KEY-----"
    assert redactor()(f"before {pem} after {pem}.") == "before *** after ***."
    assert redactor()(json.dumps({"key": pem, "other": 1})) == '{"key": "***", "other": 1}'


def test_a_private_key_that_is_cut_off_goes_up_to_the_end_of_its_string() -> None:
    text = json.dumps({"key": f"-----BEGIN PRIVATE KEY-----\n{KEY}", "other": 1})
    assert redactor()(text) == '{"key": "***", "other": 1}'
    assert redactor()(f"-----BEGIN PRIVATE KEY-----\n{KEY}") == MASK


def test_a_private_key_never_takes_the_end_of_its_string_with_it() -> None:
    begins, ends = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"
    for texts in ([begins + '"quoted', ends], [begins + "\\", ends], [begins, begins], [begins + KEY * 1000, "b"]):
        redacted = json.loads(redactor()(json.dumps(texts)))
        assert len(redacted) == 2
        assert begins not in redacted[0]


def test_known_secrets_go_in_whatever_form_json_writes_them() -> None:
    secret = 'pass"word\\ü日本'
    body = {"a": secret, "b": [f"x{secret}y"]}
    for text in (json.dumps(body), json.dumps(body, ensure_ascii=False), secret):
        redacted = redactor([secret])(text)
        assert MASK in redacted
        assert "word" not in redacted
    assert json.loads(redactor([secret])(json.dumps(body))) == {"a": MASK, "b": [f"x{MASK}y"]}


def test_the_longer_of_two_secrets_that_begin_alike_goes_whole() -> None:
    assert redactor(["secret-123", "secret-123-and-more"])("secret-123-and-more secret-123") == "*** ***"


def test_known_secrets_that_are_too_short_to_be_told_from_words_stay() -> None:
    assert redactor(["", "a", "admin"])("an admin") == "an admin"


@given(st.text(), st.sampled_from(PATTERNS), st.text())
def test_secrets_go_whatever_stands_around_them(before: str, secret: str, after: str) -> None:
    text = redactor([secret])(before + secret + after)
    assert secret not in text


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_stays_json(body: object) -> None:
    text = json.dumps({"body": body, "key": PATTERNS[0]}, ensure_ascii=False)
    assert json.loads(redactor(["abcdefgh"])(text))["key"] == MASK
