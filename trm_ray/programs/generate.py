"""Let a trained model go on with a text."""

from __future__ import annotations

import codecs
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from trm_ray.data.rows import DatasetError
from trm_ray.kinds.text.spelling import Speller
from trm_ray.kinds.text.tokenizer import FileTokenizer, Tokenizer, tokenizer_of
from trm_ray.storage import as_path

if TYPE_CHECKING:
    from trm_ray.interop.loading import LoadedModel


@dataclass(frozen=True)
class Settings:
    """How to go on with a text.

    Args:
        max_new_tokens: where to end, if the model opens no other document before.
        temperature: probabilities are those of the model to the power of 1/temperature; 0 takes the likeliest token.
        top_p: the fewest likeliest tokens that have so much probability together are drawn from.
        seed: of the draws.
        segments, cycles: how many segments, of how many H-cycles each; as in training if None.

    Raises:
        ValueError: a value breaks its rule.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    segments: int | None = None
    cycles: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "segments", "cycles"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1; leave it out for the default")
        if not 0 <= self.temperature < math.inf:
            rule = "must be at least 0 and finite; 0 takes the likeliest token"
            raise ValueError(f"temperature={self.temperature:g} {rule}, 0.8 is usual")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1; 1 draws from all tokens")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be from 0 to 2^63 - 1; use 0")


@dataclass(frozen=True)
class Generated:
    """What a model has made of a prompt.

    text: what comes after the prompt. tokens: its tokens, with the separator at the end if there is one.
    log_probabilities: nats of each of them under the model itself, as evaluation counts them.
    ended: at a `separator`, or at the `limit`. left_out: tokens of the prompt that were before the model's window.
    settings: with the segments and cycles that were run.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    ended: str
    left_out: int
    settings: Settings

    def as_json(self) -> dict[str, Any]:
        """Write it in plain values."""
        told = asdict(self)
        settings = told.pop("settings")
        return {**told, "depth": settings["segments"] * settings["cycles"], **settings}


def read_prompt(prompt: str | None, file: str | None) -> str:
    """Take the prompt that was given, or read it from a file, or from the standard input for `-`.

    A line end at the end of a file is none of it, since most editors put one there.

    Raises:
        ValueError: both are given, or it is no text.
    """
    if prompt is not None and file is not None:
        raise ValueError(f"--prompt and --file {file} are two prompts; leave one of them out")
    source = "--prompt" if file is None else f"--file {file}"
    try:
        text = (prompt or "") if file is None else _read(file)
        text.encode()
    except OSError as error:
        raise ValueError(
            f"{source} cannot be read: {error.strerror}; name a file, or - for the standard input"
        ) from error
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ValueError(f"{source} is no text in UTF-8 (at byte {error.start}); save it as UTF-8") from error
    return text


def _read(file: str) -> str:
    """Read a file as texts are read: whole, as it is, without a byte order mark."""
    content = sys.stdin.buffer.read() if file == "-" else as_path(file).read_bytes()
    text = content.removeprefix(codecs.BOM_UTF8).decode()
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def tokenizer_for(loaded: LoadedModel) -> Tokenizer:
    """Open the tokenizer of a model of text.

    Raises:
        DatasetError: it is a model of something else, or its tokenizer is missing or another one.
    """
    path, shape = loaded.path, loaded.shape
    if not loaded.causal or shape.separator is None:
        way_out = f"see it solve a puzzle: trm-ray predict {path} PUZZLE"
        raise DatasetError(f"{path} was not trained on text (arch.causal, a dataset of kind text); {way_out}")
    return tokenizer_of(loaded.tokenizer, shape.separator, shape.vocab_size, str(path))


def generate(
    loaded: LoadedModel,
    prompt: str | Sequence[int],
    settings: Settings,
    each: Callable[[str], object] = lambda piece: None,
) -> Generated:
    """Go on with a prompt up to the end of its document.

    Args:
        prompt: text, before which a separator is put, or tokens as they are. Where it is longer than the model's
            window, its end is what the model sees.
        each: told each piece of text as soon as it is there, whole characters.

    Raises:
        DatasetError: see `tokenizer_for`; or the prompt has characters or tokens that the model does not know.
        ValueError: the model's output is not finite.
    """
    from trm_ray.training.generation import generate_tokens

    tokenizer = tokenizer_for(loaded)
    begin = _tokens(tokenizer, prompt)
    segments, cycles = settings.segments or loaded.halt_max_steps, settings.cycles or loaded.H_cycles
    drawn = generate_tokens(
        loaded,
        begin,
        num_cycles=segments * cycles,
        loss_type=loaded.config.loss_type,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    speller, found, pieces = Speller(tokenizer, begin), [], []

    def tell(piece: str) -> None:
        if piece:
            pieces.append(piece)
            each(piece)

    for one in itertools.islice(drawn, settings.max_new_tokens):
        found.append(one)
        if one.token == tokenizer.separator:
            break
        tell(speller.add(one.token))
    tell(speller.rest())
    return Generated(
        prompt=prompt if isinstance(prompt, str) else tokenizer.decode(begin),
        text="".join(pieces),
        tokens=tuple(one.token for one in found),
        log_probabilities=tuple(one.log_probability for one in found),
        ended="separator" if found[-1].token == tokenizer.separator else "limit",
        left_out=max(0, len(begin) - loaded.shape.seq_len),
        settings=replace(settings, segments=segments, cycles=cycles),
    )


def _tokens(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    if isinstance(prompt, str):
        if isinstance(tokenizer, FileTokenizer) and (unknown := tokenizer.unknown(prompt)):
            raise DatasetError(f"the prompt has {unknown[:20]!r}, for which the tokenizer has no tokens; leave it out")
        return [tokenizer.separator, *tokenizer.encode([prompt.encode()])[0].tolist()]
    wrong = [token for token in prompt if not 0 <= token < tokenizer.vocab_size]
    if wrong or not prompt:
        rule = f"it must be one or more of 0 to {tokenizer.vocab_size - 1}"
        raise DatasetError(f"the prompt has {f'token {wrong[0]}' if wrong else 'no tokens'}; {rule}")
    return [*prompt]
