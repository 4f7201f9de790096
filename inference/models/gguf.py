"""Reads the header of a GGUF model file in Python, under limits, before native code sees the file.

It checks everything that the native parser trusts or checks late (counts, lengths, types, shapes, offsets against the
size of the file) and answers a `Header`. It never reads tensor data, keeps no array of the file in memory, and is not
a general GGUF library: it knows what a peer must know of a model. No mapping either: a file that shrinks while it is
mapped would end the process.

Source: ggml docs/gguf.md (version 3) and ggml/src/gguf.cpp at the llama.cpp commit of llama-cpp-python 0.3.36,
whose rules these are: no nested arrays, no duplicate keys, tensors back to back in the order they are listed.
"""

from __future__ import annotations

import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.models.errors import BadModelFile
from inference.models.model import Header

# Real headers are at most about 20 MB (a vocabulary of 262,000 tokens and its merges). This bounds the time that a
# hostile one can take to about two seconds: 16 million empty strings.
HEADER_BYTES_MAX = 128 * 1024 * 1024
KEYS_MAX = 10_000  # real files have 20 to 60
KEY_BYTES_MAX = 1_024  # the format allows 65,535, real keys stay under 100
STRING_BYTES_MAX = 16 * 1024 * 1024  # chat templates and licences; real ones stay under 100 kB
ARRAY_ITEMS_MAX = 4_000_000  # vocabularies and merges; the largest known have 520,000
TENSORS_MAX = 100_000  # real files stay under 3,000
TENSOR_NAME_BYTES_MAX = 63  # GGML_MAX_NAME less the closing zero
DIMENSIONS_MAX = 4  # GGML_MAX_DIMS
ALIGNMENT_MAX = 1024 * 1024  # real files use 32, some 4,096
LAYERS_MAX = 4_096  # llama.cpp stops at 512
NAME_CHARS_MAX = 200
INT64_MAX = 2**63 - 1
WINDOW_BYTES = 1024 * 1024  # how much of the file is in memory at once

# Type number -> (name, elements in a block, bytes of a block): ggml.h and ggml-common.h. Missing numbers were removed.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# `general.file_type` (llama_ftype in llama.h) -> the name people know.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
FILE_TYPE_GUESSED = 1024  # a bit set on top of the number

# Files that people mistake for a model, by their first four bytes.
IMPOSTORS = {
    b"vers": "a Git LFS pointer, not the model itself; fetch it with `git lfs pull`",
    b"<!DO": "a web page, not a model; the download went wrong",
    b"<!do": "a web page, not a model; the download went wrong",
    b"<htm": "a web page, not a model; the download went wrong",
    b"ggml": "a model in the old GGML format; get the GGUF version",
    b"lmgg": "a model in the old GGML format; get the GGUF version",
    b"tjgg": "a model in the old GGJT format; get the GGUF version",
    b"PK\x03\x04": "a zip or PyTorch archive, not GGUF; convert it first",
}

STRING, ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
_U32 = _SCALARS[4]
_U64 = _SCALARS[10]

Value = int | float | bytes | tuple[int, ...]


def read_header(path: Path, *, follow_symlinks: bool = True) -> Header:
    """The header of the model file at `path`. Takes milliseconds to a tenth of a second: call it in a thread.

    With `follow_symlinks` False a symbolic link is refused. Raises `BadModelFile` for whatever is not a whole,
    sound, little-endian, unsplit GGUF model of version 2 or 3, and nothing else.
    """
    try:
        with _opened(path, follow_symlinks) as file:
            size = os.fstat(file.fileno()).st_size
            return _parsed(_Reader(path, file, size))
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise BadModelFile(path, f"cannot be read: {reason or error}") from None


def _opened(path: Path, follow_symlinks: bool) -> BinaryIO:
    """`path` open for reading, known to be a regular file. Never waits, as opening a FIFO would."""
    if not follow_symlinks and path.is_symlink():
        raise BadModelFile(path, "is a symbolic link, and links are not followed here; import the file it points to")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadModelFile(path, "is not a regular file")
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def _parsed(reader: _Reader) -> Header:
    keys, tensors = _preamble(reader)
    facts = _Facts(reader)
    for index in range(keys):
        facts.read_pair(index)
    facts.refuse_what_is_no_model(tensors)
    return facts.header(_tensors(reader, tensors, facts.alignment()))


def _preamble(reader: _Reader) -> tuple[int, int]:
    """The numbers of keys and of tensors, after magic and version."""
    magic = reader.take(4, "the magic number")
    if magic != b"GGUF":
        what = IMPOSTORS.get(magic, f"not a GGUF file: it begins with {magic!r}, not b'GGUF'")
        raise reader.bad(what)
    version = reader.u32("the version")
    if version and version & 0xFFFF == 0:
        raise reader.bad("is a big-endian GGUF file; convert it with `gguf-convert-endian FILE little`")
    if version not in (2, 3):
        raise reader.bad(f"has GGUF version {version}; 2 and 3 are supported")
    tensors = reader.u64("the number of tensors")
    keys = reader.u64("the number of keys")
    reader.check_at_most(tensors, TENSORS_MAX, "tensors")
    reader.check_at_most(keys, KEYS_MAX, "keys")
    return keys, tensors


class _Reader:
    """Takes bytes in order from a file through one window; everything missing or too long is a `BadModelFile`."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.size = path, size
        self.position = 0
        self._file = file
        self._window = b""
        self._window_at = 0

    def bad(self, reason: str) -> BadModelFile:
        return BadModelFile(self.path, reason)

    def check_at_most(self, value: int, limit: int, what: str) -> None:
        if value > limit:
            raise self.bad(f"claims {value:,} {what} at byte {self.position:,}; at most {limit:,} are accepted")

    def u32(self, what: str) -> int:
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def string(self, limit: int, what: str) -> bytes:
        length = self.u64(f"the length of {what}")
        self.check_at_most(length, limit, f"bytes for {what}")
        return self.take(length, what)

    def beginning(self, limit: int, what: str) -> bytes:
        """The first bytes of a string that may be long: no key of ours needs more than a name."""
        length = self.u64(f"the length of {what}")
        self.check_at_most(length, limit, f"bytes for {what}")
        kept = self.take(min(length, 4 * NAME_CHARS_MAX), what)
        self.skip(length - len(kept), what)
        return kept

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        start = self.position
        self.skip(count, what)
        offset = start - self._window_at
        if offset < 0 or offset + count > len(self._window):
            self._fill(start, count)
            offset = 0
            if len(self._window) < count:
                raise self.bad(f"became shorter while it was read, at byte {start:,}")
        return self._window[offset : offset + count]

    def skip(self, count: int, what: str) -> None:
        """Passes over the next `count` bytes without reading them."""
        end = self.position + count
        if end > self.size:
            raise self.bad(f"is cut short: {what} at byte {self.position:,} ends at {end:,}, the file at {self.size:,}")
        if end > HEADER_BYTES_MAX:
            raise self.bad(f"has a header of more than {HEADER_BYTES_MAX:,} bytes ({what} ends at {end:,})")
        self.position = end

    def skip_strings(self, count: int, what: str) -> None:
        """Passes over `count` strings, each a length and its bytes; made for 300,000 of them."""
        unpack = _U64.unpack_from
        left = count
        while left:
            self.take(8, what)  # moves the window, checks the end of the file
            self.position -= 8
            window, offset = self._window, self.position - self._window_at
            last = len(window) - 8
            while left and offset <= last:
                length = unpack(window, offset)[0]
                if length > STRING_BYTES_MAX:
                    self.position = self._window_at + offset
                    self.check_at_most(length, STRING_BYTES_MAX, f"bytes for a string of {what}")
                offset += 8 + length
                left -= 1
            self.skip(self._window_at + offset - self.position, what)

    def _fill(self, start: int, count: int) -> None:
        self._file.seek(start)
        parts: list[bytes] = []
        left = max(WINDOW_BYTES, count)
        while left and (part := self._file.read(left)):
            parts.append(part)
            left -= len(part)
        self._window, self._window_at = b"".join(parts), start


class _Facts:
    """The key-value pairs: numbers, beginnings of strings, small integer arrays, and the lengths of all arrays."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._values: dict[str, Value] = {}
        self._types: dict[str, int] = {}
        self._items: dict[str, int] = {}

    def read_pair(self, index: int) -> None:
        reader = self._reader
        raw = reader.string(KEY_BYTES_MAX, f"key {index}")
        try:
            key = raw.decode("ascii")
        except UnicodeDecodeError:
            raise reader.bad(f"key {index} is not ASCII: {raw[:40]!r}") from None
        if not key or not key.isprintable():
            raise reader.bad(f"key {index} is empty or unprintable: {key[:40]!r}")
        if key in self._types:
            raise reader.bad(f"has the key {key} twice")
        kind = reader.u32(f"the type of {key}")
        self._types[key] = kind
        if kind == ARRAY:
            self._read_array(key)
        elif kind == STRING:
            self._values[key] = reader.beginning(STRING_BYTES_MAX, key)
        elif scalar := _SCALARS.get(kind):
            self._values[key] = scalar.unpack(reader.take(scalar.size, key))[0]
        else:
            raise reader.bad(f"{key} has the unknown value type {kind}")

    def _read_array(self, key: str) -> None:
        reader = self._reader
        kind = reader.u32(f"the item type of {key}")
        count = reader.u64(f"the length of {key}")
        reader.check_at_most(count, ARRAY_ITEMS_MAX, f"items for {key}")
        self._items[key] = count
        if kind == STRING:
            reader.skip_strings(count, key)
        elif scalar := _SCALARS.get(kind):
            if kind in _INTEGERS and count <= LAYERS_MAX:
                data = reader.take(count * scalar.size, key)
                self._values[key] = tuple(item for (item,) in scalar.iter_unpack(data))
            else:
                reader.skip(count * scalar.size, key)
        else:
            raise reader.bad(f"{key} is an array of the unknown or nested type {kind}")

    def refuse_what_is_no_model(self, tensors: int) -> None:
        """Files that are sound, but that no engine can load alone."""
        kind = self.text("general.type")
        architecture = self.text("general.architecture")
        if kind not in (None, "model"):
            raise self._reader.bad(f"is a GGUF file of type {kind!r}, not a model")
        if architecture == "clip":
            raise self._reader.bad("is a vision projector (mmproj), not a language model")
        parts = self.integer("split.count", 0, 0, 65_535)
        if parts > 1:
            raise self._reader.bad(
                f"is one of {parts} parts of a split model, which are not supported yet; "
                "join them with `llama-gguf-split --merge FIRST-PART OUTPUT`"
            )
        if tensors == 0:
            raise self._reader.bad("has no tensors: it is a vocabulary, not a model")

    def alignment(self) -> int:
        """Of tensor data, in bytes: a power of two."""
        alignment = self.integer("general.alignment", 32, 1, ALIGNMENT_MAX)
        if alignment & (alignment - 1):
            raise self._reader.bad(f"general.alignment is {alignment}, not a power of two")
        return alignment

    def header(self, tensors: _Tensors) -> Header:
        architecture = self.text("general.architecture")
        if not architecture:
            raise self._reader.bad("does not say its architecture (general.architecture)")
        of = f"{architecture}."
        layers = self.integer(of + "block_count", None, 1, LAYERS_MAX)
        embedding = self.integer(of + "embedding_length", None, 1, 2**24)
        heads = self.largest(of + "attention.head_count", 0)  # none: the model is recurrent
        head_length = embedding // heads if heads else 0
        pooling = self.integer(of + "pooling_type", -1, -1, 255)
        file_type = self.integer("general.file_type", -1, -1, 2**32 - 1)
        return Header(
            architecture=architecture,
            name=self.text("general.name") or None,
            context=self.integer(of + "context_length", None, 1, 2**31 - 1),
            layers=layers,
            embedding=embedding,
            heads=heads,
            heads_kv=self.largest(of + "attention.head_count_kv", heads),
            key_length=self.integer(of + "attention.key_length", head_length, 0, 2**20),
            value_length=self.integer(of + "attention.value_length", head_length, 0, 2**20),
            vocab=self._items.get("tokenizer.ggml.tokens") or self.integer(of + "vocab_size", 0, 0, ARRAY_ITEMS_MAX),
            experts=self.integer(of + "expert_count", 0, 0, 2**20),
            pooling=None if pooling < 0 else pooling,
            template=bool(self._values.get("tokenizer.chat_template")),
            quantization=FILE_TYPES.get(file_type & ~FILE_TYPE_GUESSED) if file_type >= 0 else tensors.quantization,
            parameters=tensors.parameters,
            weights_bytes=tensors.weights_bytes,
        )

    def integer(self, key: str, default: int | None, lowest: int, highest: int) -> int:
        """The number at `key`, in `lowest` to `highest`. `default` None: the key must be there."""
        if key not in self._types:
            if default is None:
                raise self._reader.bad(f"does not say {key}")
            return default
        value = self._values.get(key)
        if not isinstance(value, int) or self._types[key] not in _INTEGERS:
            raise self._reader.bad(f"{key} is not an integer")
        if not lowest <= value <= highest:
            raise self._reader.bad(f"{key} is {value:,}; it must be {lowest:,} to {highest:,}")
        return value

    def largest(self, key: str, default: int) -> int:
        """The number at `key`, or the largest where each layer has its own."""
        value = self._values.get(key)
        if not isinstance(value, tuple):
            return self.integer(key, default, 0, 2**20)
        largest = max(value, default=default)
        if min(value, default=0) < 0 or largest > 2**20:
            raise self._reader.bad(f"{key} holds a number outside 0 to {2**20:,}")
        return largest

    def text(self, key: str) -> str | None:
        """The string at `key`, shortened, without what could harm a terminal or a page's layout."""
        if key not in self._types:
            return None
        value = self._values.get(key)
        if not isinstance(value, bytes):
            raise self._reader.bad(f"{key} is not a string")
        decoded = value.decode("utf-8", "replace")
        return "".join(c for c in decoded if c.isprintable())[:NAME_CHARS_MAX].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensors:
    """What the list of tensors adds up to. `quantization`: the type most bytes are in."""

    parameters: int
    weights_bytes: int
    quantization: str


def _tensors(reader: _Reader, count: int, alignment: int) -> _Tensors:
    """Checks the list of tensors against the file's size; the data itself stays unread."""
    names: set[bytes] = set()
    bytes_by_type: Counter[str] = Counter()
    parameters = weights_bytes = offset_expected = 0
    end, last = 0, ""
    for index in range(count):
        name = reader.string(TENSOR_NAME_BYTES_MAX, f"the name of tensor {index}")
        if name in names:
            raise reader.bad(f"has the tensor {_shown(name)} twice")
        names.add(name)
        last = f"tensor {_shown(name)}"
        elements, size, kind = _tensor_size(reader, last)
        offset = reader.u64(f"the offset of {last}")
        if offset != offset_expected:
            raise reader.bad(f"{last} has offset {offset:,}; {offset_expected:,} follows from the tensors before it")
        end = offset + size
        offset_expected = _padded(end, alignment)
        if offset_expected > reader.size + alignment:
            break  # far outside already; the message below says so
        parameters += elements
        weights_bytes += size
        bytes_by_type[kind] += size
    data_at = _padded(reader.position, alignment)
    if data_at + end > reader.size:
        raise reader.bad(f"is cut short: {last} ends at byte {data_at + end:,}, the file at {reader.size:,}")
    quantization = bytes_by_type.most_common(1)[0][0]
    return _Tensors(parameters=parameters, weights_bytes=weights_bytes, quantization=quantization)


def _tensor_size(reader: _Reader, tensor: str) -> tuple[int, int, str]:
    """(elements, bytes, type) of the tensor whose shape comes next."""
    dimensions = reader.u32(f"the number of dimensions of {tensor}")
    reader.check_at_most(dimensions, DIMENSIONS_MAX, f"dimensions for {tensor}")
    shape = [reader.u64(f"the shape of {tensor}") for _ in range(dimensions)]
    elements = 1
    for length in shape:
        elements *= length
        if length > INT64_MAX or elements > INT64_MAX:
            raise reader.bad(f"{tensor} has the shape {shape}, more elements than can be counted")
    kind = reader.u32(f"the type of {tensor}")
    if kind not in TENSOR_TYPES:
        raise reader.bad(f"{tensor} has the unknown type {kind}; the file may be newer than this program")
    name, block, block_bytes = TENSOR_TYPES[kind]
    row = shape[0] if shape else 1
    if row % block:
        raise reader.bad(f"{tensor} has rows of {row:,} elements, not a multiple of the {block} that {name} packs")
    return elements, elements // block * block_bytes, name


def _padded(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def _shown(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace"))
