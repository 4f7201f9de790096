"""Names of models: what is allowed, what a caller means, what a file is called."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ModelNotFound
from inference.models import names
from inference.models.errors import BadModelName
from inference.models.model import Header, StoredModel

HEADER = Header(
    architecture="llama",
    name=None,
    context=4096,
    layers=1,
    embedding=64,
    heads=4,
    heads_kv=2,
    key_length=16,
    value_length=16,
    vocab=100,
    experts=0,
    pooling=None,
    template=True,
    quantization="F32",
    parameters=1,
    weights_bytes=4,
)


def model(
    id_: str, path: str = "/m/blobs/sha256-0", aliases: tuple[str, ...] = (), origin: str = "import"
) -> StoredModel:
    return StoredModel(
        id=id_,
        path=Path(path),
        size_bytes=1,
        sha256=None,
        header=HEADER,
        origin=origin,
        added_at=0.0,
        aliases=aliases,
    )


HELLO = model("hello", "/p/hello.gguf", origin="builtin")
QWEN = model("org/qwen2.5-7b:q4", "/m/org/Qwen2.5-7B-Instruct.gguf", ("qwen", "shared"))
TINY = model("Tiny", "/m/tiny-random.gguf", ("shared",))
MODELS = [HELLO, QWEN, TINY]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hello", HELLO),
        ("org/qwen2.5-7b:q4", QWEN),
        ("qwen", QWEN),
        ("Qwen2.5-7B-Instruct", QWEN),
        ("qwen2.5-7b-instruct.GGUF", QWEN),
        ("qwen2.5-7b:q4", QWEN),
        ("tiny", TINY),
        ("TINY-RANDOM.gguf", TINY),
    ],
)
def test_a_name_means_an_id_an_alias_or_a_unique_stem(name: str, meant: StoredModel) -> None:
    assert names.resolve(name, MODELS) is meant


def test_an_exact_id_wins_over_another_models_alias_and_stem() -> None:
    other = model("b", "/m/a.gguf", ("a",))
    exact = model("a", "/m/x.gguf")
    assert names.resolve("a", [other, exact]) is exact


@pytest.mark.parametrize("name", ["shared", "SHARED", "", "../hello", "org", "qwen2.5"])
def test_an_ambiguous_or_unknown_name_means_nothing(name: str) -> None:
    with pytest.raises(ModelNotFound):
        names.resolve(name, MODELS)


def test_not_found_speaks_as_openai_does_and_names_the_three_nearest() -> None:
    models = [HELLO, *(model(i) for i in ("llama3.2:3b", "llama3.2:1b", "llama3.1:8b", "qwen2.5-7b"))]
    with pytest.raises(ModelNotFound) as caught:
        names.resolve("llama3.2:30b", models)
    error = caught.value
    assert error.message.startswith("The model `llama3.2:30b` does not exist or you do not have access to it.")
    assert "Nearest: `llama3.2:3b`," in error.message
    assert "`llama3.2:1b`" in error.message and "`llama3.1:8b`" in error.message
    assert "hello" not in error.message and "qwen" not in error.message
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_not_found_without_any_model_says_how_to_add_one() -> None:
    with pytest.raises(ModelNotFound, match="model import"):
        names.resolve("x", [])


@given(st.text())
def test_not_found_is_short_and_printable_whatever_was_asked(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        names.resolve(name * 300, [model("some-model")])
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def test_the_embedded_model_is_listed_last() -> None:
    listed = names.in_order([HELLO, model("zeta"), model("Alpha"), model("beta")])
    assert [m.id for m in listed] == ["Alpha", "beta", "zeta", "hello"]


@pytest.mark.parametrize("name", ["a", "llama3.2:latest", "org/repo/file-Q4_K_M.x", "7b", "gpt-oss:20b", "a" * 200])
def test_a_plain_name_is_allowed(name: str) -> None:
    assert names.checked(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", "../x", "a/../b", "a..b", "/etc/passwd", "a/", "a//b", "./a", ".hidden", "a/.b", "-rf",
        "a\\b", "C:\\x", "\\\\host\\share", "a\0b", "a\n", "a b", "a%2fb", "a:b:c", "a:", ":a", "m@x", "a:b/c", "naïve",
        "e\u0301", "\u202egnp", "a" * 201, "Hello", "hello", "openai:gpt-4o", "Anthropic:x", "google:g", "ahtnorpic:x",
    ],
)  # fmt: skip
def test_a_hostile_or_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(BadModelName) as caught:
        names.checked(name)
    assert caught.value.status == 400
    assert caught.value.message.isprintable()


NAME_LIKE = st.text(alphabet="abZ09._-/:\\ %~\0\u00e9", max_size=12)


@given(NAME_LIKE | st.text(max_size=250))
def test_an_allowed_name_never_leads_anywhere(name: str) -> None:
    try:
        names.checked(name)
    except BadModelName:
        return
    path = PurePosixPath(name)
    assert not path.is_absolute() and ".." not in name and "\\" not in name
    assert str(path) == name and name.isascii() and name.isprintable()


@pytest.mark.parametrize(
    ("file", "taken", "name"),
    [
        ("tiny.gguf", (), "tiny"),
        ("tiny.GGUF", (), "tiny"),
        ("org/repo/x.gguf", (), "x"),
        ("org/repo/x.gguf", ("x",), "repo/x"),
        ("org/repo/x.gguf", ("x", "repo/x"), "org/repo/x"),
        ("org/repo/x.gguf", ("x", "repo/x", "org/repo/x"), "x-2"),
        ("llama/model.gguf", (), "llama"),
        ("org/llama/model.gguf", ("llama",), "org/llama"),
        ("model.gguf", (), "model"),
        ("My Model (1).gguf", (), "My-Model-1"),
        ("..gguf", (), "model"),
        ("hello.gguf", (), "hello-2"),
        ("日本語.gguf", (), "model"),
    ],
)
def test_a_file_gets_a_name_that_is_free(file: str, taken: tuple[str, ...], name: str) -> None:
    assert names.derived(PurePosixPath(file), taken) == name


@given(
    st.lists(
        st.text(min_size=1, max_size=80).filter(lambda t: "/" not in t and t not in (".", "..")), min_size=1, max_size=3
    )
)
def test_a_derived_name_is_always_allowed(parts: list[str]) -> None:
    name = names.derived(PurePosixPath(*parts), ())
    assert names.checked(name) == name
    assert all(names.checked(alias) for alias in names.aliases_of(PurePosixPath(*parts), name))


def test_a_folder_of_the_reference_answers_to_its_tag() -> None:
    """111: `gpt-oss:20b` <-> `gpt-oss_20b/model.gguf`."""
    assert names.aliases_of(PurePosixPath("gpt-oss_20b/model.gguf"), "gpt-oss_20b") == ("gpt-oss:20b",)
    assert names.aliases_of(PurePosixPath("a/foo_bar.gguf"), "mine") == ("foo_bar",)
