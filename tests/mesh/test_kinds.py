"""What each kind of value takes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import kinds
from mesh.kinds import Kind

ALLOWED = [
    (kinds.size(), "0", 0),
    (kinds.size(), "1073741824", 2**30),
    (kinds.size(), "512MiB", 512 * 2**20),
    (kinds.size(), "8GB", 8 * 10**9),
    (kinds.size(), "1.5 gib", 3 * 2**29),
    (kinds.size(), "10 kB", 10_000),
    (kinds.size(), "2TiB", 2**41),
    (kinds.seconds(0, 100), "2.5", 2.5),
    (kinds.seconds(0, 100), "30s", 30.0),
    (kinds.integer(0, 65535), "65535", 65535),
    (kinds.SWITCH, "ON", True),
    (kinds.SWITCH, "0", False),
    (kinds.LEVEL, "WARN", "warning"),
    (kinds.LEVEL, "trace", "debug"),
    (kinds.HOST, "0.0.0.0", "0.0.0.0"),
    (kinds.HOST, "[::1]", "::1"),
    (kinds.HOST, "NAS.local", "nas.local"),
    (kinds.URL, "https://api.openai.com/", "https://api.openai.com"),
    (kinds.ORIGIN, "http://NAS.lan:3000/", "http://nas.lan:3000"),
    (kinds.PROXY, "proxy.lan:3128", "http://proxy.lan:3128"),
    (kinds.listed(kinds.HOST), " a.lan , 10.0.0.1,", ("a.lan", "10.0.0.1")),
    (kinds.PORT_OR_OFF, "off", None),
    (kinds.PORT_OR_OFF, "11434", 11434),
    (kinds.AUTO_MODEL, "off", None),
    (kinds.AUTO_MODEL, "yes", "true"),
    (kinds.AUTO_MODEL, "llama3.2:3b", "llama3.2:3b"),
    (kinds.DATABASE, "sqlite:///var/r.db", Path("/var/r.db")),
    (kinds.DATABASE, "sqlite:/var/r.db", Path("/var/r.db")),
    (kinds.DATABASE, "sqlite:///var/r.db?mode=rwc", Path("/var/r.db")),
    (kinds.DATABASE, "sqlite://~/r.db", Path.home() / "r.db"),
    (kinds.PATH, "~/x", Path.home() / "x"),
]
REFUSED = [
    (kinds.size(), "-1"),
    (kinds.size(), "8G"),
    (kinds.size(), "nan"),
    (kinds.size(), "99999999TB"),
    (kinds.size(512), "511"),
    (kinds.seconds(1, 100), "0"),
    (kinds.seconds(0, 100), "nan"),
    (kinds.seconds(0, 100), "inf"),
    (kinds.seconds(0, 100), "soon"),
    (kinds.integer(1, 64), "0"),
    (kinds.integer(1, 64), "1.5"),
    (kinds.SWITCH, "maybe"),
    (kinds.LEVEL, "loud"),
    (kinds.choice("open", "key"), "shut"),
    (kinds.HOST, "a b"),
    (kinds.HOST, "300.1.1.1"),
    (kinds.HOST, "http://x"),
    (kinds.ADDRESS, "nas.lan"),
    (kinds.URL, "api.openai.com"),
    (kinds.URL, "ftp://x"),
    (kinds.URL, "http://x:99999"),
    (kinds.ORIGIN, "http://nas.lan/page"),
    (kinds.DATABASE, "postgres://x/y"),
    (kinds.DATABASE, "sqlite:"),
    (kinds.NAME, "x" * 64),
    (kinds.LINE, "a\nb"),
    (kinds.PORT_OR_OFF, "0"),
    (kinds.PATH, "a\0b"),
]


@pytest.mark.parametrize(("kind", "text", "value"), ALLOWED, ids=[f"{k.metavar}-{t}" for k, t, _ in ALLOWED])
def test_an_allowed_text_becomes_its_value(kind: Kind, text: str, value: object) -> None:
    """F23: `sqlite:` and `sqlite://` forms, `~` expanded; and every other kind."""
    assert kind.parse(text) == value


@pytest.mark.parametrize(("kind", "text"), REFUSED, ids=[f"{k.metavar}-{t[:20]!r}" for k, t in REFUSED])
def test_what_is_not_allowed_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):
        kind.parse(text)


@given(st.integers(0, 2**59))
def test_a_plain_number_of_bytes_is_itself(number: int) -> None:
    assert kinds.size().parse(str(number)) == number


@given(st.sampled_from([k for k, _ in REFUSED]), st.text(max_size=40))
def test_any_text_is_a_value_or_a_value_error(kind: Kind, text: str) -> None:
    try:
        kind.parse(text)
    except ValueError:
        return
    except RuntimeError as error:
        assert "home directory" in str(error)  # `~name` of nobody, which the reader of settings expects
