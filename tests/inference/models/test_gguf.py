"""The header reader: what it tells of good files, and that nothing in a bad one gets past it or breaks it."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.models.errors import BadModelFile
from inference.models.gguf import ARRAY_ITEMS_MAX, STRING_BYTES_MAX, TENSOR_TYPES, read_header
from tests.fixtures import make_gguf

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def u32(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", U32, value)


def string(key: str, value: str | bytes) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value)


def array(key: str, kind: int, items: bytes, count: int) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + items


def tensor(name: str, shape: Iterable[int], kind: int, offset: int) -> bytes:
    lengths = list(shape)
    return text(name) + struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, kind, offset)


LLAMA = {
    "general.architecture": string("general.architecture", "llama"),
    "llama.context_length": u32("llama.context_length", 2048),
    "llama.embedding_length": u32("llama.embedding_length", 64),
    "llama.block_count": u32("llama.block_count", 2),
    "llama.attention.head_count": u32("llama.attention.head_count", 4),
}
ONE_TENSOR = (tensor("t", [32], 0, 0),)


def model(
    keys: Iterable[bytes] = LLAMA.values(),
    tensors: Iterable[bytes] = ONE_TENSOR,
    *,
    data_bytes: int = 128,
    version: int = 3,
    magic: bytes = b"GGUF",
    key_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """The bytes of a model file; every part of it may be a lie."""
    keys, tensors = list(keys), list(tensors)
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data_bytes)


def without(key: str) -> list[bytes]:
    return [value for name, value in LLAMA.items() if name != key]


def plus(*pairs: bytes) -> list[bytes]:
    return [*LLAMA.values(), *pairs]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    make_gguf.tiny(path)
    return path.read_bytes()


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def test_the_header_of_a_whole_model_says_what_the_maker_wrote(tmp_path: Path, tiny: bytes) -> None:
    header = read_header(written(tmp_path, tiny))
    vocab = len(make_gguf.Vocab().tokens)
    assert (header.architecture, header.name, header.quantization) == ("llama", "tiny-random", "F32")
    assert (header.context, header.layers, header.embedding, header.heads, header.heads_kv) == (4096, 2, 64, 4, 2)
    assert (header.key_length, header.value_length, header.vocab, header.experts) == (16, 16, vocab, 0)
    assert header.template and header.pooling is None and not header.is_embedding
    assert header.weights_bytes == 4 * header.parameters
    assert len(tiny) - header.weights_bytes < 20_000


def test_a_pooling_model_is_an_embedding_model(tmp_path: Path) -> None:
    make_gguf.embed(tmp_path / "e.gguf")
    header = read_header(tmp_path / "e.gguf")
    assert header.pooling == 1
    assert header.is_embedding


def test_the_table_of_tensor_types_is_that_of_the_format() -> None:
    ours = {kind: (block, size) for kind, (_, block, size) in TENSOR_TYPES.items()}
    theirs = {int(kind): sizes for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    theirs[9] = (32, 36)  # Q8_1: ggml-common.h has two halves and 32 bytes; the Python package still counts two floats
    assert {kind: ours.get(kind) for kind in theirs} == theirs
    assert {TENSOR_TYPES[int(kind)][0] for kind in reference.GGML_QUANT_SIZES} == {
        kind.name for kind in reference.GGML_QUANT_SIZES
    }


def test_a_vocabulary_of_150_000_tokens_is_passed_over_in_small_memory(tmp_path: Path) -> None:
    tokens = b"".join(text(f"token{i}") for i in range(150_000))
    merges = b"".join(text(f"a{i} b{i}") for i in range(150_000))
    kinds = struct.pack("<150000i", *range(150_000))
    scores = struct.pack("<150000f", *range(150_000))
    keys = plus(
        array("tokenizer.ggml.tokens", STRING, tokens, 150_000),
        array("tokenizer.ggml.token_type", I32, kinds, 150_000),
        array("tokenizer.ggml.scores", F32, scores, 150_000),
        array("tokenizer.ggml.merges", STRING, merges, 150_000),
        string("tokenizer.chat_template", "{{ messages }}" * 10_000),
    )
    header = read_header(written(tmp_path, model(keys)))
    assert header.vocab == 150_000
    assert header.template


def test_layers_that_differ_count_by_their_largest(tmp_path: Path) -> None:
    keys = plus(array("llama.attention.head_count_kv", I32, struct.pack("<4i", 0, 2, 8, 1), 4))
    assert read_header(written(tmp_path, model(keys))).heads_kv == 8


def test_own_head_lengths_win_over_the_derived_ones(tmp_path: Path) -> None:
    keys = plus(u32("llama.attention.key_length", 192), u32("llama.attention.value_length", 128))
    header = read_header(written(tmp_path, model(keys)))
    assert (header.key_length, header.value_length, header.heads_kv) == (192, 128, 4)


def test_a_model_without_attention_has_no_heads(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, model(without("llama.attention.head_count"))))
    assert (header.heads, header.heads_kv, header.key_length) == (0, 0, 0)


@pytest.mark.parametrize(("number", "name"), [(15, "Q4_K_M"), (1024 + 7, "Q8_0"), (999, None)])
def test_quantization_is_the_file_type_by_its_known_name(tmp_path: Path, number: int, name: str | None) -> None:
    assert read_header(written(tmp_path, model(plus(u32("general.file_type", number))))).quantization == name


def test_without_a_file_type_quantization_is_what_most_bytes_are_in(tmp_path: Path) -> None:
    tensors = [tensor("a", [8], 0, 0), tensor("b", [256, 4], 12, 32)]
    header = read_header(written(tmp_path, model(tensors=tensors, data_bytes=32 + 4 * 144)))
    assert (header.quantization, header.parameters, header.weights_bytes) == ("Q4_K", 8 + 1024, 32 + 4 * 144)


def test_a_name_cannot_carry_escape_sequences(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, model(plus(string("general.name", b"a\x1b[31mb\r\n\xff\xe2\x80\xae" * 50)))))
    assert header.name is not None
    assert header.name.isprintable()
    assert len(header.name) <= 200


GOOD = {
    "version 2": model(version=2),
    "no padding behind the last tensor": model(tensors=[tensor("t", [3], 0, 0)], data_bytes=12),
    "a scalar tensor": model(tensors=[tensor("t", [], 0, 0)]),
    "an empty tensor": model(tensors=[tensor("t", [0, 5], 0, 0)]),
    "general.type model": model(plus(string("general.type", "model"))),
    "one part of one": model(plus(u32("split.count", 1))),
    "alignment 64": model(plus(u32("general.alignment", 64)), alignment=64),
    "unspecified pooling": model(plus(text("llama.pooling_type") + struct.pack("<Ii", I32, -1))),
}


@pytest.mark.parametrize("content", GOOD.values(), ids=GOOD.keys())
def test_a_sound_file_is_accepted(tmp_path: Path, content: bytes) -> None:
    assert read_header(written(tmp_path, content)).architecture == "llama"


HUGE = 2**63
BAD = {
    "empty": (b"", "cut short"),
    "too short for a magic": (b"GG", "cut short"),
    "bad magic": (model(magic=b"GGUT"), "not a GGUF file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
    "a web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "version 0": (model(version=0), "version 0"),
    "version 1": (model(version=1), "version 1"),
    "version 4": (model(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "big-endian"),
    "2^32 keys": (model(key_count=2**32), "4,294,967,296 keys"),
    "2^63 tensors": (model(tensor_count=HUGE), "tensors"),
    "more keys than there are": (model(key_count=12), ""),
    "more tensors than there are": (model(tensor_count=2), ""),
    "a key of 2^40 bytes": (model([struct.pack("<Q", 2**40)]), "key 0"),
    "an empty key": (model(plus(u32("", 1))), "empty"),
    "a key that is no text": (model(plus(text(b"\xff\xfe") + struct.pack("<II", U32, 1))), "not ASCII"),
    "a key with a newline": (model(plus(u32("a\nb", 1))), "unprintable"),
    "a key twice": (model(plus(LLAMA["llama.block_count"])), "twice"),
    "value type 13": (model(plus(text("x") + struct.pack("<II", 13, 1))), "unknown value type 13"),
    "an array of arrays": (model(plus(array("x", ARRAY, b"", 1))), "nested"),
    "an array of 2^32 numbers": (model(plus(array("x", U32, b"", 2**32))), "4,294,967,296 items"),
    "an array of 2^64-1 strings": (model(plus(array("x", STRING, b"", 2**64 - 1))), "items for x"),
    "an array longer than the file": (model(plus(array("x", U64, b"", ARRAY_ITEMS_MAX))), "cut short"),
    "strings longer than the file": (model(plus(array("x", STRING, b"", ARRAY_ITEMS_MAX))), ""),
    "a string of 2^64-1 bytes in an array": (
        model(plus(array("x", STRING, struct.pack("<Q", 2**64 - 1), 1))),
        "bytes for a string of x",
    ),
    "a string over the limit": (
        model(plus(text("x") + struct.pack("<IQ", STRING, STRING_BYTES_MAX + 1))),
        "bytes for x",
    ),
    "no architecture": (model(without("general.architecture")), "architecture"),
    "an empty architecture": (model([string("general.architecture", "")]), "architecture"),
    "an architecture that is a number": (model([u32("general.architecture", 1)]), "not a string"),
    "no context": (model(without("llama.context_length")), "llama.context_length"),
    "no layers": (model(without("llama.block_count")), "llama.block_count"),
    "no embedding": (model(without("llama.embedding_length")), "llama.embedding_length"),
    "zero layers": (model([*without("llama.block_count"), u32("llama.block_count", 0)]), "block_count is 0"),
    "four billion layers": (model([*without("llama.block_count"), u32("llama.block_count", 2**32 - 1)]), "block_count"),
    "a context that is a float": (
        model([*without("llama.context_length"), text("llama.context_length") + struct.pack("<If", F32, 1.0)]),
        "not an integer",
    ),
    "layers that are true": (
        model([*without("llama.block_count"), text("llama.block_count") + struct.pack("<I?", BOOL, True)]),
        "not an integer",
    ),
    "a context that is a string": (
        model([*without("llama.context_length"), string("llama.context_length", "2048")]),
        "not an integer",
    ),
    "negative heads in an array": (
        model(plus(array("llama.attention.head_count_kv", I32, struct.pack("<2i", -1, 2), 2))),
        "outside",
    ),
    "alignment 0": (model(plus(u32("general.alignment", 0))), "alignment"),
    "alignment 48": (model(plus(u32("general.alignment", 48))), "power of two"),
    "alignment 2^31": (model(plus(u32("general.alignment", 2**31))), "alignment"),
    "no tensors": (model(tensors=[]), "no tensors"),
    "a vision projector": (model([string("general.architecture", "clip")]), "mmproj"),
    "an adapter": (model(plus(string("general.type", "adapter"))), "'adapter'"),
    "a part of a split model": (model(plus(u32("split.count", 3))), "one of 3 parts"),
    "a tensor name of 64 bytes": (model(tensors=[tensor("t" * 64, [32], 0, 0)]), "name of tensor 0"),
    "a tensor twice": (model(tensors=[*ONE_TENSOR, tensor("t", [32], 0, 128)], data_bytes=256), "twice"),
    "five dimensions": (model(tensors=[tensor("t", [1] * 5, 0, 0)]), "5 dimensions"),
    "2^31 dimensions": (model(tensors=[text("t") + struct.pack("<I", 2**31)]), "dimensions"),
    "a shape of 2^64-1": (model(tensors=[tensor("t", [2**64 - 1], 0, 0)]), "more elements"),
    "a shape whose product is 2^64": (model(tensors=[tensor("t", [2**32, 2**32], 0, 0)]), "more elements"),
    "a shape whose product wraps to zero": (model(tensors=[tensor("t", [2**33, 2**31, 2, 1], 0, 0)]), "more elements"),
    "a negative length": (model(tensors=[tensor("t", [HUGE + 5, 0], 0, 0)]), "more elements"),
    "a removed tensor type": (model(tensors=[tensor("t", [32], 4, 0)]), "unknown type 4"),
    "tensor type 43": (model(tensors=[tensor("t", [32], 43, 0)]), "unknown type 43"),
    "rows that fill no block": (model(tensors=[tensor("t", [33], 2, 0)]), "not a multiple"),
    "data beyond the file": (model(data_bytes=127), "cut short"),
    "a tensor of an exabyte": (model(tensors=[tensor("t", [2**60], 0, 0)]), "cut short"),
    "a misaligned offset": (model(tensors=[tensor("t", [32], 0, 1)], data_bytes=160), "offset 1"),
    "an offset of 2^64-32": (model(tensors=[tensor("t", [32], 0, 2**64 - 32)]), "offset"),
    "tensors that overlap": (
        model(tensors=[*ONE_TENSOR, tensor("u", [32], 0, 64)], data_bytes=256),
        "offset 64; 128 follows",
    ),
    "a gap between tensors": (
        model(tensors=[*ONE_TENSOR, tensor("u", [32], 0, 160)], data_bytes=512),
        "offset 160; 128 follows",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_what_and_where(tmp_path: Path, content: bytes, reason: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(BadModelFile) as caught:
        read_header(path)
    assert reason in caught.value.reason
    assert str(path) in caught.value.message
    assert caught.value.status == 400


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = GOOD["no padding behind the last tensor"]
    for length in range(len(whole)):
        with pytest.raises(BadModelFile):
            read_header(written(tmp_path, whole[:length]))
    assert read_header(written(tmp_path, whole)).layers == 2


def test_mutated_files_parse_or_are_refused_and_nothing_else(tmp_path: Path, tiny: bytes) -> None:
    """A thousand seeded mutations of bytes, lengths and cuts, mostly in the header, where they matter."""
    rng = random.Random(2)
    base = [tiny, *GOOD.values(), GOOD["version 2"], GOOD["alignment 64"]]
    sizes = [0, 1, 7, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
    outcomes = {True: 0, False: 0}
    for _ in range(1_000):
        original = rng.choice(base)
        content = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(content), 16_384))
            kind = rng.randrange(5)
            if kind == 0:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                content[at : at + 8] = struct.pack("<Q", rng.choice(sizes))
            elif kind == 2:
                content[at : at + 4] = struct.pack("<I", rng.choice(sizes) & 0xFFFFFFFF)
            elif kind == 3:
                del content[at : at + rng.randint(1, 64)]
            else:
                content[at:at] = rng.randbytes(rng.randint(1, 64))
        path = written(tmp_path, bytes(content))
        try:
            header = read_header(path)
        except BadModelFile:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert 0 < header.layers <= 4096
            assert header.weights_bytes <= len(content)
    assert min(outcomes.values()) > 50, outcomes


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_after_a_good_beginning_are_refused_or_read(tmp_path: Path, tail: bytes) -> None:
    path = written(tmp_path, b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + LLAMA["general.architecture"] + tail)
    try:
        header = read_header(path)
    except BadModelFile as error:
        assert error.reason
    else:
        assert header.architecture == "llama"


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    context=st.integers(1, 2**31 - 1),
    layers=st.integers(1, 4096),
    heads=st.integers(1, 256),
    head_length=st.integers(1, 512),
    heads_kv=st.integers(1, 256),
    vocab=st.integers(1, 2_000),
    name=st.text(max_size=50),
)
def test_written_facts_are_read_back(
    tmp_path: Path, context: int, layers: int, heads: int, head_length: int, heads_kv: int, vocab: int, name: str
) -> None:
    writer = reference.GGUFWriter(tmp_path / "h.gguf", "qwen2")
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_block_count(layers)
    writer.add_embedding_length(heads * head_length)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_token_list([f"t{i}" for i in range(vocab)])
    writer.add_tensor("t", np.ones(3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "h.gguf")
    assert (header.context, header.layers, header.heads, header.heads_kv) == (context, layers, heads, heads_kv)
    assert (header.key_length, header.value_length, header.vocab) == (head_length, head_length, vocab)
    assert header.name is None or header.name.isprintable()
    if name.isprintable() and name.strip():
        assert header.name == name.strip()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(BadModelFile, match=r"not a regular file|cannot be read"):
        read_header(tmp_path)
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_header(Path("with\0zero.gguf"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.gguf"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        with pytest.raises(BadModelFile, match="not a regular file"):
            read_header(path)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_symbolic_link_is_refused_where_told(tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(written(tmp_path, GOOD["version 2"]))
    assert read_header(link).layers == 2
    with pytest.raises(BadModelFile, match="symbolic link"):
        read_header(link, follow_symlinks=False)
