"""Small datasets of text that need no files: sums, words backwards, and the documentation of Python.

Sums and words are prompts with answers, the bridge from puzzles to text: a row each, all different, the test ones
first, so that a larger training split leaves them as they are. The documentation is running text.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from trm_ray.data.counters import below, counter_draws
from trm_ray.data.format import TOKEN_BYTES_NAME, DatasetInfo, TextInfo
from trm_ray.data.progress import tell
from trm_ray.data.rows import DatasetError, Rows
from trm_ray.data.write import owns_output
from trm_ray.kinds.generation import check_least, write_boards
from trm_ray.kinds.text.encode import encode_documents
from trm_ray.kinds.text.pack import count_labels, prompt_rows, running_rows
from trm_ray.kinds.text.prepare import side_files
from trm_ray.kinds.text.read import Document
from trm_ray.kinds.text.tokenizer import BytesTokenizer
from trm_ray.kinds.text.yardsticks import told_yardsticks, unigram_bits_per_byte, xz_bits_per_byte

Source = Literal["addition", "reverse", "stdlib"]

_DRAWN_AT_ONCE = 4096
_LARGEST = 18  # digits of a 64-bit number
_LEAST_NEW = 0.01  # of what is drawn; below it there are hardly any more
# Parts of the library that hold no documentation, or that not every Python has.
_WITHOUT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "pydoc_data"}
_TOKENIZER = BytesTokenizer()


@owns_output
def generate_text(
    output: str | Path,
    *,
    source: Source,
    train: int,
    test: int,
    seed: int = 0,
    seq_len: int = 128,
    size: int = 3,
    overwrite: bool = False,
) -> DatasetInfo:
    """Write a dataset of text that is made here, as bytes.

    Args:
        source: `addition` or `reverse` (prompts with answers), or `stdlib`, the documentation of this Python's library,
            which differs between its versions.
        train: rows to train on.
        test: held-out rows.
        seed: same seed, same sums and words; the documentation has none.
        size: most digits of a number, most letters of a word.

    Raises:
        ValueError: there are not so many rows, or they are longer than `seq_len`.
    """
    check_least(("train", train, 1), ("test", test, 1), ("seq_len", seq_len, 1), ("size", size, 1))
    if source not in (sources := (*_SYNTHETIC, "stdlib")):
        raise DatasetError(f"source={source} must be one of {', '.join(sources)}")
    if source == "stdlib":
        found, rows = _running(_documentation(), train, test, seq_len)
    else:
        found, rows = _prompted(_SYNTHETIC[source], train, test, seed, seq_len, size)
    arguments = {"source": source, "train": train, "test": test, "seq_len": seq_len, "size": size}
    return write_boards(
        output,
        rows,
        vocab_size=_TOKENIZER.vocab_size,
        generator="text",
        arguments=arguments,
        seed=seed,
        symmetry=None,
        kind="text",
        side_files={TOKEN_BYTES_NAME: side_files(_TOKENIZER)[TOKEN_BYTES_NAME]},
        text=_described(source, found, rows),
        overwrite=overwrite,
    )


# ---- prompts ---------------------------------------------------------------------------------------------


def _sums(seed: int, numbers: np.ndarray, size: int) -> Iterator[Document]:
    """Make sums of two numbers, of each number of digits as often."""
    draws = counter_draws(seed, 0, numbers, 4)
    limits = 10 ** (1 + below(draws[:, :2], np.full(2, size)))
    for one, other in _below(draws[:, 2:], limits).tolist():
        yield Document(str(one + other).encode(), f"{one}+{other}=".encode())


def _words(seed: int, numbers: np.ndarray, size: int) -> Iterator[Document]:
    """Make words of letters, of each length as often."""
    draws = counter_draws(seed, 0, numbers, 1 + size)
    letters = (below(draws[:, 1:], np.full(size, 26)) + ord("a")).astype(np.uint8)
    for word, length in zip(letters, (1 + below(draws[:, 0], np.full(1, size))).tolist(), strict=True):
        spelt = word[:length].tobytes()
        yield Document(spelt[::-1], spelt + b"=")


def _below(draws: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Turn 64-bit draws into numbers from 0 to `limits` − 1, whatever these are: `counters.below` takes small ones."""
    return (draws % limits.astype(np.uint64)).astype(np.int64)


_SYNTHETIC: dict[str, Callable[[int, np.ndarray, int], Iterator[Document]]] = {"addition": _sums, "reverse": _words}


def _prompted(
    make: Callable[[int, np.ndarray, int], Iterator[Document]],
    train: int,
    test: int,
    seed: int,
    seq_len: int,
    size: int,
) -> tuple[dict[str, list[Document]], dict[str, Rows]]:
    if make is _sums and size > _LARGEST:
        raise DatasetError(f"size={size} must be at most {_LARGEST}, the digits of a number")
    drawn: dict[bytes, Document] = {}
    for first in range(0, 2**62, _DRAWN_AT_ONCE):
        before = len(drawn)
        for document in make(seed, np.arange(first, first + _DRAWN_AT_ONCE), size):
            drawn.setdefault(document.prompt, document)
        if len(drawn) >= train + test:
            break
        if len(drawn) - before < _LEAST_NEW * _DRAWN_AT_ONCE:
            raise DatasetError(
                f"train={train} test={test}: only {len(drawn):,} prompts of size={size} were found that differ; "
                "ask for fewer, or use a larger size"
            )
    chosen = [*drawn.values()]
    found = {"train": chosen[test : test + train], "test": chosen[:test]}
    longest = max(len(document.prompt + document.text) for document in chosen[: test + train]) + 1
    if longest > seq_len:
        raise DatasetError(f"seq_len={seq_len} must be at least {longest}, the tokens of the longest prompt and answer")
    return found, {name: _prompt_rows(documents, seq_len) for name, documents in found.items()}


def _prompt_rows(documents: list[Document], seq_len: int) -> Rows:
    tokens, lengths, prompts = encode_documents(documents, _TOKENIZER)
    parts = zip(np.split(tokens, np.cumsum(lengths)[:-1]), prompts.tolist(), strict=True)
    return Rows.of_single_puzzles(*prompt_rows(parts, len(documents), seq_len, _TOKENIZER.separator))


# ---- running text ----------------------------------------------------------------------------------------


def _running(
    documents: list[Document], train: int, test: int, seq_len: int
) -> tuple[dict[str, list[Document]], dict[str, Rows]]:
    """Deal whole documents out by a hash of what they hold, the test split first, until splits have the rows."""
    left = sorted({document.text: document for document in documents}.values(), key=_hash)
    found: dict[str, list[Document]] = {"train": [], "test": []}
    rows = {}
    for name, wanted in (("test", test), ("train", train)):
        size = 0
        while left and size < wanted * seq_len:
            found[name].append(left.pop())
            size += len(found[name][-1].text) + 1
        if size < wanted * seq_len:
            whole = sum(len(document.text) + 1 for document in documents) // seq_len
            raise DatasetError(
                f"train={train} test={test} are more than the {whole:,} rows that there are; ask for fewer"
            )
        tokens, _, _ = encode_documents(found[name], _TOKENIZER)
        stream = np.append(tokens, _TOKENIZER.separator)[: wanted * seq_len + 1].astype(np.int32)
        rows[name] = Rows.of_single_puzzles(*running_rows(stream, len(stream) - 1, seq_len))
    return found, {"train": rows["train"], "test": rows["test"]}


def _hash(document: Document) -> bytes:
    return hashlib.sha256(document.text).digest()


def _documentation() -> list[Document]:
    """Read the documentation strings of each module of the standard library, and the topics of `help()`."""
    from pydoc_data.topics import topics  # 0.5 MB

    root = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(root.rglob("*.py")) if not _WITHOUT & set(path.relative_to(root).parts))
    texts = [*topics.values(), *("\n\n".join(_strings(path)) for path in files)]
    return [Document(f"{text.strip()}\n".encode(errors="replace")) for text in texts if text.strip()]


def _strings(path: Path) -> list[str]:
    """List the documentation strings of a module, in the order of their depth."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # of another Python's, as some distributions leave them
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def _described(source: str, found: dict[str, list[Document]], rows: dict[str, Rows]) -> TextInfo:
    """Describe what was made; tell the hash of what was found in this Python, which is another in another one."""
    made = [hashlib.sha256(document.prompt + document.text).digest() for part in found.values() for document in part]
    digest = hashlib.sha256(b"".join(made)).hexdigest()
    name = f"Python {platform.python_version()}" if source == "stdlib" else source
    predicted = {split: part.labels[part.labels >= 0] for split, part in rows.items()}
    yardsticks = _yardsticks(predicted) if source == "stdlib" else {}
    text = TextInfo(
        separator=_TOKENIZER.separator,
        tokenizer=_TOKENIZER.name,
        tokenizer_sha256=_TOKENIZER.sha256,
        packing="running" if source == "stdlib" else "prompt",
        documents={name: len(part) for name, part in found.items()},
        tokens={name: len(labels) for name, labels in predicted.items()},
        bytes={name: int(_TOKENIZER.token_bytes[labels].sum()) for name, labels in predicted.items()},
        left_out={},
        sources=[{"name": name, "sha256": digest}],
        **yardsticks,
    )
    if source == "stdlib":
        what = "other versions hold other text"
        tell(f"The documentation of {name}, SHA-256 {digest[:16]}…: {what}{told_yardsticks(text)}")
    return text


def _yardsticks(predicted: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Measure what models of running text are measured against."""
    train, test = (count_labels(predicted[name], _TOKENIZER.vocab_size) for name in ("train", "test"))
    ends = np.flatnonzero(predicted["test"] == _TOKENIZER.separator)
    documents = (_TOKENIZER.decode(part).encode() for part in np.split(predicted["test"], ends))
    return {
        "unigram_bits_per_byte": unigram_bits_per_byte(train, test, _TOKENIZER.token_bytes),
        "xz_bits_per_byte": xz_bits_per_byte(filter(None, documents)),
    }
