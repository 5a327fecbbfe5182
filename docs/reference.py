"""Write docs/config.md: every key with its type, its default, its rule and what it means.

What a key means is the remark on its line, or on the lines above it, where it is declared: it is written there once.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from trm_ray.config.errors import choices_of, rule, show
from trm_ray.config.keys import Settings, section_of
from trm_ray.config.run import Config, Generator
from trm_ray.config.sweep import SweepConfig
from trm_ray.kinds.registry import KINDS

_HEAD = """\
# Every key

After this page you can write a config, a sweep file or a `key=value` word without looking into the code:

```bash
trm-ray train --config-name deep_supervision_linear task=sudoku6 lr=5e-5 arch.H_cycles=2 log_dir=runs/mine
trm-ray sweep --config-name five_scenarios 'seeds=[0,1,2]' asha.grace_period=200 'search_space.lr=[1e-3,4e-3]'
```

`make docs` writes this page from `trm_ray/config/` and `trm_ray/kinds/`; change the words there. The defaults are those
of the code: a scenario, a task and `key=value` go before them, the last before all. Where two keys must fit together
(`global_batch_size` and `ray.num_workers`, `keep_best` and `keep_last` …), the error names both and a way out.
[train.md](train.md#scenarios-tasks-and-keys) says which keys people change first.
"""
_RUNS = "Of `trm-ray train`, of files in `configs/` and `configs/task/`, and of everything that takes a run's keys."
_SWEEPS = "Of `trm-ray sweep` and of files in `configs/sweep/`. Any other key is a run's and holds for all trials."
_COLUMNS = "| key | type | default | rule | meaning |\n|---|---|---|---|---|"


def reference() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, *_chapter("Runs", _RUNS, Config), *_chapter("Sweeps", _SWEEPS, SweepConfig)]
    return "\n".join(parts)


def main() -> None:
    """Print the page, in UTF-8 whatever the terminal's encoding."""
    sys.stdout.buffer.write(reference().encode())


def _chapter(title: str, told: str, model: type[Settings]) -> Iterator[str]:
    """Yield a model's own keys, then a section for each of its sections."""
    yield f"## {title}\n\n{told}\n\n{_table(model, '')}\n"
    for name, field in model.model_fields.items():
        if section := section_of(field):
            told = (inspect.getdoc(section) or "").replace(f" (`{name}.*`)", "")
            yield f"### `{name}.*`\n\n{told}\n\n{_table(section, f'{name}.')}\n"
        if section is Generator:
            yield from _kinds()


def _kinds() -> Iterator[str]:
    """Yield what each kind that can be made takes."""
    for name, kind in KINDS.items():
        if kind.arguments:
            told = inspect.getdoc(kind.arguments)
            yield f"#### `generator.name={name}`\n\n{told}\n\n{_table(kind.arguments, 'generator.')}\n"


def _table(model: type[Settings], prefix: str) -> str:
    meanings, fields = field_meanings(model), model.model_fields
    rows = [_row(prefix + name, field, meanings[name]) for name, field in fields.items() if not section_of(field)]
    return "\n".join([_COLUMNS, *rows])


def _row(key: str, field: FieldInfo, meaning: str) -> str:
    default = "must be given" if field.is_required() else f"`{_default(field)}`"
    kind = "choice" if choices_of(field) else _type(field.annotation)
    cells = [f"`{key}`", kind, default, rule(key, field), meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    value = field.default
    return f"{value:g}" if isinstance(value, float) else show(value)


def _type(kind: Any) -> str:
    """Name a type as people do; null where it is allowed."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in inner)
    if origin is Literal:
        return "choice"
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return {2: "pair", 3: "triple"}[len(inner)]
    return _NAMES[origin or kind]


_NAMES = {bool: "boolean", int: "whole number", float: "number", str: "text", dict: "keys", type(None): "null"}


def field_meanings(model: type[Settings]) -> dict[str, str]:
    """Read what each field means off its class, or one that this builds on: the remark on its line or those above."""
    owners = [owner for owner in reversed(model.__mro__) if issubclass(owner, Settings)]
    return {name: meaning for owner in owners for name, meaning in _own_meanings(owner).items()}


def _own_meanings(model: type[Settings]) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(model))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    remarks = {token.start[0]: token.string.lstrip("# ") for token in comments}
    alone = {token.start[0] for token in comments if token.line.lstrip().startswith("#")}
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {
        node.target.id: _remark(node, remarks, alone)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _remark(node: ast.AnnAssign, remarks: dict[int, str], alone: set[int]) -> str:
    if node.end_lineno in remarks:
        return remarks[node.end_lineno]
    first = node.lineno
    while first - 1 in alone:
        first -= 1
    return " ".join(remarks[line] for line in range(first, node.lineno))


if __name__ == "__main__":
    main()
