"""A file's documents as tokens: what one task makes, by itself, of one input file.

What comes of a file lies in a folder that is named by all that decides it and appears when it is whole, so whoever
finds it need not make it again, and nobody need say which are there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from trm_ray.kinds.text.read import Document, is_tokens, read_documents, read_token_documents
from trm_ray.kinds.text.tokenizer import Tokenizer, open_tokenizer
from trm_ray.storage import as_path, sha256, version

# Of each document: what names its content (16 bytes), its tokens with the separator before them, those of the prompt
# among them, and its bytes.
DOCUMENT = np.dtype([("high", "<u8"), ("low", "<u8"), ("tokens", "<u4"), ("prompt", "<u4"), ("bytes", "<u4")])
_BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Shard:
    """An input file, and how it is to be read.

    Args:
        path: of the file.
        name: what dataset.json calls it.
        tokenizer: as `open_tokenizer` takes it, and what its token means, a hash.
        document_bytes: of the longest document.
        prompts: whether it holds prompts and answers.
    """

    path: str
    name: str
    tokenizer: str
    separator: str | None
    tokenizer_sha256: str
    document_bytes: int
    prompts: bool

    @cached_property
    def key(self) -> str:
        """Name what comes of the file, as it is now."""
        told = [self.path, version(as_path(self.path)), self.tokenizer_sha256, self.document_bytes, self.prompts]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def encoded(self, folder: Path) -> Encoded:
        """Find what `encode_shard` has made in a folder."""
        return Encoded(folder / self.key)


@dataclass(frozen=True)
class Encoded:
    """The tokens of a file, in a folder."""

    folder: Path

    @property
    def is_there(self) -> bool:
        """Tell whether it is finished."""
        return self.folder.is_dir()

    def documents(self) -> np.ndarray:
        """Read what is known of each document: (D,) of `DOCUMENT`."""
        return np.lib.format.open_memmap(self.folder / "documents.npy", mode="r")

    def told(self) -> dict[str, object]:
        """Read what dataset.json says of the file."""
        return dict(json.loads((self.folder / "entry.json").read_text(encoding="utf-8")))


def token_type(vocab_size: int) -> np.dtype:
    """Choose the type that tokens are kept in."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def encode_shard(folder: Path, shard: Shard) -> None:
    """Make the tokens of a file in a folder, unless they are there.

    Raises:
        DatasetError: what is wrong with the file.
    """
    done = shard.encoded(folder)
    if done.is_there:
        return
    partial = Path(tempfile.mkdtemp(prefix=f".{shard.key}-", dir=folder))
    try:
        counts, parts, empty = _write_tokens(shard, partial), [np.zeros(0, DOCUMENT)], 0
        for documents, num_empty in counts:
            parts.append(documents)
            empty += num_empty
        np.save(partial / "documents.npy", np.concatenate(parts))
        entry = {"name": shard.name, "sha256": sha256(as_path(shard.path)), "empty": empty}
        (partial / "entry.json").write_text(json.dumps(entry), encoding="utf-8")
        if not done.is_there:  # another attempt at the same may have been faster
            partial.rename(done.folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokens(shard: Shard, partial: Path) -> Iterator[tuple[np.ndarray, int]]:
    """Write tokens.bin; yield what is known of some documents, and how many among them were empty."""
    path, tokenizer = as_path(shard.path), open_tokenizer(shard.tokenizer, shard.separator)
    with (partial / "tokens.bin").open("wb") as file:
        if is_tokens(path):
            for tokens in read_token_documents(path, shard.document_bytes, tokenizer):
                yield _write_token_document(file, tokens, tokenizer), int(len(tokens) == 0)
            return
        documents = read_documents(path, shard.document_bytes, prompts=shard.prompts)
        for some in _batched(documents):
            filled = [document for document in some if document.text]
            yield _write_documents(file, filled, tokenizer), len(some) - len(filled)


def _batched(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Gather documents of about as many bytes as are worth a call of the tokenizer."""
    some: list[Document] = []
    size = 0
    for document in documents:
        some.append(document)
        size += len(document.text) + 64
        if size >= _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _write_documents(file: IO[bytes], documents: list[Document], tokenizer: Tokenizer) -> np.ndarray:
    """Write documents, each after a separator."""
    tokens, lengths, prompts = encode_documents(documents, tokenizer)
    file.write(tokens.tobytes())
    told = np.zeros(len(documents), DOCUMENT)
    told["tokens"], told["prompt"] = lengths, prompts
    told["bytes"] = [len(document.text) for document in documents]
    names = b"".join(_name(document.prompt or document.text) for document in documents)
    told["high"], told["low"] = np.frombuffer(names, "<u8").reshape(-1, 2).T
    return told


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the tokens of documents, each after a separator, how many (D,) each has, and (D,) those of its prompt."""
    tokens, lengths = tokenizer.encode([document.text for document in documents])
    prompts, prompt_lengths = np.zeros(0, tokens.dtype), np.zeros(len(documents), np.int64)
    if any(document.prompt for document in documents):
        prompts, prompt_lengths = tokenizer.encode([document.prompt for document in documents])
    separator = np.full(len(documents), tokenizer.separator)
    sizes = np.column_stack([np.ones_like(lengths), prompt_lengths, lengths])
    joined = np.empty(int(sizes.sum()), token_type(tokenizer.vocab_size))
    kinds = np.repeat(np.tile(np.arange(3, dtype=np.int8), len(documents)), sizes.ravel())
    for kind, part in enumerate((separator, prompts, tokens)):
        joined[kinds == kind] = part
    return joined, sizes.sum(1), prompt_lengths


def _write_token_document(file: IO[bytes], tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    if len(tokens) == 0:
        return np.zeros(0, DOCUMENT)
    kept = np.append(tokenizer.separator, tokens).astype(token_type(tokenizer.vocab_size))
    file.write(kept.tobytes())
    high, low = np.frombuffer(_name(kept[1:].tobytes()), "<u8")
    return np.array([(high, low, len(kept), 0, int(tokenizer.token_bytes[tokens].sum()))], DOCUMENT)


def _name(content: bytes) -> bytes:
    """Name a content by 16 bytes of a hash."""
    return hashlib.blake2b(content, digest_size=16).digest()
