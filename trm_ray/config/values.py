"""Read values as they were meant: text as it stands, numbers in decimal, and nothing that YAML would drop in silence.

YAML 1.1, which PyYAML reads, takes `010` for 8, `1:30` for 90, `2026-11-25` for a date, `1e-4` for text and ` #2` for
a remark. Here numbers are decimal, and what else looks like one stays text, which the number's key refuses with both
readings. A key whose type is text takes the characters themselves.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from trm_ray.config.errors import ConfigError, show
from trm_ray.config.keys import DECIMAL_FLOAT, DECIMAL_INT, SECTIONS, find_field
from trm_ray.config.run import Config, known_keys
from trm_ray.config.sweep import SweepConfig

# What PyYAML raises besides its own errors: no UTF-8; no such key; brackets in brackets in brackets …
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_TAG = "tag:yaml.org,2002:"
_PLAIN = (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool")
_WITHOUT_MEANING = (yaml.AnchorToken, yaml.DirectiveToken, yaml.DocumentStartToken, yaml.DocumentEndToken)


class _Loader(yaml.SafeLoader):
    """Read YAML as its version 1.2 does, but numbers in decimal alone."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # as PyYAML types it


class _Dumper(yaml.SafeDumper):
    """Write YAML that both versions read alike: text that either would take for something else is quoted."""


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    ("int", DECIMAL_INT, list("-+0123456789")),
    ("float", rf"{DECIMAL_FLOAT}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Dumper.add_implicit_resolver(f"{_TAG}float", re.compile(rf"(?:{DECIMAL_FLOAT})\Z"), list("-+.0123456789"))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    if not re.fullmatch(DECIMAL_INT, node.value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is no decimal number", node.start_mark)
    return int(node.value)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    """Read a number; one beyond all floats stays text, which its key refuses as it was written."""
    if node.value.lower().endswith((".inf", ".nan")):
        return float(node.value.replace(".", ""))
    value = float(node.value)
    return value if abs(value) < float("inf") else str(node.value)


_Loader.add_constructor(f"{_TAG}int", _construct_int)
_Loader.add_constructor(f"{_TAG}float", _construct_float)


# ---- which keys take text --------------------------------------------------------------------------------


@functools.cache
def _text_keys() -> frozenset[str]:
    return frozenset(
        key
        for model in (Config, SweepConfig)
        for key in known_keys(model)
        if _is_text(find_field(model, key).annotation)
    )


def _is_text(kind: Any) -> bool:
    """Tell whether a type holds text: alone, in a list, as a choice of words, or null instead."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return all(isinstance(choice, str) for choice in inner)
    if origin is Annotated:
        return _is_text(inner[0])
    if origin in (Union, UnionType):
        return all(_is_text(each) for each in inner if each is not type(None))
    return _is_text(inner[0]) if origin is list else kind is str


def _takes_text(key: str) -> bool:
    """Tell whether what belongs to a key, also to a run's key inside a sweep, is text."""
    return key.removeprefix("overrides.").removeprefix("search_space.") in _text_keys()


# ---- files -----------------------------------------------------------------------------------------------


def load_yaml(text: str) -> Any:
    """Read a YAML document of keys: instead of PyYAML's `safe_load`, and with its errors."""
    return parse_yaml(text)[0]


def dump_yaml(values: Any) -> str:
    """Write values so that `load_yaml` reads the same back, and so does any other reader of YAML."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse_yaml(text: str, key: str = "") -> tuple[Any, yaml.Node | None]:
    """Read a YAML document of keys, or the value of one, and the nodes that tell where each stands."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        node = _spelt(node, key)
        return loader.construct_document(node), node
    finally:
        loader.dispose()


def _spelt(node: yaml.Node, key: str) -> yaml.Node:
    """Return what belongs to a key with its text, and that of keys inside it, as it is spelt."""
    if _takes_text(key):
        return _as_text(node, {})
    if isinstance(node, yaml.MappingNode) and (not key or key.rpartition(".")[2] in SECTIONS):
        prefix = f"{key}." if key else ""
        node.value = [(name, _spelt(value, f"{prefix}{key_of(name)}")) for name, value in node.value]
    return node


def _as_text(node: yaml.Node, seen: dict[int, yaml.Node]) -> yaml.Node:
    """Return a node with what looks like a number or a truth value in it as text; `seen` copies each node once."""
    if id(node) in seen:
        return seen[id(node)]
    if isinstance(node, yaml.ScalarNode):
        plain = node.style is None and node.tag in _PLAIN
        seen[id(node)] = yaml.ScalarNode(f"{_TAG}str" if plain else node.tag, node.value, *_marks(node))
        return seen[id(node)]
    copy = type(node)(node.tag, [], *_marks(node))
    seen[id(node)] = copy
    if isinstance(node, yaml.MappingNode):
        copy.value = [(name, _as_text(value, seen)) for name, value in node.value]
    else:
        copy.value = [_as_text(value, seen) for value in node.value]
    return copy


def key_of(node: yaml.Node) -> str:
    """Return a key as it is written; a list or a mapping, which no key is, has no name."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _marks(node: yaml.Node) -> tuple[Any, Any]:
    return node.start_mark, node.end_mark


# ---- the command line ------------------------------------------------------------------------------------


def read_value(key: str, text: str, label: str | None = None) -> Any:
    """Read what was typed after `key=`.

    A key of text takes the characters as they are, but for `null`, 'quoted' and "quoted" text, and a [list]; any other
    key takes a YAML value.

    Args:
        label: what errors call the key.

    Raises:
        ConfigError: it can be read in no way, or YAML would drop some of it.
    """
    label = label or key
    if not text:
        raise ConfigError(f"{label}= has no value; write {label}=VALUE, or {label}=null where none is meant")
    is_text = _takes_text(key) and not key.startswith("search_space.")
    if is_text and not _is_written(text):
        return None if text == "null" else text
    given = f"{label}={show(text)}"
    try:
        value, node = parse_yaml(text, key)
        tokens = list(yaml.scan(text))  # after it: of brackets in brackets the scanner alone makes seconds
    except (yaml.YAMLError, *UNREADABLE):
        rule = "begins like quoted text or a list and does not go on like it" if is_text else "must be a YAML value"
        raise ConfigError(f"{given} {rule}; put it in quotes") from None
    _refuse_loss(given, text, tokens, node)
    return value


def _refuse_loss(given: str, text: str, tokens: Sequence[Any], node: yaml.Node | None) -> None:
    """Refuse what YAML would drop or change without a word."""
    if dropped := _dropped(text, tokens):
        kept = text.partition(dropped)[0] if dropped.startswith("#") else text.replace(dropped, "", 1)
        rest = f"YAML drops `{show(dropped)}`; leave that out, or put all of it in quotes"
        raise ConfigError(f"{given} would be read as {show(kept.strip())}, for {rest}")
    if any(isinstance(token, yaml.ScalarToken) and token.start_mark.line < token.end_mark.line for token in tokens):
        raise ConfigError(f"{given} has a line end, of which YAML makes a blank; write it on one line")
    for name in _twice(node):
        raise ConfigError(f"{given} gives `{name}` twice; remove one")


def _is_written(text: str) -> bool:
    """Tell whether text is quoted, or a list."""
    return text[0] in "'\"" or (text[0], text[-1]) == ("[", "]")


def _dropped(text: str, tokens: Sequence[Any]) -> str:
    """Return what YAML reads and forgets: a remark to the end of its line, an anchor, a mark of a document."""
    position = 0
    for token in tokens:
        between = text[position : token.start_mark.index]
        if "#" in between:
            return between[between.index("#") :].splitlines()[0]
        if isinstance(token, _WITHOUT_MEANING):
            return text[token.start_mark.index : token.end_mark.index]
        position = max(position, token.end_mark.index)
    return ""


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Yield keys that a mapping gives twice, of which YAML would keep the last."""
    names: set[str] = set()
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key_of(name) in names:
            yield key_of(name)
        names.add(key_of(name))
        yield from _twice(value)


def typed(value: Any) -> str:
    """Write a value as the command line reads it: text as it is where that is clear, the rest as JSON."""
    if isinstance(value, str) and value and value != "null" and not _is_written(value):
        return value
    return json.dumps(value, ensure_ascii=False)
