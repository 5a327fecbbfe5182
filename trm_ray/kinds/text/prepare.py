"""`trm-ray prepare text`: files to a dataset of rows, in memory that does not grow with them.

Two rounds of tasks, which need not know of each other and may run anywhere: one a file, which turns it into tokens, and
one a part of the dataset, which cuts rows out of these. Between them it is decided which documents are taken and in
which split, by what they hold. So the result is the same for any number of workers; and since what a task makes appears
under its name when it is whole, a command that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from trm_ray.config.errors import printable
from trm_ray.data.format import (
    FORMAT_VERSION,
    IDENTIFIERS_NAME,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    DatasetInfo,
    SplitInfo,
    TextInfo,
)
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import progress, tell
from trm_ray.data.rows import IGNORED_LABEL, PAD_ID, DatasetError
from trm_ray.data.write import finish_dataset, lasting_place, owned_target, owns_output
from trm_ray.kinds.generation import check_least
from trm_ray.kinds.text.encode import Encoded, Shard, encode_shard
from trm_ray.kinds.text.pack import (
    Packing,
    Part,
    count_rows,
    first_of_each,
    held_out,
    in_order,
    part_bounds,
    places,
)
from trm_ray.kinds.text.read import LEAST_DOCUMENT_BYTES, is_tokens, read_documents, text_files
from trm_ray.kinds.text.tokenizer import BYTES, Tokenizer, open_tokenizer, tokenizer_file, train_tokenizer
from trm_ray.kinds.text.yardsticks import Xz, told_yardsticks, unigram_bits_per_byte
from trm_ray.storage import sha256

Format = Literal["text", "prompt"]
_Item = TypeVar("_Item")
# Calls a function with each of some items, in any processes and any order, and yields something when one is done.
RunAll = Callable[[Callable[[_Item], None], Sequence[_Item]], Iterator[Any]]

DOCUMENT_BYTES = 1_000_000
TEST_SHARE = 0.01
_SAMPLE_BYTES = 1 << 26  # what a tokenizer is trained on: it takes some ten times as much memory


@owns_output
def prepare_text(
    output: str | Path,
    *,
    inputs: Sequence[Path],
    tokenizer: str | None = None,
    separator: str | None = None,
    train_vocab: int | None = None,
    seq_len: int = 128,
    test_share: float = TEST_SHARE,
    document_bytes: int = DOCUMENT_BYTES,
    format: Format = "text",
    overwrite: bool = False,
    run_all: RunAll[Any] = map,
) -> DatasetInfo:
    """Write a dataset of the rows of files.

    Documents that hold the same are taken once. The same files and arguments give the same bytes.

    Args:
        inputs: files, and folders of them; see `read.text_files`.
        tokenizer: `bytes` (if None), or a tokenizer.json; files of tokens must be told which made them.
        separator: the token of it between documents; None = it is known or added.
        train_vocab: make a tokenizer of so many tokens from a sample of the files instead.
        test_share: of the documents, by a hash of what they hold.
        document_bytes: longer documents are cut.
        format: `prompt` = documents of a prompt and an answer, a row each, with labels for the answer alone.
        run_all: who runs the tasks.

    Raises:
        DatasetError: a file is bad, or there is too little.
    """
    check_least(("seq_len", seq_len, 1), ("document_bytes", document_bytes, LEAST_DOCUMENT_BYTES))
    if not 0 < test_share < 1:
        raise DatasetError(
            f"test_share={test_share:g} must be above 0 and below 1; it is the share of held-out documents"
        )
    if format not in ("text", "prompt"):
        raise DatasetError(f"format={format} must be text or prompt")
    files = text_files(inputs)
    _check_tokenizer_named(files, tokenizer, train_vocab, format)
    with owned_target(output, overwrite=overwrite) as folder, lasting_place(folder) as work:
        made = None if train_vocab is None else _trained(work, files, train_vocab, test_share, document_bytes)
        opened = open_tokenizer(str(made) if made else tokenizer or BYTES, separator)
        kept = str(tokenizer_file(work, opened.content)) if opened.content is not None else BYTES
        shards = [
            Shard(str(path), path.name, kept, separator, opened.sha256, document_bytes, format == "prompt")
            for path in files
        ]
        _encode_all(work, shards, run_all)
        encoded = [shard.encoded(work) for shard in shards]
        arguments = {"test_share": test_share, "document_bytes": document_bytes, "format": format}
        key = _digest([[shard.key for shard in shards], seq_len, arguments])
        info, parts = _planned(work / f"packed-{key}", encoded, opened, seq_len, test_share, format == "prompt")
        info.arguments.update(arguments)
        assert info.text is not None
        xz = Xz(parts[-1].packing, work / f"packed-{key}-xz.json", kept, separator)
        wanted: list[Part | Xz] = [*parts] if format == "prompt" else [xz, *parts]  # which takes longest, first
        missing = [one for one in wanted if not one.path.is_file()]
        with progress("parts written", len(missing)) as advance:
            for _ in run_all(methodcaller("write"), missing):
                advance(1)
        if format != "prompt":
            info = replace(info, text=_measured(info.text, parts, xz, opened))
        _describe_files(info, parts)
        finish_dataset(work / f"packed-{key}", folder, info, side_files(opened))
    assert info.text is not None
    tell(_told(output, info, info.text))
    return info


def side_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Make the files that lie beside the rows of a text."""
    files = {
        IDENTIFIERS_NAME: PuzzleIdentifiers.blank().to_bytes(),
        TOKEN_BYTES_NAME: (json.dumps(tokenizer.token_bytes.tolist()) + "\n").encode(),
    }
    return files if tokenizer.content is None else {**files, TOKENIZER_NAME: tokenizer.content}


def _check_tokenizer_named(
    files: Sequence[Path], tokenizer: str | None, train_vocab: int | None, format: Format
) -> None:
    if tokenizer is not None and train_vocab is not None:
        raise DatasetError(f"--train-tokenizer {train_vocab} makes a tokenizer; leave --tokenizer {tokenizer} out")
    of_tokens = next(filter(is_tokens, files), None)
    if of_tokens is not None and (tokenizer is None or format == "prompt"):
        what = "holds tokens, not text; name the tokenizer that made them: --tokenizer FILE.json"
        raise DatasetError(f"{of_tokens} {what if tokenizer is None else 'holds tokens, and no prompts'}")


def _trained(work: Path, files: Sequence[Path], vocab_size: int, test_share: float, document_bytes: int) -> Path:
    """Train a tokenizer on the beginnings of all files, without what is to be held out."""
    key = _digest([[(str(path), path.stat().st_size) for path in files], vocab_size, test_share, document_bytes])
    path = work / f".trained-{key}.json"
    if not path.is_file():
        tell(f"Training a tokenizer of {vocab_size:,} tokens")
        content = train_tokenizer(_sample(files, test_share, document_bytes), vocab_size)
        tokenizer_file(work, content).replace(path)
    return path


def _sample(files: Sequence[Path], test_share: float, document_bytes: int) -> Iterator[bytes]:
    for path in files:
        left = _SAMPLE_BYTES // len(files)
        for document in read_documents(path, document_bytes):
            high = int.from_bytes(hashlib.blake2b(document.text, digest_size=16).digest()[:8], "little")
            if high >= test_share * 2**64:
                yield document.text
                left -= len(document.text)
            if left <= 0:
                break


def _encode_all(work: Path, shards: Sequence[Shard], run_all: RunAll[Any]) -> None:
    missing = [shard for shard in shards if not shard.encoded(work).is_there]
    if len(missing) < len(shards):
        tell(f"Going on: {len(shards) - len(missing):,} of {len(shards):,} files are read")
    with progress("files read", len(missing)) as advance:
        for _ in run_all(partial(encode_shard, work), missing):
            advance(1)


def _planned(
    folder: Path, encoded: Sequence[Encoded], tokenizer: Tokenizer, seq_len: int, share: float, prompts: bool
) -> tuple[DatasetInfo, list[Part]]:
    """Decide which documents go where, and list the files of rows that come of it in a folder."""
    documents = places([one.documents() for one in encoded])
    if not len(documents):
        raise DatasetError("the input holds no text: all its documents are empty; name other files")
    taken = first_of_each(documents)
    is_test = held_out(documents, taken, share)
    told = [one.told() for one in encoded]
    longest = int(documents["tokens"][taken].max())
    if prompts and longest > seq_len:
        raise DatasetError(f"seq_len={seq_len} must be at least {longest}, the tokens of the longest prompt and answer")
    counts: dict[str, Any] = {"documents": {}, "tokens": {}, "bytes": {}}
    splits, parts = {}, []
    for name, chosen in (("train", taken & ~is_test), ("test", is_test)):
        if not chosen.any():
            raise DatasetError(_told_empty(int(taken.sum()), name, share))
        plan = folder.with_name(f"{folder.name}-{name}.npy")
        folder.joinpath(name).mkdir(parents=True, exist_ok=True)
        there = in_order(documents[chosen])
        np.save(plan, there)
        num_rows = count_rows(there, seq_len, prompts)
        if num_rows >= 2**31:
            raise DatasetError(
                f"the {name} split has {num_rows:,} rows, and rows are numbered below 2^31; use a larger seq_len"
            )
        folders = tuple(one.folder for one in encoded)
        packing = Packing(folders, plan, seq_len, tokenizer.vocab_size, tokenizer.separator, prompts)
        parts += [
            Part(packing, folder / name / f"part-{number:05d}.parquet", first, last)
            for number, (first, last) in enumerate(part_bounds(num_rows, seq_len))
        ]
        splits[name] = SplitInfo(num_rows, num_rows, 1.0, {})
        counts["documents"][name] = len(there)
        counts["tokens"][name] = int(there["tokens"].sum(dtype=np.int64))
        counts["bytes"][name] = int(there["bytes"].sum(dtype=np.int64))
    text = TextInfo(
        separator=tokenizer.separator,
        tokenizer=tokenizer.name if tokenizer.content is None else TOKENIZER_NAME,
        tokenizer_sha256=tokenizer.sha256,
        packing="prompt" if prompts else "running",
        left_out={
            "empty": sum(int(str(one["empty"])) for one in told),
            "repeated": len(documents) - int(taken.sum()),
        },
        sources=[{"name": str(one["name"]), "sha256": str(one["sha256"])} for one in told],
        documents=counts["documents"],
        tokens=counts["tokens"],
        bytes=counts["bytes"],
    )
    return described(splits, text, seq_len, tokenizer.vocab_size), parts


def _told_empty(num_documents: int, split: str, share: float) -> str:
    if num_documents == 1:
        way_out = "give more, or cut it by a smaller --document-bytes"
        return f"the input is a single document, which does not make two splits; {way_out}"
    return f"test_share={share:g} leaves none of {num_documents} documents for the {split} split; use a smaller one"


def described(splits: dict[str, SplitInfo], text: TextInfo, seq_len: int, vocab_size: int) -> DatasetInfo:
    """Describe a dataset of text whose files are still to be named."""
    return DatasetInfo(
        format_version=FORMAT_VERSION,
        seq_len=seq_len,
        vocab_size=vocab_size,
        pad_id=PAD_ID,
        ignored_label=IGNORED_LABEL,
        num_puzzle_identifiers=1,
        splits=splits,
        generator="files",
        arguments={},
        seed=None,
        symmetry=None,
        files={},
        kind="text",
        text=text,
    )


def _measured(text: TextInfo, parts: Sequence[Part], xz: Xz, tokenizer: Tokenizer) -> TextInfo:
    """Add what models of running text are measured against."""
    counts = {name: np.zeros(tokenizer.vocab_size, np.int64) for name in text.tokens}
    for part in parts:
        counts[part.path.parent.name] += np.lib.format.open_memmap(part.counts, mode="r")
    unigram = unigram_bits_per_byte(counts["train"], counts["test"], tokenizer.token_bytes)
    return replace(text, unigram_bits_per_byte=unigram, xz_bits_per_byte=xz.read())


def _describe_files(info: DatasetInfo, parts: Iterable[Part]) -> None:
    for part in parts:
        name = part.path.parent.name
        info.splits[name].files[f"{name}/{part.path.name}"] = sha256(part.path)


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def _told(output: str | Path, info: DatasetInfo, text: TextInfo) -> str:
    """Say what was written, and what was left out."""
    splits = ", ".join(
        f"{split.rows:,} {name} rows ({text.documents[name]:,} documents, {text.bytes[name]:,} bytes)"
        for name, split in info.splits.items()
    )
    left_out = ", ".join(f"{number:,} {why}" for why, number in text.left_out.items() if number)
    return printable(
        f"Wrote {output}: {splits}" + (f"; documents left out: {left_out}" if left_out else "") + told_yardsticks(text)
    )
