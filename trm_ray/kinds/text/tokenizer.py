"""Tokenizers: bytes, and any tokenizer.json of Hugging Face; each with the token that parts documents."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from trm_ray.data.format import TOKENIZER_NAME
from trm_ray.data.rows import DatasetError
from trm_ray.storage import as_path

BYTES = "bytes"
# What tokenizers call the token between documents; the first that one knows is taken.
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|bos|>", "</s>", "<eos>", "[SEP]")
_LEAST_TRAINED = 257  # the bytes and the separator
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer(Protocol):
    """Turn text into tokens.

    name: `bytes`, or a file's. separator: the token between documents. sha256: of all that decides what tokens mean.
    content: the file, None for bytes. token_bytes: (V,) how many bytes of text each token stands for.
    """

    name: str
    vocab_size: int
    separator: int
    sha256: str
    token_bytes: np.ndarray

    @property
    def content(self) -> bytes | None: ...  # noqa: D102

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of texts in UTF-8, one after the other, and how many (N,) each has."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Return the text of tokens; separators are none of it."""


class BytesTokenizer:
    """Take bytes for tokens 0 to 255; 256 parts documents."""

    name, vocab_size, separator = BYTES, 257, 256
    sha256 = hashlib.sha256(b"bytes, 256").hexdigest()
    token_bytes = np.append(np.ones(256, np.int64), 0)
    content = None

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        return np.frombuffer(b"".join(texts), np.uint8), np.array([len(text) for text in texts], np.int64)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer`; what is no character becomes U+FFFD."""
        known = np.asarray(tokens, np.int64)
        return known[known < self.separator].astype(np.uint8).tobytes().decode(errors="replace")


class FileTokenizer:
    """Use a tokenizer.json.

    Args:
        content: the file.
        name: what to call it.
        separator: the token between documents; None = the first of `SEPARATORS` that it has, else one is added.

    Raises:
        DatasetError: it is no tokenizer, lacks the separator, or the package that reads it is missing.
    """

    def __init__(self, content: bytes, name: str = "tokenizer.json", separator: str | None = None):
        self.name, self.content = name, content
        self._inner = _loaded(content, name)
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DatasetError(f"{name} has no tokens; name another tokenizer")
        known = [separator] if separator else [token for token in SEPARATORS if token in vocabulary]
        if separator and separator not in vocabulary:
            raise DatasetError(
                f"--separator {separator} is no token of {name}; leave it out and one is chosen or added"
            )
        highest = max(vocabulary.values())
        self.separator = vocabulary[known[0]] if known else highest + 1
        self.vocab_size = max(highest, self.separator) + 1
        self.sha256 = hashlib.sha256(content + str(self.separator).encode()).hexdigest()
        special = {number for number, token in self._inner.get_added_tokens_decoder().items() if token.special}
        special.add(self.separator)
        self.token_bytes = np.zeros(self.vocab_size, np.int64)
        measure = len if _spells_bytes(content) else _spelt_bytes
        for token, number in vocabulary.items():
            self.token_bytes[number] = 0 if number in special else measure(token)

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """See `Tokenizer`."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a process a core is there already
        found = self._inner.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        lengths = np.array([len(one) for one in found], np.int64)
        return np.concatenate([np.zeros(0, np.int32), *(np.array(one.ids, np.int32) for one in found)]), lengths

    def token(self, number: int) -> str | None:
        """Name a token; None if there is none of that number."""
        named: str | None = self._inner.id_to_token(number)
        return named

    def unknown(self, text: str) -> str:
        """Return the first part of a text that it would leave out or call unknown; empty if there is none."""
        model: Mapping[str, Any] = json.loads(self.content)["model"]
        unk = model.get("unk_id") if model.get("unk_token") is None else self._inner.token_to_id(model["unk_token"])
        if unk is not None:
            found = self._inner.encode(text, add_special_tokens=False)
            places = (at for number, at in zip(found.ids, found.offsets, strict=True) if number == unk)
            return next((text[first:last] for first, last in places), "")
        # It leaves out what it does not know, one by one: no offsets tell, but a character alone has no tokens then.
        characters = [character for character in dict.fromkeys(text) if not character.isspace()]
        found = self._inner.encode_batch(characters, add_special_tokens=False)
        return next((c for c, one in zip(characters, found, strict=True) if not "".join(one.tokens).strip("▁")), "")

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer`."""
        inner = [int(token) for token in tokens if token != self.separator]
        return str(self._inner.decode(inner, skip_special_tokens=False))


def open_tokenizer(named: str, separator: str | None = None) -> Tokenizer:
    """Open a tokenizer: `bytes`, or the path of a tokenizer.json.

    Raises:
        DatasetError: it cannot be read, or see `FileTokenizer`.
    """
    if named == BYTES:
        if separator:
            raise DatasetError(f"--separator {separator} is for a tokenizer.json; bytes are parted by token 256")
        return BytesTokenizer()
    path = as_path(named)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"--tokenizer {named} cannot be read: {error.strerror}; use bytes, or FILE.json") from error
    return _file_tokenizer(content, path.name, separator)


def tokenizer_of(content: bytes | None, separator: int | None, vocab_size: int, source: str) -> Tokenizer:
    """Open the tokenizer of a model: its tokenizer.json, None = bytes.

    Args:
        separator, vocab_size: the model's, which must be those of the tokenizer.
        source: what to call the model.

    Raises:
        DatasetError: they are not, or see `FileTokenizer`.
    """
    if content is None and vocab_size != BytesTokenizer.vocab_size:
        way_out = f"put the {TOKENIZER_NAME} of its dataset beside its weights"
        raise DatasetError(
            f"{source} has {vocab_size} tokens and no {TOKENIZER_NAME} that says what they mean; {way_out}"
        )
    tokenizer = BytesTokenizer() if content is None else FileTokenizer(content)
    if isinstance(tokenizer, FileTokenizer) and separator is not None and separator != tokenizer.separator:
        tokenizer = FileTokenizer(content or b"", separator=tokenizer.token(separator))
    if (tokenizer.separator, tokenizer.vocab_size) != (separator, vocab_size):
        found = f"{tokenizer.vocab_size} tokens and separator {tokenizer.separator}"
        rule = f"the model has {vocab_size} and {separator}; it needs the one that it was trained with"
        raise DatasetError(f"the tokenizer of {source} has {found}, {rule}")
    return tokenizer


@functools.lru_cache(2)  # a worker's tasks share one
def _file_tokenizer(content: bytes, name: str, separator: str | None) -> FileTokenizer:
    return FileTokenizer(content, name, separator)


def train_tokenizer(texts: Iterable[bytes], vocab_size: int) -> bytes:
    """Make a tokenizer.json of byte pairs from a sample; no text is unknown to it.

    Raises:
        DatasetError: `vocab_size` leaves no room for pairs, or is more than the sample gives.
    """
    if vocab_size <= _LEAST_TRAINED:
        raise DatasetError(
            f"--train-tokenizer {vocab_size} must be above {_LEAST_TRAINED}: bytes, the separator, pairs"
        )
    library = _library()
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATORS[0]], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator((text.decode() for text in texts), trainer)
    if (found := inner.get_vocab_size()) < vocab_size:
        raise DatasetError(
            f"--train-tokenizer {vocab_size} is more than this text gives, which is {found}; ask for fewer"
        )
    return str(inner.to_str()).encode()


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise DatasetError("tokenizer.json needs a package: pip install 'trm-ray[text]', or use bytes") from error
    return tokenizers


def _loaded(content: bytes, name: str) -> Any:
    """Load a tokenizer that takes text as it is: whole, and what looks like a special token in it for text."""
    library = _library()
    try:
        inner = library.Tokenizer.from_buffer(content)
    except Exception as error:  # the library has no kind of its own
        words = str(error).splitlines()[0][:200]
        raise DatasetError(f"{name} is no tokenizer.json of Hugging Face: {words}") from error
    inner.no_padding()
    inner.no_truncation()
    inner.encode_special_tokens = True
    return inner


def _spells_bytes(content: bytes) -> bool:
    """Tell whether each character of a token's name stands for a byte, as GPT-2 has it."""
    parts: Mapping[str, Any] = json.loads(content)
    kinds = [part for key in ("pre_tokenizer", "decoder") for part in _steps(parts.get(key))]
    return any(part.get("type") == "ByteLevel" for part in kinds)


def _steps(part: Any) -> list[Any]:
    """List the steps of a part of a tokenizer, which may be a sequence of them."""
    inner = (part or {}).get("pretokenizers") or (part or {}).get("decoders")
    return inner if inner else [part or {}]


def _spelt_bytes(token: str) -> int:
    """Count the bytes of a token that is spelt in characters: `▁` is a blank, `<0x0A>` a byte, `##` no text."""
    if _BYTE_TOKEN.fullmatch(token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode(errors="replace"))


def tokenizer_file(folder: Path, content: bytes) -> Path:
    """Keep a tokenizer in a folder, for tasks to open."""
    path = folder / f".tokenizer-{hashlib.sha256(content).hexdigest()[:16]}.json"
    if not path.is_file():
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
    return path
