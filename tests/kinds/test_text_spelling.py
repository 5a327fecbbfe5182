"""Tokens spelt while they come."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from trm_ray.kinds.text.spelling import Speller
from trm_ray.kinds.text.tokenizer import BytesTokenizer, FileTokenizer, Tokenizer, tokenizer_of, train_tokenizer

TEXT = "Grüße, 字 and 👩‍🚀 \n\n  be"


def told(tokenizer: Tokenizer, tokens: list[int], before: Sequence[int] = ()) -> list[str]:
    speller = Speller(tokenizer, before)
    return [*(speller.add(token) for token in tokens), speller.rest()]


def test_bytes_are_told_when_their_character_is_whole():
    assert told(BytesTokenizer(), [*"aé字".encode()]) == ["a", "", "é", "", "", "字", ""]


def test_what_never_becomes_a_character_is_told_as_such_at_the_end_or_before_the_next():
    assert told(BytesTokenizer(), [0xC3, 0xFF, ord("x")]) == ["", "", "\ufffd\ufffdx", ""]
    assert told(BytesTokenizer(), [ord("x"), 0xE5, 0xAD]) == ["x", "", "", "\ufffd"]


def test_a_character_that_a_prompt_has_begun_is_told_whole():
    first, *others = "字".encode()
    assert told(BytesTokenizer(), [*others, ord("x")], [ord("a"), first]) == ["", "字", "x", ""]


def test_pieces_of_any_bytes_are_together_their_text():
    draw = random.Random(0)
    for _ in range(200):
        tokens = draw.choices([0xC3, 0xA9, 0xE5, 0xAD, 0x97, 0xF0, 0xFF, 0x41], k=12)
        pieces = told(BytesTokenizer(), tokens)
        assert "".join(pieces) == bytes(tokens).decode(errors="replace")
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


def test_a_trained_tokenizers_pieces_are_together_its_text_and_never_half_a_character():
    pytest.importorskip("tokenizers")
    tokenizer = FileTokenizer(train_tokenizer([b"to be or not to be" * 9], 265))
    tokens = tokenizer.encode([TEXT.encode()])[0].tolist()
    assert len(tokens) > len(TEXT), "characters of several tokens"
    pieces = told(tokenizer, tokens)
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)


def test_a_blank_between_words_is_told_where_it_would_be_none_at_the_beginning():
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁to": 0, "▁be": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer, inner.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    tokenizer = FileTokenizer(str(inner.to_str()).encode())
    assert told(tokenizer, [0, 1, 0]) == ["to", " be", " to", ""]
    assert told(tokenizer, [0, 1], [tokenizer.separator, 1]) == [" to", " be", ""]


# -- whose tokens they are --------------------------------------------------------------------------------------------


def words(**more: int) -> bytes:
    """A tokenizer.json of two words, or more."""
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1, "?": 2, **more}, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return str(inner.to_str()).encode()


def test_a_models_tokenizer_has_its_separator_and_its_vocabulary():
    assert tokenizer_of(None, 256, 257, "run").name == "bytes"
    assert tokenizer_of(words(), 3, 4, "run").separator == 3  # one that was added
    assert tokenizer_of(words(), 1, 3, "run").separator == 1  # one that somebody has named
    for separator, size in ((3, 5), (7, 8), (None, 4)):
        with pytest.raises(ValueError, match="the tokenizer of run has 4 tokens and separator 3, the model has"):
            tokenizer_of(words(), separator, size, "run")
    with pytest.raises(ValueError, match=r"run has 300 tokens and no tokenizer\.json that says what they mean; put"):
        tokenizer_of(None, 299, 300, "run")


def test_what_a_tokenizer_does_not_know_is_named():
    tokenizers = pytest.importorskip("tokenizers")
    assert FileTokenizer(words()).unknown("to be or not") == "or"
    assert FileTokenizer(words()).unknown("to  be") == ""
    pairs = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=40, show_progress=False)
    pairs.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    assert FileTokenizer(str(pairs.to_str()).encode()).unknown("the cät") == "ä"
    whole = FileTokenizer(train_tokenizer([b"to be or not " * 9], 265))
    assert whole.unknown(TEXT) == ""
