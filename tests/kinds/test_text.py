"""Text as rows: every token is predicted once, whoever makes the rows and however often he is stopped."""

import gzip
import hashlib
import json
import lzma
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from itertools import cycle, islice
from math import log2
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.data.check import open_datasets
from trm_ray.data.format import TOKEN_BYTES_NAME, DatasetInfo, read_split, read_token_bytes
from trm_ray.data.stored import StoredSplit
from trm_ray.data.stream import RowStream
from trm_ray.kinds.registry import check_kind, kind_named
from trm_ray.kinds.text import pack, read, yardsticks
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.kinds.text.read import read_documents, text_files
from trm_ray.kinds.text.tokenizer import BytesTokenizer, open_tokenizer, train_tokenizer
from trm_ray.kinds.text.yardsticks import xz_bits_per_byte

SEPARATOR, IGNORED = 256, -100
PLAY = "To be, or not to be, that is the question:\nWhether ’tis nobler in the mind to suffer\n"


def some_documents(count: int, seed: int = 0) -> list[str]:
    """Texts of random lengths, all different."""
    draw = random.Random(seed)
    return [f"{seed} {number} " + "".join(draw.choices("abc dé\n", k=draw.randrange(400))) for number in range(count)]


def json_lines(path: Path, texts: Iterable[str], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts))
    return path


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def documents_of(folder: Path, split: str) -> list[bytes]:
    """The documents that rows of bytes spell, with every rule of packing held up to them."""
    rows = read_split(folder, split)
    labels, inputs = rows.labels.reshape(-1), rows.inputs.reshape(-1)
    predicted = labels != IGNORED
    count = int(predicted.sum())
    assert predicted[:count].all(), "only the end is padded"
    assert len(labels) - count < rows.inputs.shape[1], "and less than a row of it"
    assert np.array_equal(inputs[1:count], labels[: count - 1]), "a label is the next input, across rows too"
    assert (inputs[0], labels[count - 1]) == (SEPARATOR, SEPARATOR)
    return [bytes(part[1:].tolist()) for part in np.split(inputs[:count], np.flatnonzero(inputs[:count] == 256))[1:]]


# ---- packing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [1, 7, 128, 5000])
def test_every_token_is_predicted_once(tmp_path: Path, seq_len: int):
    texts = some_documents(60)
    files = [json_lines(tmp_path / f"{n}.jsonl", part) for n, part in enumerate((texts[:5], texts[5:], texts[3:9]))]
    info = prepare_text(tmp_path / "made", inputs=files, seq_len=seq_len, test_share=0.3)
    found = {split: documents_of(tmp_path / "made", split) for split in ("train", "test")}
    assert sorted(found["train"] + found["test"]) == sorted(text.encode() for text in texts)
    assert info.text is not None
    assert info.text.left_out == {"empty": 0, "repeated": 6}
    for split, documents in found.items():
        assert info.text.documents[split] == len(documents)
        assert info.text.bytes[split] == sum(map(len, documents))
        predicted = (read_split(tmp_path / "made", split).labels != IGNORED).sum()
        assert info.text.tokens[split] == predicted == sum(len(document) + 1 for document in documents)
    in_order = [text.encode() for text in texts if text.encode() in found["train"]]
    assert found["train"] == in_order


def test_rows_are_those_worked_by_hand(tmp_path: Path):
    texts = ["abc", "de"]
    files = [json_lines(tmp_path / "a.jsonl", texts)]
    prepare_text(tmp_path / "made", inputs=files, seq_len=3, test_share=0.01)
    by_text = {split: read_split(tmp_path / "made", split) for split in ("train", "test")}
    two = next(rows for rows in by_text.values() if len(rows) == 2)  # a separator, abc, a separator
    assert two.inputs.tolist() == [[256, 97, 98], [99, 256, 256]]
    assert two.labels.tolist() == [[97, 98, 99], [256, IGNORED, IGNORED]]
    one = next(rows for rows in by_text.values() if len(rows) == 1)
    assert (one.inputs.tolist(), one.labels.tolist()) == ([[256, 100, 101]], [[100, 101, 256]])


def test_whether_a_document_is_held_out_is_decided_by_what_it_holds_alone(tmp_path: Path):
    texts = some_documents(200)
    prepare_text(tmp_path / "few", inputs=[json_lines(tmp_path / "a.jsonl", texts[:100])], test_share=0.2)
    prepare_text(tmp_path / "all", inputs=[json_lines(tmp_path / "b.jsonl", texts[::-1])], test_share=0.2)
    few, all_ = (set(documents_of(tmp_path / name, "test")) for name in ("few", "all"))
    assert few == all_ & {text.encode() for text in texts[:100]}
    assert 20 <= len(all_) <= 60


def test_one_document_at_least_is_held_out(tmp_path: Path):
    info = prepare_text(tmp_path / "made", inputs=[json_lines(tmp_path / "a.jsonl", "abc")], test_share=1e-9)
    assert info.text is not None
    assert info.text.documents == {"train": 2, "test": 1}


def test_only_the_answer_of_a_prompt_is_learnt_and_each_has_a_row(tmp_path: Path):
    lines = [json.dumps({"prompt": f"{a}+1=", "answer": str(a + 1)}) + "\n" for a in (9, 5, 9)]
    (tmp_path / "sums.jsonl").write_text("".join(lines))
    info = prepare_text(tmp_path / "made", inputs=[tmp_path / "sums.jsonl"], seq_len=8, format="prompt")
    rows = [read_split(tmp_path / "made", split) for split in ("train", "test")]
    nine = next(part for part in rows if part.inputs[0, 1] == ord("9"))
    assert nine.inputs.tolist() == [[256, *b"9+1=10", 256]]
    assert nine.labels.tolist() == [[IGNORED] * 4 + [*b"10", 256, IGNORED]]
    assert info.text is not None
    assert (info.text.packing, info.text.left_out["repeated"], info.text.total_bytes) == ("prompt", 1, 3)
    assert (info.text.unigram_bits_per_byte, info.text.xz_bits_per_byte) == (None, None)
    with pytest.raises(ValueError, match="seq_len=6 must be at least 7"):
        prepare_text(tmp_path / "short", inputs=[tmp_path / "sums.jsonl"], seq_len=6, format="prompt")


def test_a_dataset_of_text_passes_every_check_and_is_streamed_as_others_are(tmp_path: Path):
    prepare_text(tmp_path / "made", inputs=[json_lines(tmp_path / "a.jsonl", some_documents(150))], seq_len=16)
    info = open_datasets([tmp_path / "made"], require=["train", "test"], also=check_kind)
    assert (info.kind, info.vocab_size) == ("text", 257)
    assert read_token_bytes(tmp_path / "made", info).tolist() == [1] * 256 + [0]
    split = StoredSplit.of([tmp_path / "made"], "train", memory_gib=8 * 8 * 16 * 256 / 2**30)
    assert split.num_chunks > 2
    place = {"batch_size": 8, "seed": 3, "symmetry": None}
    alone = list(islice(RowStream(split, **place).batches(0), 30))
    halves = [islice(RowStream(split, **place, rank=rank, world_size=2).batches(11), 19) for rank in (0, 1)]
    for one, *parts in zip(alone[11:], *halves, strict=True):
        assert np.array_equal(one.inputs, np.concatenate([part.inputs for part in parts]))


def test_texts_of_different_tokenizers_are_not_used_together(tmp_path: Path):
    for name in ("one", "two"):
        prepare_text(tmp_path / name, inputs=[json_lines(tmp_path / "a.jsonl", some_documents(9))])
    told = json.loads((tmp_path / "two" / "dataset.json").read_text())
    told["text"]["tokenizer_sha256"] = "0" * 64
    (tmp_path / "two" / "dataset.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"must agree: text=tokens of bytes .0000"):
        open_datasets([tmp_path / "one", tmp_path / "two"])
    (tmp_path / "two" / TOKEN_BYTES_NAME).write_text("[1]")
    with pytest.raises(ValueError, match="must hold vocab_size=257 numbers"):
        read_token_bytes(tmp_path / "two", DatasetInfo.load(tmp_path / "two"))


def test_bytes_are_drawn_as_characters():
    assert "".join(kind_named("text", 4, 257).symbols(np.array([256, 104, 105, 10]))) == "¶hi·"


# ---- what models are measured against ---------------------------------------------------------------------


def test_how_often_tokens_are_in_the_training_split_is_what_they_cost_in_the_test_split(tmp_path: Path):
    info = prepare_text(tmp_path / "made", inputs=[json_lines(tmp_path / "a.jsonl", ["abc", "de"])], seq_len=3)
    # Of 257 tokens, to each of which one is added, none of a test document's letters was seen, and its end was once.
    by_train = {"abc": (2 * log2(4 + 257) + log2((4 + 257) / 2)) / 2, "de": (3 * log2(3 + 257) + log2(260 / 2)) / 3}
    trained = documents_of(tmp_path / "made", "train")[0].decode()
    assert info.text is not None
    assert info.text.unigram_bits_per_byte == pytest.approx(by_train[trained], abs=1e-6)


def test_what_xz_makes_of_the_test_split_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = [text for text in some_documents(60) if text]
    info = prepare_text(tmp_path / "made", inputs=[json_lines(tmp_path / "a.jsonl", texts)], seq_len=16, test_share=0.5)
    documents = documents_of(tmp_path / "made", "test")
    packed = lzma.compress(b"\0".join(documents), preset=9 | lzma.PRESET_EXTREME)
    assert info.text is not None
    assert info.text.xz_bits_per_byte == pytest.approx(8 * len(packed) / sum(map(len, documents)), abs=1e-6)
    unigram, xz = info.text.unigram_bits_per_byte, info.text.xz_bits_per_byte
    assert f"; unigram {unigram:.2f} and xz {xz:.2f} bits per byte" in capsys.readouterr().out


def test_xz_is_given_so_much_text_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(yardsticks, "_COMPRESSED_BYTES", 10)
    packed = lzma.compress(b"abcd\0efghi", preset=9 | lzma.PRESET_EXTREME)
    assert xz_bits_per_byte(cycle([b"abcd", b"efghijk"])) == pytest.approx(8 * len(packed) / 9, abs=1e-6)
    assert xz_bits_per_byte([]) is None


# ---- stopped and gone on with ----------------------------------------------------------------------------


def test_a_prepare_that_is_stopped_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [json_lines(tmp_path / f"{n}.jsonl", some_documents(40, seed=n)) for n in range(3)]
    prepare_text(tmp_path / "whole", inputs=files, seq_len=8)
    written, done = pack.write_part, []

    def half_written(path: Path, *rows: object, **packing: object) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    def stopping_after(number: int):
        def run(do, items):
            for count, item in enumerate(items):
                if count == number:
                    raise KeyboardInterrupt
                do(item)
                done.append(item)
                yield

        return run

    for stop in (1, 1, 1, 2):  # a file each time, then parts
        with pytest.raises(KeyboardInterrupt):
            prepare_text(tmp_path / "made", inputs=files, seq_len=8, run_all=stopping_after(stop))
    monkeypatch.setattr(pack, "write_part", half_written)
    with pytest.raises(KeyboardInterrupt):
        prepare_text(tmp_path / "made", inputs=files, seq_len=8)
    monkeypatch.setattr(pack, "write_part", written)
    assert not (tmp_path / "made" / "dataset.json").exists()
    prepare_text(tmp_path / "made", inputs=files, seq_len=8)
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")
    assert len(done) == len(set(map(repr, done))), "nothing is done twice"


KILLED = """
import os, signal, sys
from pathlib import Path
from trm_ray.kinds.text.prepare import prepare_text

def run(do, items):
    for item in items:
        do(item)
        os.kill(os.getpid(), signal.SIGKILL)
        yield

prepare_text(Path(sys.argv[1]), inputs=[Path(name) for name in sys.argv[2:]], seq_len=8, run_all=run)
"""


def test_a_prepare_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [json_lines(tmp_path / f"{n}.jsonl", some_documents(20, seed=n)) for n in range(2)]
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "made", *files], check=False)
    assert killed.returncode == -signal.SIGKILL
    prepare_text(tmp_path / "made", inputs=files, seq_len=8)
    assert "Going on: 1 of 2 files are read" in capsys.readouterr().out
    prepare_text(tmp_path / "whole", inputs=files, seq_len=8)
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def test_a_file_that_has_changed_since_is_read_again(tmp_path: Path):
    files = [json_lines(tmp_path / f"{n}.jsonl", some_documents(9, seed=n)) for n in range(2)]
    (tmp_path / "1.jsonl").write_text("no JSON\n")
    with pytest.raises(ValueError, match="is no JSON"):
        prepare_text(tmp_path / "made", inputs=files)
    assert not (tmp_path / "made" / "dataset.json").exists()
    files = [json_lines(tmp_path / f"{n}.jsonl", some_documents(9, seed=n + 1)) for n in range(2)]
    prepare_text(tmp_path / "made", inputs=files)
    assert {text[:1] for text in documents_of(tmp_path / "made", "train")} == {b"1", b"2"}


# ---- reading ---------------------------------------------------------------------------------------------


def test_all_sorts_of_files_give_the_same_documents(tmp_path: Path):
    lines = "".join(json.dumps({"content": text}) + "\n\n" for text in (PLAY, "two")).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as file:
        file.write(lines)
    table = pa.table({"id": [1, 2], "text": pa.array([PLAY, "two"], pa.large_string())})
    pq.write_table(table, tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        assert [found.text.decode() for found in read_documents(tmp_path / name, 1000)] == [PLAY, "two"], name


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_long_text_is_cut_at_ends_of_lines_and_never_inside_a_character(tmp_path: Path, packed: str):
    text = PLAY * 20 + "é" * 200 + "\n" + PLAY
    path = tmp_path / f"long.txt{packed}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    pieces = [document.text for document in read_documents(path, 101)]
    assert b"".join(pieces) == text.encode()
    assert max(map(len, pieces)) <= 101
    assert all(piece.endswith(b"\n") for piece in pieces[:15])
    assert all(piece.decode() for piece in pieces)


def test_folders_are_read_by_name_and_what_is_no_text_is_passed_over(tmp_path: Path):
    for name in ("b.txt", "a.txt", ".hidden.txt", "README", "in/c.txt.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in text_files([tmp_path])] == ["a.txt", "b.txt", "c.txt.gz"]


def tokenizer_of_words(path: Path) -> Path:
    """A tokenizer.json that was trained on a few lines of a play."""
    path.write_bytes(train_tokenizer([(PLAY * 9).encode()], 300))
    return path


@pytest.mark.parametrize("header", [True, False])
def test_files_of_tokens_are_parted_at_the_separator_of_their_tokenizer(tmp_path: Path, header: bool):
    pytest.importorskip("tokenizers")
    path = tokenizer_of_words(tmp_path / "words.json")
    tokenizer = open_tokenizer(str(path))
    tokens, lengths = tokenizer.encode([b"to be", b"or not to be"])
    first, second = tokens[: lengths[0]], tokens[lengths[0] :]
    end = tokenizer.separator
    stream = np.array([end, *first, end, *second] if header else [*first, end, *second, end], "<u2")
    head = np.zeros(256, "<i4")
    head[:3] = 20240520, 1, len(stream)
    (tmp_path / "a.bin").write_bytes((head.tobytes() if header else b"") + stream.tobytes())
    info = prepare_text(tmp_path / "made", inputs=[tmp_path / "a.bin"], tokenizer=str(path), seq_len=4)
    assert info.text is not None
    assert (info.text.num_documents, info.text.total_bytes) == (2, len("to be") + len("or not to be"))
    rows = [read_split(tmp_path / "made", split) for split in ("train", "test")]
    labels = {tuple(part.labels[part.labels >= 0].tolist()) for part in rows}
    assert labels == {(*first, end), (*second, end)}


# ---- tokenizers ------------------------------------------------------------------------------------------


def test_bytes_are_tokens():
    tokenizer = BytesTokenizer()
    tokens, lengths = tokenizer.encode(["é".encode(), b"", b"x"])
    assert (tokens.tolist(), lengths.tolist()) == ([0xC3, 0xA9, ord("x")], [2, 0, 1])
    assert tokenizer.decode([256, 0xC3, 0xA9, 256]) == "é"


def test_a_trained_tokenizer_spells_every_text_and_its_tokens_have_as_many_bytes(tmp_path: Path):
    pytest.importorskip("tokenizers")
    (tmp_path / "play.txt").write_text(PLAY * 50)
    info = prepare_text(
        tmp_path / "made", inputs=[tmp_path / "play.txt"], train_vocab=300, document_bytes=600, test_share=0.2
    )
    tokenizer = open_tokenizer(str(tmp_path / "made"))
    assert info.text is not None
    assert (info.vocab_size, info.text.separator) == (300, tokenizer.separator)
    assert info.text.tokenizer_sha256 == tokenizer.sha256
    text = "’tis <|endoftext|> ☃ \n\n  be"
    tokens, _ = tokenizer.encode([text.encode()])
    assert tokenizer.separator not in tokens.tolist(), "what looks like it is text"
    assert tokenizer.decode(tokens.tolist()) == text
    sizes = read_token_bytes(tmp_path / "made", info)
    assert sizes[tokens].sum() == len(text.encode())
    labels = np.concatenate([read_split(tmp_path / "made", split).labels.ravel() for split in ("train", "test")])
    assert sizes[labels[labels >= 0]].sum() == info.text.total_bytes


def test_a_tokenizer_without_a_separator_is_given_one(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1, "▁": 2, "?": 3}, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "words.json"))
    tokenizer = open_tokenizer(str(tmp_path / "words.json"))
    assert (tokenizer.separator, tokenizer.vocab_size) == (4, 5)
    assert tokenizer.token_bytes.tolist() == [2, 2, 1, 1, 0]
    assert open_tokenizer(str(tmp_path / "words.json"), "be").separator == 1
    with pytest.raises(ValueError, match=r"--separator no is no token of words\.json"):
        open_tokenizer(str(tmp_path / "words.json"), "no")


# ---- bad input -------------------------------------------------------------------------------------------

GOOD_LINE = b'{"text": "one"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xe9d\n", r"a\.txt is not UTF-8 \(byte 0xe9 after 6 bytes\); save it as UTF-8"),
        ("a.txt", "UTF-16".encode("utf-16"), r"a\.txt is not UTF-8 \(byte 0xff after 0 bytes\)"),
        ("a.txt", b"", "the input holds no text: all its documents are empty"),
        (
            "a.txt",
            b"one text",
            "the input is a single document, which does not make two splits; .* a smaller --document-bytes",
        ),
        ("a.txt.gz", gzip.compress(b"text" * 999)[:-9], r"a\.txt\.gz is cut off or damaged"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz is cut off or damaged"),
        ("a.jsonl.zst", pa.compress(GOOD_LINE * 99, "zstd", asbytes=True)[:-9], r"a\.jsonl\.zst is cut off or damaged"),
        ("a.jsonl.zst", b"no zstd", r"a\.jsonl\.zst is cut off or damaged"),
        (
            "a.jsonl",
            GOOD_LINE + b'{"content": "two"}\n',
            r"line 2, must have text under `text`.*it has none, but content",
        ),
        ("a.jsonl", GOOD_LINE + b'{"text": 2}\n', "line 2, must have text under `text`.*it has a int"),
        ("a.jsonl", GOOD_LINE + b"[]\n", "line 2, holds a list; it must be an object"),
        ("a.jsonl", GOOD_LINE + b"{\n", "line 2, is no JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1, has half a character \('\\ud800'\)"),
        ("a.jsonl", b'{"body": "one"}\n', "line 1, has no `text` and no `content`; it has body"),
        ("a.jsonl", GOOD_LINE + b'{"text": "\xe9"}\n', r"a\.jsonl, line 2, is not UTF-8 \(byte 0xe9 after 10 bytes\)"),
        ("a.parquet", b"", r"a\.parquet is not readable Parquet"),
        ("a.parquet", b"no Parquet", r"a\.parquet is not readable Parquet"),
        ("a.bin", b"\0\0", r"a\.bin holds tokens, not text; name the tokenizer that made them"),
        ("a.pdf", b"", r"a\.pdf is not read; .*\.txt.* are: convert it"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        prepare_text(tmp_path / "made", inputs=[tmp_path / name])
    assert "\n" not in str(found.value)
    assert not (tmp_path / "made" / "dataset.json").exists()
    was_read = message.startswith("the input")
    assert (tmp_path / "made").exists() == was_read, "what other arguments may go on with, and nothing else"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, 256, 50256], r"a\.bin, token 2: 50256, and bytes has tokens below 257; name the tokenizer"),
        (
            [20240520 % 65536, 20240520 // 65536, 1, 0, 7, 0] + [0] * 506 + [1, 2],
            "version 1 and 7 tokens, and there are 2",
        ),
        (
            [20240801 % 65536, 20240801 // 65536, 7, 0, 1, 0] + [0] * 506 + [1, 0],
            "its header says 20240801, version 7 and 1 tokens, and there are 2 of 16 bits; 20240520, version 1 is read",
        ),
        ([], r"a\.bin has 0 bytes"),
    ],
)
def test_tokens_that_are_not_the_tokenizers_are_refused(tmp_path: Path, tokens: list[int], message: str):
    (tmp_path / "a.bin").write_bytes(np.array(tokens, "<u2").tobytes())
    with pytest.raises(ValueError, match=message):
        prepare_text(tmp_path / "made", inputs=[tmp_path / "a.bin"], tokenizer="bytes")


def test_a_file_of_tokens_that_is_cut_in_the_middle_of_one_is_refused(tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"a\.bin has 3 bytes; a file of 16-bit tokens has an even number of them"):
        prepare_text(tmp_path / "made", inputs=[tmp_path / "a.bin"], tokenizer="bytes")


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_rows_of_parquet_are_read_in_any_groups_and_none_is_an_empty_document(tmp_path: Path, rows: int):
    texts = [*some_documents(30), None, "last"]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "a.parquet", row_group_size=rows)
    assert [found.text.decode() for found in read_documents(tmp_path / "a.parquet", 1000)] == [t or "" for t in texts]


def test_columns_are_looked_up_in_each_file_and_none_may_lack_them(tmp_path: Path):
    json_lines(tmp_path / "in/a.jsonl", ["one"])
    json_lines(tmp_path / "in/b.jsonl", ["two"], column="content")
    info = prepare_text(tmp_path / "made", inputs=[tmp_path / "in"])
    assert info.text is not None
    assert info.text.num_documents == 2
    json_lines(tmp_path / "in/c.jsonl", ["three"], column="body")
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1, has no `text` and no `content`; it has id, body"):
        prepare_text(tmp_path / "again", inputs=[tmp_path / "in"])
    assert not (tmp_path / "again/dataset.json").exists()


def test_a_line_that_is_too_long_is_told_before_all_of_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read, "_LONGEST_LINE", 1 << 20)
    json_lines(tmp_path / "a.jsonl", ["short", "long " * (1 << 18)])
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2, is longer than 1 MiB; part it, or use \.txt or \.parquet"):
        prepare_text(tmp_path / "made", inputs=[tmp_path / "a.jsonl"])


def test_a_tokenizer_needs_a_package_and_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text(PLAY)
    with pytest.raises(ValueError, match=r"pip install 'trm-ray\[text\]', or use bytes"):
        prepare_text(tmp_path / "made", inputs=[tmp_path / "a.txt"], train_vocab=300)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nothing"], r"nothing holds no \.parquet, .*; name a folder that does"),
        (["README"], r"README is not read; \.parquet, .* are: convert it"),
        (["nowhere"], "nowhere does not exist; name files or folders"),
        (["a.txt", "a.txt"], r"a\.txt is named twice; name it once"),
        (["https://host/a.txt"], r"https:// is no storage .* download what is to be read with curl -LO URL"),
        (["mixed"], r"b\.bin holds tokens, not text; name the tokenizer that made them"),
    ],
)
def test_inputs_that_are_none_end_the_command_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "README", "nothing/README", "mixed/a.txt", "mixed/b.bin"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("some")
    words = [word for name in inputs for word in ("--input", name)]
    ended = CliRunner().invoke(app, ["prepare", "text", *words, "--output", "made"])
    assert ended.exit_code == 2
    assert re.search(message, ended.output)
    assert ended.output.count("\n") == 1
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": [1, 2]}, "column `text` is int64; it must be text"),
        ({"text": [["a"]]}, "column `text` is list<.*>; it must be text"),
        ({"body": ["a"]}, "has no `text` and no `content`; it has body"),
    ],
)
def test_columns_that_hold_no_text_are_refused(tmp_path: Path, table: dict, message: str):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        prepare_text(tmp_path / "made", inputs=[tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "there is no input"),
        ({"test_share": 0.0}, "test_share=0 must be above 0 and below 1"),
        ({"separator": "x"}, "--separator x is for a tokenizer.json; bytes are parted by token 256"),
        ({"seq_len": 0}, "seq_len=0 must be at least 1"),
        ({"test_share": 1.0}, "test_share=1 must be above 0 and below 1"),
        ({"document_bytes": 9}, "document_bytes=9 must be at least 64"),
        ({"test_share": 0.99, "document_bytes": 64}, "test_share=0.99 leaves none of 2 documents for the train split"),
        ({"format": "chat"}, "format=chat must be text or prompt"),
        ({"format": "prompt"}, r"a\.txt has no prompts"),
        ({"tokenizer": "nowhere.json"}, "--tokenizer nowhere.json cannot be read"),
        ({"tokenizer": "a.txt"}, r"a\.txt is no tokenizer\.json of Hugging Face"),
        ({"tokenizer": "bytes", "train_vocab": 300}, "--train-tokenizer 300 makes a tokenizer; leave"),
        ({"train_vocab": 9}, "--train-tokenizer 9 must be above 257"),
        ({"train_vocab": 9999}, "--train-tokenizer 9999 is more than this text gives"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(PLAY)
    with pytest.raises(ValueError, match=message):
        prepare_text("made", **{"inputs": [Path("a.txt")], **arguments})
    assert not Path("made/dataset.json").exists()
