"""Types of values with their rules in words, and keys with dots for sections."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from trm_ray.config.errors import ConfigError, show
from trm_ray.storage import check_url, with_home

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
SECTIONS = ("arch", "ray", "generator", "asha", "final", "overrides", "search_space")  # keys that hold keys

NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
NAME_RULE = "a name of letters, digits, `_`, `-` and `.`"
_HOST = r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])"
_ADDRESS = rf"auto|local|{_HOST}:[0-9]{{1,5}}"
_ADDRESS_RULE = "local, auto or HOST:PORT"
_FOLDER_RULE = "text that names a folder, or a URL such as s3://BUCKET/FOLDER"

# What is a number, and the same number to everybody; `010` and `1_000` are not.
DECIMAL_INT = r"[-+]?(?:0|[1-9][0-9]*)"
DECIMAL_FLOAT = r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
_DECIMAL = re.compile(f"{DECIMAL_INT}|{DECIMAL_FLOAT}")

_BASES = {
    r"[-+]?0[0-7_]+": " (octal)",
    r".*:.*": " (base 60)",
    r"[-+]?0x.*": " (hexadecimal)",
    r"[-+]?0b.*": " (binary)",
}

# The types of mistakes that bring their own words: a place that cannot be used; a number that some read as another.
UNREACHABLE, READINGS = "unreachable", "readings"
TOLD = (UNREACHABLE, READINGS)


class Settings(BaseModel):
    """Hold values that are checked once and never change; a field's description is its rule in words."""

    model_config = ConfigDict(frozen=True, extra="forbid", **STRICT)


def _number(value: Any) -> Any:
    """Read quoted numbers, and `1e3` as a whole one; refuse what only some would take for a number."""
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value):
            _refuse_readings(value)
            return value
        number = float(value)
        value = number if abs(number) < float("inf") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse_readings(text: str) -> None:
    """Refuse text that somebody takes for a number, with what it is to him and to others."""
    readings = dict(_readings(text))
    if readings:
        as_text = "in YAML 1.1" if text[-1] in "89" and text.isdecimal() else "in YAML 1.2"
        other = {} if len(readings) > 1 else {as_text: "text"}
        meant = " and ".join(f"{number} {to}" for to, number in {**readings, **other}.items())
        way_out = " or ".join(dict.fromkeys(map(str, readings.values())))
        raise PydanticCustomError(READINGS, "{rule}", {"rule": f"{show(text)} is {meant}; write {way_out}"})


def _readings(text: str) -> Iterator[tuple[str, int | float]]:
    """Yield what text is that is no plain decimal number: in decimal, and to Python or YAML 1.1."""
    if re.fullmatch(r"[-+]?[0-9]{1,300}", text):
        yield "in decimal", int(text)
    if re.fullmatch(r"[-+]?0[oO][0-7]{1,300}", text):
        yield "in octal", int(text, 8)
    try:
        other = yaml.safe_load(text) if re.fullmatch(r"[-+0-9a-fA-FxX._:]{1,300}", text) else None
    except (ValueError, yaml.YAMLError):  # no such date; no YAML
        return
    if isinstance(other, int | float):
        base = next((name for pattern, name in _BASES.items() if re.fullmatch(pattern, text)), "")
        yield f"in YAML 1.1{base}", other


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _workers(value: Any) -> int | tuple[int, int]:
    """Read a number of workers, or the fewest and the most of them; a range of one number is that number."""
    ends = [_number(end) for end in value] if isinstance(value, list | tuple) else [_number(value)] * 2
    whole = len(ends) == 2 and all(type(end) is int for end in ends)
    if not whole or not (1 <= ends[0] <= ends[1] or ends == [0, 0]):
        # Told by the field's description; a union of types would have put their names into the key.
        raise PydanticCustomError("workers", "no number of workers")
    return (ends[0], ends[1]) if ends[0] < ends[1] else int(ends[0])


def _depth(value: Any) -> int | Literal["all"] | None:
    """Read through how many cycles a gradient runs."""
    value = _number(value)
    if value is not None and value != "all" and not (type(value) is int and value >= 1):
        raise PydanticCustomError("depth", "no depth")  # told by the field's description, as of workers
    return value


def _place(text: str) -> str:
    try:
        return check_url(with_home(text))
    except ValueError as error:
        raise PydanticCustomError(UNREACHABLE, "{rule}", {"rule": str(error)}) from None


def _last_counts(weights: list[float] | None) -> list[float] | None:
    if weights is not None and not (weights and weights[-1] > 0):
        raise PydanticCustomError("weights", "the last must be above 0")  # told by the field's description
    return weights


def _stages(value: Any) -> list[tuple[float, int | None, int | None]] | None:
    """Read the stages of a depth curriculum."""
    if value is None:
        return None
    stages = (
        [tuple(map(_number, stage)) if isinstance(stage, list | tuple) else () for stage in value]
        if isinstance(value, list)
        else []
    )
    if not stages or not all(len(stage) == 3 and _is_stage(*stage) for stage in stages):
        raise PydanticCustomError("stages", "no stages")  # told by the field's description
    shares = [stage[0] for stage in stages]
    if shares[0] != 0 or any(after <= before for before, after in itertools.pairwise(shares)):
        raise PydanticCustomError("stages", "shares do not rise from 0")
    return [(float(share), *cycles) for share, *cycles in stages]


def _is_stage(share: Any, *cycles: Any) -> bool:
    in_range = type(share) in (int, float) and 0 <= share < 1
    return in_range and all(number is None or (type(number) is int and number >= 1) for number in cycles)


_Number = BeforeValidator(_number)
_Listed = BeforeValidator(_listed)
_Place = AfterValidator(_place)

Positive = Annotated[int, Field(ge=1, description="a whole number of at least 1"), _Number]
PositiveOrNull = Annotated[int | None, Field(ge=1, description="a whole number of at least 1 or null"), _Number]
Count = Annotated[int, Field(ge=0, description="a whole number of at least 0"), _Number]
CountOrNull = Annotated[int | None, Field(ge=0, description="a whole number of at least 0 or null"), _Number]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to below 2**32"), _Number]
PositiveNumber = Annotated[float, Field(gt=0, description="a number above 0"), _Number]
PositiveNumberOrNull = Annotated[float | None, Field(gt=0, description="a number above 0 or null"), _Number]
NonNegative = Annotated[float, Field(ge=0, description="a number of at least 0"), _Number]
AboveOne = Annotated[float, Field(gt=1, description="a number above 1"), _Number]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1"), _Number]
Decay = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1"), _Number]
TextOrNull = Annotated[str | None, Field(description="text or null")]
SourceOrNull = Annotated[
    Annotated[str, Field(min_length=1)] | None,
    Field(description="text that names a run, a checkpoint or a file, or null"),
]
Address = Annotated[
    str | None, Field(description=f"null, {_ADDRESS_RULE}; from outside the cluster use `trm-ray submit`")
]
Folder = Annotated[str, Field(min_length=1, description=_FOLDER_RULE), _Place]
FolderOrNull = Annotated[Folder | None, Field(description=f"null or {_FOLDER_RULE}")]
Folders = Annotated[list[Folder], Field(description="a list of text such as [a, b]"), _Listed]
PairOrNull = Annotated[
    Annotated[tuple[Positive, Positive], Strict(False)] | None, Field(description="null or [MIN, MAX]")
]
WeightsOrNull = Annotated[
    list[Annotated[float, Field(ge=0), _Number]] | None,
    Field(description="null, or a list of numbers of at least 0, the last above 0, such as [0.1, 0.3, 1]"),
    AfterValidator(_last_counts),
]
_STAGES_RULE = "null, or a list of [SHARE, H_CYCLES, L_CYCLES] whose shares of the steps rise from 0 to below 1"
StagesOrNull = Annotated[
    list[tuple[float, int | None, int | None]] | None,
    Field(description=f"{_STAGES_RULE}, such as [[0, 1, 1], [0.3, 2, 2], [0.6, 3, 6]]"),
    PlainValidator(_stages),
    PlainSerializer(lambda stages: stages and [list(stage) for stage in stages], Any, when_used="json"),
]
Workers = Annotated[
    int | tuple[int, int],
    Field(description="a whole number of at least 0, or [FEWEST, MOST] from 1 on"),
    PlainValidator(_workers),
    # Written as JSON and YAML have it; the serializer that goes with a plain validator complains of the list.
    PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value, Any, when_used="json"),
]
Depth = Annotated[
    int | Literal["all"] | None, Field(description="a whole number of at least 1, all or null"), PlainValidator(_depth)
]
Name = Annotated[str, Field(pattern=f"^{NAME}$", description=NAME_RULE)]
Names = Annotated[list[Name], Field(description=f"a list, each {NAME_RULE}"), _Listed]

Reasons = Annotated[
    list[Literal["non_finite", "diverging"]], Field(description="a list of non_finite, diverging, or both"), _Listed
]


def check_address(named: str, address: str) -> None:
    """Refuse what is no address of a cluster, whoever has said it: the key or the variable that Ray's own tools read.

    Args:
        named: the key or the variable.

    Raises:
        ConfigError: the address is a job server's, a Ray Client server's, or has no port.
    """
    if re.fullmatch(_ADDRESS, address):
        return
    wrong = f"{named}={show(address)} must be {'null, ' if '.' in named else ''}{_ADDRESS_RULE}"
    here = "ray.address=local starts a cluster on this machine"
    scheme, _, _ = address.partition("://")
    if scheme in ("http", "https"):
        way_out = f"this is a job server's, to which `trm-ray submit --address {show(address)}` sends a command; {here}"
    elif scheme == "ray":
        way_out = f"Ray Client is not supported: `trm-ray submit --address http://HOST:8265` sends a command; {here}"
    elif re.fullmatch(_HOST, address):
        way_out = f"use {named}={address}:6379"
    else:
        way_out = "from outside the cluster use `trm-ray submit`"
    raise ConfigError(f"{wrong}; {way_out}")


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Write sections with dots; an empty section stays a value, which replaces the section."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `flatten` down to the first dot; inside a sweep, run keys keep theirs."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        if dot and section in SECTIONS:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return nested


def find_field(model: type[Settings], key: str) -> FieldInfo:
    """Return the field of a key with dots; the key must exist."""
    section, _, name = key.rpartition(".")
    owner = section_of(model.model_fields[section]) if section else model
    assert owner is not None
    return owner.model_fields[name]


def section_of(field: FieldInfo) -> type[Settings] | None:
    """Return the model of a field that holds keys, None of one that holds a value."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
