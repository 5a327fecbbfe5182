"""Say in one line what is wrong with a key, and what to write instead."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Literal, get_args, get_origin
from unicodedata import category

from pydantic import GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class ConfigError(ValueError):
    """Tell a user in one line what is wrong with a configuration and what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True)
class OneOf:
    """Annotate text that must be a name in a registry; what is entered there later counts, too."""

    registry: Mapping[str, object]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name after the type."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, name: str) -> str:
        if name not in self.registry:
            raise PydanticCustomError("one_of", "no such name")  # told by `misfit`
        return name


def printable(text: str) -> str:
    """Put blanks for line ends and for what a terminal would obey: an error may quote somebody else's file."""
    return "".join(map(_harmless, text))


def _harmless(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return " " if category(character) in _OBEYED or character in _TURNING else character


_OBEYED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, ends of lines and paragraphs
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # make later text appear elsewhere
_OTHER_NAMES = {  # what other trainers call it, where no likeness would lead to our key
    "batch_size": "global_batch_size",
    "gpu": "cuda",
    "learning_rate": "lr",
    "steps": "max_steps",
    "warmup_steps": "lr_warmup_steps",
}


def show(value: Any) -> str:
    """Write a value as YAML would, on one line; cut what is long, and the user and password of a URL."""
    text = json.dumps(_pruned(value), ensure_ascii=False, default=str, skipkeys=True).replace('"', "")
    text = re.sub(r"://[^/@\s]*(:[^@\s]*)?@", "://…@", text)  # a password may hold slashes
    return text if len(text) <= 80 else text[:77] + "..."


def _pruned(value: Any, depth: int = 3) -> Any:
    """Cut what is deep or long: a small file can spell an endless value, by aliases inside aliases."""
    if isinstance(value, Mapping):
        return {key: _pruned(item, depth - 1) for key, item in [*value.items()][:40]} if depth else "..."
    if isinstance(value, list | tuple):
        return [_pruned(item, depth - 1) for item in value[:40]] if depth else "..."
    return value


def plain_name(word: str) -> str:
    """Write a name as ours are, whether it was written as an option or as another trainer calls it."""
    plain = word.lower().lstrip("+-").replace("-", "_")
    return _OTHER_NAMES.get(plain, plain)


def did_you_mean(word: str, options: Sequence[str]) -> str:
    """Ask for what was probably meant: the nearest option, or the first three of several that are as near."""
    plain = plain_name(word)

    def likeness(option: str) -> tuple[float, float]:  # a missing or wrong section counts little
        leaves = plain.rpartition(".")[2], option.lower().rpartition(".")[2]
        return SequenceMatcher(None, *leaves).ratio(), SequenceMatcher(None, plain, option.lower()).ratio()

    found = {option: likeness(option) for option in options}
    best = max(found.values())
    *others, last = [f"`{option}`" for option in found if found[option] == best][:3]
    return f"did you mean {' or '.join(filter(None, (', '.join(others), last)))}?"


def unknown_key(key: str, value: Any, options: Sequence[str]) -> str:
    """Say that there is no such key, and which was probably meant."""
    return f"{key}={show(value)} has an unknown key; {did_you_mean(key, options)}"


def misfit(key: str, value: Any, field: FieldInfo) -> str:
    """Say that a value does not fit its key, and what would."""
    line = f"{key}={show(value)} must be {rule(key, field)}"
    choices = choices_of(field)
    if isinstance(value, str) and get_close_matches(plain_name(value), map(str.lower, choices)):
        return f"{line}; {did_you_mean(value, choices)}"
    if choices or isinstance(field.default, (bool, int, float)):
        return f"{line}; the default is {show(field.default)}"
    return line


def rule(key: str, field: FieldInfo) -> str:
    """Return the field's description, which is its rule in words; a few types speak for themselves."""
    if field.description:
        return field.description
    if choices := choices_of(field):
        return "one of " + ", ".join(choices)
    if field.annotation is bool:
        return "true or false"
    return "text; quote it" if field.annotation is str else f"a section of keys; write {key}.KEY=VALUE"


def choices_of(field: FieldInfo) -> list[str]:
    """List a choice's values as they are written; nothing for what is no choice."""
    for registry in (rule.registry for rule in field.metadata if isinstance(rule, OneOf)):
        return [*registry]
    return [show(choice) for choice in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
