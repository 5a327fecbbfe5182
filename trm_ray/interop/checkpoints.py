"""Checkpoints in and out: the original's files and safetensors become runs, and runs become such files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import yaml
from pydantic.fields import FieldInfo
from torch import Tensor

from trm_ray import __version__
from trm_ray.config import UNREADABLE, ArchConfig, Config, ConfigError, load_yaml, to_yaml, with_overrides
from trm_ray.config.keys import Positive
from trm_ray.config.sweep import check_value
from trm_ray.config.text import NotTextError, read_text
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.data.progress import progress
from trm_ray.interop.initialise import averaged, carry_over_rows, differing_keys, telling_keys
from trm_ray.interop.original import (
    AS_THE_ORIGINAL,
    TABLE,
    Facts,
    Weights,
    check_weights,
    facts_of,
    foreign_to_original,
    infer_arch,
    original_arch,
    our_arch,
    our_recipe,
    read_original,
    to_original,
    translate,
)
from trm_ray.interop.portable import SUFFIX, described, read_model, read_portable, write_portable
from trm_ray.ownership import Ownership, refuse_if_held
from trm_ray.replacement import RUN, foreign_names, is_ours, set_aside, settled, told_names
from trm_ray.storage import as_path, check_is_folder, made_elsewhere, resolved, sha256
from trm_ray.training.checkpoint import FINAL_MODEL, has_checkpoint, save_checkpoint
from trm_ray.training.state import TokenShape

TableOption = Literal["keep", "drop", "mean"]
Format = Literal["original", "safetensors"]

# The original's config says nothing of its data; each of its three tasks has its own vocabulary and length.
_ORIGINAL_LENGTHS = {6: 900, 11: 81, 12: 900}
_NO_DATA = "data/unknown"
# Where the original's training writes its config, beside its checkpoints.
_THEIR_CONFIG = "all_config.yaml"


@dataclass(frozen=True)
class Imported:
    """A run made of a file; notes: what its user should know, a line each."""

    folder: Path
    config: Config
    shape: TokenShape
    step: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Request:
    """What was asked for; see `import_checkpoint`."""

    file: Path
    output: Path
    named: str
    config_file: Path | None
    arch: Mapping[str, Any]
    data_paths: tuple[str, ...]
    identifiers: PuzzleIdentifiers | None
    puzzle_embedding: TableOption


@dataclass(frozen=True)
class _Understood:
    """A file's weights, and the architecture and recipe that they belong to."""

    weights: Weights
    config: Config
    shape: TokenShape
    identifiers: bytes | None
    notes: tuple[str, ...]
    tokenizer: bytes | None = None


def import_checkpoint(
    file: Path,
    output: Path,
    *,
    config_file: Path | None = None,
    arch: Mapping[str, Any] | None = None,
    data_paths: Sequence[Path] = (),
    identifiers_file: Path | None = None,
    puzzle_embedding: TableOption = "keep",
    num_puzzle_identifiers: int | None = None,
    overwrite: bool = False,
) -> Imported:
    """Make a run of a checkpoint of the original, or of a safetensors file.

    Args:
        config_file: the original's all_config.yaml.
        arch: `arch` keys by the original's names or ours, `seq_len` too; they win over the config file.
        data_paths: datasets that the run is to be evaluated on; the original's own if none are given.
        identifiers_file: the identifiers.json of its dataset, the original's list or ours.
        puzzle_embedding: `keep` the vectors; for other puzzles `drop` them for zeros, or repeat their `mean`.
        num_puzzle_identifiers: rows of a new table; if not given, as many as the identifiers file names, else 1.

    Raises:
        ValueError: the file does not fit its architecture, too little is known of it, or the folder exists.
    """
    request = _Request(
        file=file,
        output=resolved(output),
        named=f"--output {output}",
        config_file=config_file,
        arch=dict(arch or {}),
        data_paths=tuple(map(str, data_paths)),
        identifiers=None if identifiers_file is None else _read_map(identifiers_file),
        puzzle_embedding=puzzle_embedding,
    )
    _check_places(request, overwrite)
    with Ownership(request.output, request.named):
        refuse_if_held(request.output.parent, f"{request.named} lies in a folder that", "wait for its end")
        with settled(request.output, RUN, has_checkpoint):
            _check_places(request, overwrite)
            found = _understand(request)
            check_weights(found.weights, found.config, found.shape, str(file))
            found = _with_asked_table(found, request, num_puzzle_identifiers)
            identifiers, more_notes = _chosen_map(found, request)
            found = replace(found, config=with_overrides(found.config, {"log_dir": str(output)}))
            _write_run(request, found, identifiers)
    return Imported(request.output, found.config, found.shape, found.weights.step or 0, (*found.notes, *more_notes))


def _check_places(request: _Request, overwrite: bool) -> None:
    file, output = request.file, request.output
    if not file.is_file():
        raise ValueError(f"{file} is no file; name a checkpoint of the original (step_N) or a {SUFFIX} file")
    if output in file.resolve().parents:
        raise ValueError(f"{request.named} holds {file.name} itself; choose another folder")
    check_is_folder(output, request.named)
    names = foreign_names(output)
    if names and not is_ours(output, RUN):
        raise ValueError(f"{request.named} holds files but no run ({told_names(names)}); choose another folder")
    if names and not overwrite:
        raise ValueError(f"{request.named} exists; replace it with --overwrite or choose another folder")


# ---- what a file is --------------------------------------------------------------------------------------


def _understand(request: _Request) -> _Understood:
    file = request.file
    if (weights := _foreign_weights(file)) is not None:
        return _understand_original(weights, request)
    portable = read_portable(file)
    assert portable.state is not None, "else its weights were foreign"
    if request.config_file is not None or request.arch:
        raise ValueError(f"{file} knows its own architecture; leave --config and --arch out")
    state, names = portable.state, {name: name for name in portable.tensors}
    config, shape = described(state, file)
    if request.data_paths:
        config = with_overrides(config, {"data_paths": list(request.data_paths)})
    weights = Weights(portable.tensors, None, names, (), state["step"])
    return _Understood(weights, config, shape, portable.identifiers, (), state["tokenizer"])


def _understand_original(weights: Weights, request: _Request) -> _Understood:
    theirs = _read_config(request.config_file)
    values = {key: _number(key, value) for key, value in {**theirs.get("arch", {}), **request.arch}.items()}
    recipe, idle = our_recipe(theirs)
    given, idle_arch = our_arch(values)
    if unknown := sorted(set(idle_arch) & set(request.arch)):
        raise ValueError(f"--arch {unknown[0]}={request.arch[unknown[0]]} is no key of an architecture; leave it out")
    facts = facts_of(weights.model)
    arch, notes = _complete(given, facts, [*request.data_paths, *recipe.get("data_paths", [])], request)
    rows = values.get("num_puzzle_identifiers", facts.num_puzzle_identifiers) if facts.num_puzzle_identifiers else 1
    shape = TokenShape(arch.pop("seq_len"), values.get("vocab_size", facts.vocab_size), rows)
    if "forward_dtype" not in request.arch and facts.forward_dtype not in (None, arch["forward_dtype"]):
        differing = f"forward_dtype={arch['forward_dtype']} but H_init is {facts.forward_dtype}"
        raise ValueError(f"{request.config_file} has {differing}; choose with --arch forward_dtype=NAME")
    if weights.step is None and (named := re.search(r"step_(\d+)", request.file.name)):  # as the original names it
        weights = replace(weights, step=int(named[1]))
    config = _config(recipe, arch, weights, request.data_paths)
    if ignored := [*idle, *(f"arch.{key}" for key in idle_arch)]:
        notes.append(f"ignored {', '.join(ignored)}: nothing here is called so")
    return _Understood(_with_blank_row(weights, config, request), config, shape, None, tuple(notes))


def _number(key: str, value: Any) -> Any:
    """Return a key's value as its type, before anything is computed with it."""
    if key in ArchConfig.model_fields:
        return check_value(f"arch.{key}", value, ArchConfig.model_fields[key])
    if key in ("seq_len", "vocab_size", "num_puzzle_identifiers") and value is not None:
        return check_value(f"arch.{key}", value, FieldInfo.from_annotation(cast(Any, Positive)))
    return value


def _complete(
    given: dict[str, Any], facts: Facts, data_paths: Sequence[str], request: _Request
) -> tuple[dict[str, Any], list[str]]:
    """Complete an architecture and its `seq_len`, or ask for what is not known."""
    told_all, notes = request.config_file is not None, []
    if "seq_len" not in given and (seq_len := next(filter(None, map(_length_of_data, data_paths)), None)):
        given = {**given, "seq_len": seq_len}
    arch, asked = infer_arch(given, facts, told_all=told_all)
    if asked == ["seq_len"] and told_all and facts.vocab_size in _ORIGINAL_LENGTHS:
        arch["seq_len"], asked = _ORIGINAL_LENGTHS[facts.vocab_size], []
        task = f"the original's data with {facts.vocab_size} tokens"
        notes.append(f"seq_len={arch['seq_len']}, that of {task}; --arch seq_len=N or --data FOLDER says otherwise")
    if asked:
        options = " ".join(f"--arch {key}={'rope|none' if key == 'pos_encodings' else '…'}" for key in asked)
        way_out = f"name its all_config.yaml with --config, or give {options}"
        raise ValueError(f"{request.file} does not tell {', '.join(asked)}; {way_out}")
    defaults = [key for key in ("halt_max_steps", "rms_norm_eps", "rope_theta") if key not in given]
    if not told_all and defaults:
        values = ", ".join(f"{key}={ArchConfig.model_fields[key].default}" for key in defaults)
        notes.append(f"took the original's {values}; --arch KEY=VALUE says otherwise")
    return arch, notes


def _read_config(path: Path | None, option: str = "--config ") -> dict[str, Any]:
    """Read the original's all_config.yaml, or a mapping of `arch` keys alone."""
    if path is None:
        return {}
    try:
        values = load_yaml(read_text(path))
    except (OSError, yaml.YAMLError, *UNREADABLE) as error:
        fault = f"{option}{path} cannot be read ({error if isinstance(error, NotTextError) else type(error).__name__})"
        raise ConfigError(f"{fault}; it must be an {_THEIR_CONFIG}") from None
    if not isinstance(values, dict) or not isinstance(values.get("arch", {}), dict):
        raise ConfigError(f"{option}{path} must be lines of `key: value` with a section `arch`")
    return values if "arch" in values else {"arch": values}


def _length_of_data(folder: str) -> int | None:
    """Read a puzzle's length off a dataset, ours or the original's, if it is there."""
    for path in (as_path(folder) / part for part in ("dataset.json", "train/dataset.json")):
        if path.is_file():
            return int(json.loads(read_text(path))["seq_len"])
    return None


def _config(recipe: dict[str, Any], arch: dict[str, Any], weights: Weights, data_paths: Sequence[str]) -> Config:
    """Lay recipe and architecture over the defaults."""
    recipe = {**recipe, "data_paths": list(data_paths) or recipe.get("data_paths") or [_NO_DATA]}
    recipe["ema"] = recipe.get("ema", False) or weights.average is not None
    base = Config(config_name="imported", data_paths=[_NO_DATA], max_steps=max(1, weights.step or 0))
    if recipe.get("epochs") is not None:
        recipe["max_steps"] = None
    return with_overrides(base, {**recipe, **{f"arch.{key}": value for key, value in arch.items()}})


def _with_blank_row(weights: Weights, config: Config, request: _Request) -> Weights:
    """Stand in for a table that somebody has removed to make the file small, where it is to be dropped anyway."""
    ndim = config.arch.puzzle_emb_ndim
    if request.puzzle_embedding != "drop" or TABLE in weights.model or ndim == 0:
        return weights
    return replace(weights, model={**weights.model, TABLE: torch.zeros(1, ndim)})


# ---- the table and its map -------------------------------------------------------------------------------


def _with_asked_table(found: _Understood, request: _Request, rows: int | None) -> _Understood:
    """Replace the table by one for other puzzles where that is asked for."""
    option, table = request.puzzle_embedding, found.weights.model.get(TABLE)
    have = found.shape.num_puzzle_identifiers
    if option == "keep":
        if rows not in (None, have):
            rule = f"the table has {have} rows; --puzzle-embedding mean or drop makes another"
            raise ValueError(f"--num-puzzle-identifiers {rows} but {rule}")
        return found
    if table is None:
        raise ValueError(f"--puzzle-embedding {option} but the model has no puzzle embedding; leave the option out")
    rows = rows or (1 if request.identifiers is None else len(request.identifiers))
    start = table.mean(0, dtype=torch.float32) if option == "mean" else torch.zeros(table.shape[1])
    weights = replace(found.weights, model={**found.weights.model, TABLE: start.repeat(rows, 1)})
    return replace(found, weights=weights, shape=replace(found.shape, num_puzzle_identifiers=rows))


def _read_map(path: Path) -> PuzzleIdentifiers:
    """Read an identifiers.json, the original's list of names or ours."""
    try:
        content = path.read_bytes()
        names = json.loads(content)
        return PuzzleIdentifiers.from_names(names) if isinstance(names, list) else PuzzleIdentifiers.from_bytes(content)
    except OSError as error:
        raise ValueError(f"--identifiers {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"--identifiers {path} is no map of puzzle identifiers: {error}") from None


def _chosen_map(found: _Understood, request: _Request) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the identifiers.json to keep with the weights, and what there is to say about it."""
    rows = found.shape.num_puzzle_identifiers
    if request.identifiers is not None:
        if (count := len(request.identifiers)) != rows:
            rule = f"names {count} puzzle identifiers but the table has {rows} rows; they must agree"
            raise ValueError(f"--identifiers {rule}")
        return request.identifiers.to_bytes(), ()
    if found.identifiers is not None and request.puzzle_embedding == "keep":
        return found.identifiers, ()
    if rows == 1:
        return PuzzleIdentifiers.blank().to_bytes(), ()
    return None, (f"{rows} puzzle vectors and no map of whose they are; --identifiers FILE keeps it with them",)


def _write_run(request: _Request, found: _Understood, identifiers: bytes | None) -> None:
    output, weights, mib = request.output, _as_float32(found.weights), 2**20
    with progress("MiB", request.file.stat().st_size // mib) as advance:
        digest = sha256(request.file, lambda num_bytes: advance(num_bytes // mib))
    provenance = {
        "file": request.file.name,
        "sha256": digest,
        "step": weights.step,
        "puzzle_embedding": request.puzzle_embedding,
    }
    set_aside(output, RUN)
    (output / "config.yaml").write_text(to_yaml(found.config), encoding="utf-8")
    environment = json.dumps({"trm_ray": __version__, "torch": torch.__version__, "imported": provenance}, indent=2)
    (output / "environment.json").write_text(environment + "\n", encoding="utf-8")
    state = {
        "config": found.config.model_dump(mode="json"),
        "shape": asdict(found.shape),
        "step": weights.step or 0,
        "model": weights.model,
        "ema": weights.average,
    }
    save_checkpoint(output / FINAL_MODEL, state, identifiers, tokenizer=found.tokenizer)


def _as_float32(weights: Weights) -> Weights:
    """Give all weights the dtype that they have here; those that have it are not copied."""
    average = weights.average and {name: tensor.float() for name, tensor in weights.average.items()}
    return replace(weights, model={name: tensor.float() for name, tensor in weights.model.items()}, average=average)


# ---- out -------------------------------------------------------------------------------------------------


def export_checkpoint(
    run: Path, output: Path, *, file_format: Format, averaged_weights: bool = True, overwrite: bool = False
) -> tuple[str, ...]:
    """Write a run's weights in the original's layout, or as safetensors with config and puzzle identifiers.

    Args:
        run: a run's or a checkpoint's folder, or an exported .safetensors file.
        averaged_weights: take the moving average where there is one.

    Returns:
        What its user should know, a line each.

    Raises:
        ValueError: there is no checkpoint, or the file exists.
    """
    if output.exists() and not overwrite:
        raise ValueError(f"--output {output} exists; replace it with --overwrite or choose another file")
    source, state, identifiers = read_model(run)
    model = averaged(state) if averaged_weights else state["model"]
    arch = described(state, source)[0].arch
    output.parent.mkdir(parents=True, exist_ok=True)
    if file_format == "safetensors":
        write_portable(output, {**state, "model": model}, identifiers)
        return ()
    with made_elsewhere(output) as temporary:
        torch.save(to_original(model, getattr(torch, arch.forward_dtype)), temporary)
    return (f"in the original: +load_checkpoint={output} arch=trm {_flags(arch)}", *foreign_to_original(arch))


def _flags(arch: ArchConfig) -> str:
    """Write an architecture as the original's command line takes it, where its arch/trm.yaml leaves two keys out."""
    absent = ("rope_theta", "rms_norm_eps")
    values = original_arch(arch)
    changed = {key: values.pop(key) for key in absent if values[key] != ArchConfig.model_fields[key].default}
    flags = [f"arch.{key}={value}" for key, value in values.items() if key not in absent]
    return " ".join([*flags, *(f"+arch.{key}={value}" for key, value in changed.items())])


# ---- weights to begin with -------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitialWeights:
    """A model's state dict to begin a run with, memory-mapped: copy it; note: what became of it, in a line."""

    model: dict[str, Tensor]
    note: str


def initial_weights(source: Path, config: Config, shape: TokenShape, identifiers: bytes | None) -> InitialWeights:
    """Read the weights that a new run begins with, averaged ones where there are any.

    What weights of the original cannot tell is compared with the all_config.yaml beside their file. A puzzle's vector
    goes where the new run has that puzzle; puzzles that the source does not know get the mean.

    Args:
        source: a run's or checkpoint's folder, a safetensors file, or a checkpoint of the original.
        identifiers: identifiers.json of the new run's data.

    Raises:
        ValueError: there are no weights, or they are another network's; the message names each difference.
    """
    model, known, unchecked = _weights_of(source, config, shape)
    note = f"Beginning with the weights of {source}"
    if TABLE in model:
        names = _names(known), _names(identifiers)
        model[TABLE], kept = carry_over_rows(model[TABLE], *names, shape.num_puzzle_identifiers)
        note += f": {kept}"
    return InitialWeights(model, f"{note}; {unchecked}" if unchecked else note)


def _weights_of(source: Path, config: Config, shape: TokenShape) -> tuple[dict[str, Tensor], bytes | None, str | None]:
    """Read weights and the map of their table, and say which keys of the config nothing was there to check with."""
    if (weights := _foreign_weights(source)) is not None:
        unchecked = _check_foreign(weights, source, config, shape)
        weights = _as_float32(weights)
        return {**weights.model, **(weights.average or {})}, None, unchecked
    _, state, identifiers = read_model(source)
    theirs, their_shape = described(state, source)
    _refuse_differing(str(source), theirs.arch, their_shape, config, shape)
    return averaged(state), identifiers, None


def _refuse_differing(source: str, have: ArchConfig, have_shape: TokenShape, config: Config, shape: TokenShape) -> None:
    if differing := differing_keys(have, have_shape, config.arch, shape):
        raise ConfigError(f"init_from={source} has another architecture: {', '.join(differing)}; take its values")


def _check_foreign(weights: Weights, source: Path, config: Config, shape: TokenShape) -> str | None:
    """Hold the original's weights, and the config that lies beside them, against ours; say what neither tells."""
    facts = facts_of(weights.model)
    table_shape = replace(shape, num_puzzle_identifiers=facts.num_puzzle_identifiers or 1)
    check_weights(weights, config, table_shape, f"init_from={source}")
    beside = source.with_name(_THEIR_CONFIG)
    known = _known_of_foreign(beside, config.arch, shape, facts)
    their_shape = replace(shape, seq_len=known.pop("seq_len"))
    try:
        theirs = with_overrides(config, {f"arch.{key}": value for key, value in known.items()}).arch
    except ConfigError as error:
        raise ConfigError(f"{beside}: {error}") from None
    _refuse_differing(f"{source} with the {_THEIR_CONFIG} beside it", theirs, their_shape, config, shape)
    unknown = [f"{key}={getattr(config.arch, key)}" for key in telling_keys(config.arch) if key not in known]
    lacking = f"{beside} does not tell them" if beside.is_file() else f"no {_THEIR_CONFIG} lies beside it"
    return f"unchecked, as {lacking}: {', '.join(unknown)}" if unknown else None


def _known_of_foreign(beside: Path, ours: ArchConfig, shape: TokenShape, facts: Facts) -> dict[str, Any]:
    """Gather the telling keys, and `seq_len`, that weights or the config beside them tell."""
    # Widths have been compared; many expansions give the same.
    given: dict[str, Any] = {"seq_len": shape.seq_len, **ours.model_dump(include={"expansion", "ffn_multiple_of"})}
    given |= AS_THE_ORIGINAL
    if beside.is_file():
        defaults = ArchConfig().model_dump(include={"rope_theta", "rms_norm_eps", "mixer_norm"})
        given |= defaults | our_arch(_read_config(beside, "").get("arch", {}))[0]
    known, _ = infer_arch(given, facts, told_all=beside.is_file())
    return {key: value for key, value in known.items() if key in {"seq_len", *telling_keys(ours)}}


def _foreign_weights(source: Path) -> Weights | None:
    """Read a file that knows nothing of its architecture."""
    if not source.is_file():
        return None
    if source.suffix != SUFFIX:
        return read_original(source)
    portable = read_portable(source)
    return translate(portable.tensors, str(source)) if portable.state is None else None


def _names(identifiers: bytes | None) -> list[str] | None:
    return None if identifiers is None else PuzzleIdentifiers.from_bytes(identifiers).all_names()
