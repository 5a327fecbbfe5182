"""Clumsy and hostile input: each ends in one line and an exit code, and leaves everything as it was.

A row of the table is a command in a folder that holds a good example of everything (`world`), after one thing in it
was spoilt. Exit code 2 is the user's mistake, 1 a failure. What Typer finds itself keeps Typer's frame, and names the
option.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import SHAPE, tiny_config
from prediction_helpers import checkpoint
from replay_helpers import SOLVED, write_run
from run_helpers import laid_over, some_puzzles, tiny_overrides
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from trm_ray.cli import app
from trm_ray.config import to_yaml
from trm_ray.interop.original import to_original
from trm_ray.interop.portable import write_portable
from trm_ray.training.checkpoint import load_checkpoint
from trm_ray.training.state import build_model

Spoil = Callable[[], object]  # works on the current folder, a copy of the world


# ---- the world -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good dataset, run, checkpoint, CSV, ARC file and folder of the original."""
    root = tmp_path_factory.mktemp("world")
    some_puzzles(root / "data", train=16, test=5)
    checkpoint(root / "run" / "final_model")
    config = tiny_config(data_paths=["data"], log_dir="run")
    (root / "run" / "config.yaml").write_text(to_yaml(config))
    (root / "run" / "metrics.jsonl").write_text('{"step": 1, "wall_s": 0.5}\n{"step": 2, "wall_s": 1.0}\n')
    model = build_model(config, SHAPE).state_dict()
    state = {"config": config.model_dump(mode="json"), "shape": vars(SHAPE), "step": 1, "model": model}
    write_portable(root / "model.safetensors", state, None)
    torch.save(to_original(model, torch.float32), root / "step_1")
    (root / "puzzle.txt").write_text("1...\n....\n....\n....\n")
    _write_csv(root / "puzzles.csv")
    grid = {"input": [[0, 1]], "output": [[1, 0]]}
    (root / "arc_training_challenges.json").write_text(json.dumps({"task": {"train": [grid], "test": [grid]}}))
    _write_original(root / "original")
    return root


def _write_csv(path: Path, **changed: str) -> None:
    solved = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
    row = {"source": "mine", "question": "." + solved[1:], "answer": solved, "rating": "1", **changed}
    other = f"mine,...{solved[3:]},{solved},1"
    path.write_text("\n".join(["source,question,answer,rating", other, ",".join(row.values())]) + "\n")


def _write_original(folder: Path) -> None:
    """Two boards of 4 cells a split, as the original's builders write them."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        told = {"seq_len": 4, "vocab_size": 6, "num_puzzle_identifiers": 1, "total_groups": 2, "pad_id": 0}
        told |= {"blank_identifier_id": 0, "ignore_label_id": 0, "sets": ["all"]}
        (folder / split / "dataset.json").write_text(json.dumps(told))
        arrays = {"inputs": np.ones((2, 4)), "labels": np.full((2, 4), 2), "puzzle_identifiers": np.zeros(2)}
        arrays |= {"puzzle_indices": np.arange(3), "group_indices": np.arange(3)}
        for name, array in arrays.items():
            np.save(folder / split / f"all__{name}.npy", array.astype(np.int32))
    (folder / "identifiers.json").write_text('["<blank>"]')


def tree(root: Path) -> dict[str, Any]:
    """Everything below a folder: kind, and of files what they hold and when they were written."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        told = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(told.st_mode) else None
        found[str(path.relative_to(root))] = (told.st_mode, content, told.st_mtime_ns if content is not None else 0)
    return found


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(words))


# ---- how to spoil things ---------------------------------------------------------------------------------


class Ran:
    """A pickle of this would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def put(path: str, content: str | bytes) -> Spoil:
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def two_runs(of: int = 3, steps: Sequence[int] = (1, 2, 3)) -> Spoil:
    """Put two finished runs there, or two that end at half of their steps."""

    def make() -> None:
        for name, quality in (("a", 0.5), ("b", 0.4)):
            rows = [{"step": step, "wall_s": 1.0 * step, "eval/loss": 1.0, SOLVED: quality} for step in steps]
            write_run(Path("two") / name, name, 0, rows, max_steps=of)

    return make


def gone(path: str) -> Spoil:
    return Path(path).unlink if "." in Path(path).name else (lambda: shutil.rmtree(path))


def cut(path: str, share: float = 0.5) -> Spoil:
    return lambda: os.truncate(path, int(os.stat(path).st_size * share))


def edited(path: str, **changes: Any) -> Spoil:
    """Change keys of a JSON file; `None` removes one."""

    def spoil() -> None:
        told = {**json.loads(Path(path).read_text()), **changes}
        Path(path).write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))

    return spoil


INFO, PART, NAMES = "data/dataset.json", "data/train/part-00000.parquet", "data/identifiers.json"


def as_recorded(path: str, spoil: Spoil) -> Spoil:
    """Spoil a file of the dataset by somebody who knows to change its checksum too."""

    def both() -> None:
        spoil()
        digest, name = hashlib.sha256(Path(path).read_bytes()).hexdigest(), path.removeprefix("data/")
        info = json.loads(Path(INFO).read_text())
        files = info["files"] if name in info["files"] else info["splits"][name.partition("/")[0]]["files"]
        files[name] = digest
        Path(INFO).write_text(json.dumps(info))

    return both


def files_named(name: str) -> Spoil:
    return edited(INFO, files={"identifiers.json": "0", name: "0"})


def linked_out() -> None:
    Path(PART).rename("elsewhere.parquet")
    Path(PART).symlink_to(Path("elsewhere.parquet").resolve())


def other_columns() -> None:
    pq.write_table(pa.table({"inputs": [1, 2]}), PART)


def state(**changes: Any) -> Spoil:
    """Change what the run's checkpoint holds, whatever keeps count of its bytes left out."""

    def spoil() -> None:
        folder = Path("run/final_model")
        held = {**load_checkpoint(folder), **changes}
        for path in folder.iterdir():
            path.unlink()
        torch.save({key: value for key, value in held.items() if value is not ...}, folder / "state.pt")

    return spoil


def state_file(content: bytes) -> Spoil:
    def spoil() -> None:
        Path("run/final_model/state.pt").write_bytes(content)
        Path("run/final_model/manifest.json").unlink(missing_ok=True)

    return spoil


def portable(**metadata: str) -> Spoil:
    """Write a safetensors file with such metadata over the one that is good."""
    good = {"trm_ray_format_version": "1", "config": to_yaml(tiny_config()), "shape": json.dumps(vars(SHAPE))}
    return lambda: save_file({"x": torch.zeros(1)}, "model.safetensors", {**good, "step": "1", **metadata})


def array(name: str, content: np.ndarray | bytes) -> Spoil:
    path = f"original/train/all__{name}.npy"
    if isinstance(content, bytes):
        return put(path, content)
    return lambda: np.save(path, content, allow_pickle=True)


def nothing() -> None:
    """Leave the world as it is."""


BOMB = "a: &a [x, x]\n" + "".join(f"{chr(c + 1)}: &{chr(c + 1)} [*{chr(c)}, *{chr(c)}]\n" for c in range(97, 121))
DEEP = "[" * 3_000


# ---- the table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A command, what it tells (a regular expression), and what was spoilt before; usage: Typer tells it."""

    words: str | tuple[str, ...]
    told: str
    spoil: Spoil = nothing
    code: int = 2
    usage: bool = False

    @property
    def arguments(self) -> list[str]:
        return self.words.split() if isinstance(self.words, str) else list(self.words)

    @property
    def called(self) -> str:
        return f"{' '.join(self.arguments)[:60]}: {self.told[:50]}"


def train(*words: str) -> tuple[str, ...]:
    usual = [*tiny_overrides(), "data_paths=[data]", "log_dir=new", "ray.num_workers=0"]
    return ("train", *laid_over(usual, words))


def config_file(content: str | bytes, told: str) -> Bad:
    return Bad("train --config-name bad.yaml", told, put("bad.yaml", content))


def dataset(spoil: Spoil, told: str) -> Bad:
    return Bad(train(), told, spoil)


def model(spoil: Spoil, told: str) -> Bad:
    return Bad("predict run puzzle.txt", told, spoil)


def original(spoil: Spoil, told: str) -> Bad:
    return Bad("prepare import-original original --output new", told, spoil)


OVERRIDES = [
    Bad(train("learning_rate=1e-3"), r"learning_rate=.* unknown key; did you mean `lr`\?"),
    Bad(train("arch.hiden_size=64"), r"arch\.hiden_size=64 .* did you mean `arch\.hidden_size`"),
    Bad(train("lr=fast"), "lr=fast must be a number above 0; the default is 0.0001"),
    Bad(train("lr=-1"), "lr=-1 must be a number above 0"),
    Bad(train("lr=.nan"), "lr=NaN must be a number above 0"),
    Bad(train("lr=.inf"), "lr=Infinity must be a number above 0"),
    Bad(train("lr=["), r"lr=\[ must be a YAML value; put it in quotes"),
    Bad(train(f"lr={DEEP}"), r"lr=\[+\.\.\. must be a YAML value"),
    Bad(train("lr=!!python/object/apply:os.system [touch hacked]"), "lr=.* must be a YAML value"),
    Bad(train("seed=-1"), r"seed=-1 must be a whole number from 0 to below 2\*\*32"),
    Bad(train("seed=4294967296"), r"seed=4294967296 must be .* below 2\*\*32"),
    Bad(train("max_steps=0"), "max_steps=0 must be a whole number of at least 1 or null"),
    Bad(train("max_steps=2.5"), "max_steps=2.5 must be a whole number"),
    Bad(train("max_steps=null"), "max_steps=null must be given when epochs=null; use"),
    Bad(train("global_batch_size=true"), "global_batch_size=true must be a whole number"),
    Bad(train("arch=3"), r"arch=3 must be a section of keys; write arch\.KEY=VALUE"),
    Bad(train("arch.hidden_size=[1]"), r"arch\.hidden_size=\[1\] must be a whole number"),
    Bad(train("arch.mixer=atention"), "arch.mixer=atention must be one of .*did you mean `attention`"),
    Bad(train("arch.mixer=attention", "arch.num_heads=3"), r"arch\.hidden_size=16 must be divisible by .*; use 15"),
    Bad(train("beta1=1"), "beta1=1 must be a number from 0 to below 1"),
    Bad(train("ema=please"), "ema=please must be true or false; the default is false"),
    Bad(train("device=tpu"), "device=tpu must be one of auto, cpu, cuda"),
    Bad(train("data_paths=[]"), r"data_paths=\[\] must name a dataset folder; use"),
    Bad(train("data_paths=[{a: 1}]"), r"data_paths=\[\{a: 1\}\] must be a list of text"),
    Bad(train("data_paths=[1]"), "the dataset folder 1 does not exist"),
    Bad(train("log_dir=s4://bucket/x"), "log_dir=s4://bucket/x: s4:// is no storage that can be written; use s3://"),
    Bad(train("log_dir=https://host/x"), "log_dir=https://host/x: https:// is no storage that can be written"),
    Bad(train("ray.storage_path=s3://me:secret@b/x"), r"ray\.storage_path=s3://…@b/x: .*belong into the environment"),
    Bad(train("ray.storage_path=s3://me:sec/ret@b/x"), r"ray\.storage_path=s3://…@b/x: .*belong into the environment"),
    Bad(train("data_paths=[s3://]"), r"data_paths=\[s3://\]: s3:// names no place; use s3://BUCKET/FOLDER"),
    Bad(train("log_dir="), "log_dir= has no value; write log_dir=VALUE, or log_dir=null"),
    Bad(train("log_dir=null"), "log_dir=null must be text that names a folder"),
    Bad(train("log_dir='new"), "log_dir='new begins like quoted text or a list and does not go on like it"),
    Bad(
        train("log_dir=~nobody-here/x"), r"log_dir=~nobody-here/x: no user nobody-here is known here; write .* \./~nobo"
    ),
    Bad(train("--init-from", ""), "init_from= must be text that names a run, a checkpoint or a file, or null"),
    Bad(train("--init-from", "run #2"), "run #2 does not exist"),
    Bad(train("seed=010"), r"seed=010: 010 is 10 in decimal and 8 in YAML 1\.1 \(octal\); write 10 or 8"),
    Bad(train("lr=1e-3 # fast"), "lr=1e-3 # fast would be read as 1e-3, for YAML drops `# fast`; leave that out"),
    Bad("compare ~nobody-here/x", r"no user nobody-here is known here"),
    Bad("predict run ~nobody-here/x", r"no user nobody-here is known here"),
    Bad(train("task=../../../etc/passwd"), "task=.* must be a name of letters"),
    Bad(train("task=sudoku5"), "task=sudoku5 must name an existing task; did you mean"),
    Bad(train("config_name=other"), "config_name=other must not be overridden; use --config-name other"),
    Bad(train("lr", "=", "1"), "lr must be key=value, without spaces"),
    Bad(train("=3"), "=3 must be key=value"),
    Bad(train("ray.num_workers=3"), r"global_batch_size=8 must be divisible by ray\.num_workers=3; use 6 or 9"),
    Bad(train("ray.num_workers=-1"), r"ray\.num_workers=-1 must be a whole number of at least 0"),
    Bad(train("ray.address=garbage"), r"ray\.address=garbage must be null, local, auto or HOST:PORT"),
    Bad(train("ray.address=http://127.0.0.1:8265"), r"ray\.address=http.* must be null, local, auto or HOST:PORT"),
    Bad(train("ray.address='a b:1'"), r"ray\.address=a b:1 must be null"),
    Bad(
        train("curriculum_enabled=true", "curriculum_start_step=9", "curriculum_end_step=3"), "use curriculum_end_step"
    ),
]

CONFIG_FILES = [
    Bad("train --config-name deep_supervision_liner", "did you mean `deep_supervision_linear`"),
    Bad("train --config-name five_scenarios", "it is a sweep; use `trm-ray sweep --config-name five_scenarios`"),
    Bad("train --config-name /etc/passwd", "config_name=/etc/passwd must be a name of letters"),
    Bad("train --config-name bad.yaml", "config_name=bad.yaml must name an existing", lambda: Path("bad.yaml").mkdir()),
    config_file("lr: [1, 2", r"bad\.yaml:1: must be valid YAML"),
    config_file("- lr\n- 3\n", r"bad\.yaml:1: must be lines of `key: value`"),
    config_file("lr: 1\nlr: 2\n", r"bad\.yaml:2: `lr` is given twice; remove one"),
    config_file("max_steps: 5\nlr: fast\n", r"bad\.yaml:2: lr=fast must be a number above 0"),
    config_file(b"lr: \xff\xfe", r"bad\.yaml: must be valid YAML"),
    config_file(b"\x00\x01\x02", r"bad\.yaml.*: must be valid YAML"),
    config_file("format_version: 99\n", r"bad\.yaml: format_version=99 must be 1; use the trm-ray that wrote it"),
    config_file("lr: !!python/object/apply:os.system ['touch hacked']\n", r"bad\.yaml:1: must be valid YAML"),
    config_file("lr: 2024-99-99\n", r"bad\.yaml:1: lr=2024-99-99 must be a number above 0"),
    config_file(
        "max_steps: 1:30\n", r"bad\.yaml:1: max_steps=1:30: 1:30 is 90 in YAML 1\.1 \(base 60\) and text in YAML"
    ),
    config_file("lr: \t1\n\t- x\n", r"bad\.yaml:1: must be valid YAML"),
    config_file(f"lr: {DEEP}", r"bad\.yaml: must be valid YAML"),
    config_file("{[1]: 2}\n", r"bad\.yaml:1: must be valid YAML"),
    config_file(BOMB, r"bad\.yaml:\d+: .* has an unknown key"),
]

SWEEPS = [
    Bad("sweep --config-name nowhere", "config_name=nowhere must name an existing sweep"),
    Bad("sweep --config-name bad.yaml", r"bad\.yaml:1: must be lines", put("bad.yaml", "3")),
    Bad("sweep learning_rate=1e-3", "learning_rate=.* has an unknown key; did you mean `lr`"),
    Bad("sweep scenarios=[]", r"scenarios=\[\] must be a list of one or more names"),
    Bad("sweep scenarios=[nobody] keep=[]", "nobody must name an existing scenario"),
    Bad("sweep scenarios=[../x] keep=[]", r"scenarios=\[\.\./x\] must be a list, each a name|must be a list of one"),
    Bad("sweep name=../x", r"name=\.\./x must be a name of letters"),
    Bad("sweep keep=[nobody]", "keep=.* must name scenarios, and `nobody` is none"),
    Bad("sweep seeds=[0,0]", r"seeds=\[0, 0\] must not name one twice; use \[0\]"),
    Bad("sweep seed=1", r"seed=1 must not be set in a sweep; use seeds=\[0, 1\]"),
    Bad("sweep search_space.lr=[]", r"search_space\.lr=\[\] must be a list of values"),
    Bad(("sweep", "search_space.lr={uniform: [2.0, 1.0]}"), r"must be \[LOW, HIGH\] with LOW < HIGH"),
    Bad(("sweep", "search_space.lr={gauss: [1.0, 2.0]}"), "have one of uniform, loguniform, choice, randint"),
    Bad("sweep num_samples=3", "num_samples=3 needs a distribution"),
    Bad("sweep group_by=colour", "group_by=colour must be a run key; did you mean"),
    Bad("sweep asha.mode=min", r"asha\.mode=min must be max"),
    Bad("sweep asha.grace_period=9 asha.max_t=3", r"asha\.grace_period=9 must be at most asha\.max_t=3; use"),
    Bad(
        ("sweep", "task=null", "data_paths=[data]", "max_steps=1", "arch.pos_encodings=none", "log_dir=run"),
        r"log_dir=run holds files but no sweep \(config\.yaml, .*\); choose another log_dir",
    ),
]

DATASETS = [
    Bad(train("data_paths=[nowhere]"), "nowhere does not exist; `trm-ray prepare --help` tells"),
    Bad(train(f"data_paths=[{INFO}]"), "dataset folder .* does not exist"),
    dataset(gone(INFO), r"dataset\.json cannot be read: No such file"),
    dataset(put(INFO, "{"), r"dataset\.json is not valid JSON"),
    dataset(put(INFO, DEEP), r"dataset\.json is not valid JSON"),
    dataset(put(INFO, "[]"), r"dataset\.json must hold a JSON object, not list"),
    dataset(put(INFO, b"\xff\x00"), r"dataset\.json is not valid JSON"),
    dataset(
        edited(INFO, format_version=99),
        "format_version=99 is unknown, this release reads 2 and 3; make the dataset again",
    ),
    dataset(edited(INFO, seq_len=...), "not the keys of format 3: it lacks seq_len"),
    dataset(edited(INFO, seq_len="16"), "seq_len='16' has the wrong type"),
    dataset(edited(INFO, seq_len=10**400), "seq_len must be a number of less than 64 bits"),
    dataset(edited(INFO, vocab_size=0), "vocab_size=0 must be at least 1"),
    dataset(edited(INFO, splits={"train": 3}), "splits.train must be an object"),
    dataset(edited(INFO, splits={}), "the dataset has no train split"),
    dataset(edited(INFO, symmetry={"name": "magic"}), "symmetry=.*magic.* is unknown; this release knows sudoku"),
    dataset(edited(INFO, symmetry={"name": "sudoku", "box": [9, 9]}), "symmetry=.* is not for boards of seq_len=16"),
    dataset(edited(INFO, symmetry={"name": "arc"}), "symmetry=.*arc.* is not for boards of seq_len=16"),
    dataset(
        edited(INFO, vocab_size=4, symmetry=None), r"row \d+, token \d+: .* must be at least 0 and below vocab_size=4"
    ),
    dataset(files_named("../../etc/passwd"), r"files holds '\.\./\.\./etc/passwd'.* it must be FILE: SHA-256"),
    dataset(files_named("/etc/passwd"), "files holds '/etc/passwd'"),
    dataset(edited(INFO, files={"identifiers.json": 3}), r"files\.identifiers\.json=3 has the wrong type"),
    dataset(linked_out, "is a link that leads out of the dataset; copy the file"),
    dataset(gone(PART), r"part-00000\.parquet is missing"),
    dataset(cut(PART), r"part-00000\.parquet: the checksum does not match.*changed or damaged"),
    dataset(as_recorded(PART, cut(PART)), r"part-00000\.parquet is not readable Parquet"),
    dataset(as_recorded(PART, put(PART, b"")), r"part-00000\.parquet is not readable Parquet"),
    dataset(as_recorded(PART, other_columns), "its columns are inputs; they must be"),
    dataset(gone(NAMES), r"identifiers\.json is missing"),
    dataset(as_recorded(NAMES, put(NAMES, "{}")), r"identifiers\.json.* is no map of puzzle identifiers"),
    dataset(as_recorded(NAMES, put(NAMES, DEEP)), r"identifiers\.json.* is no map of puzzle identifiers"),
    dataset(
        as_recorded(NAMES, edited(NAMES, num_identifiers=10**15)), "num_identifiers=.* must be a whole number from 1"
    ),
    dataset(
        as_recorded(NAMES, edited(NAMES, num_identifiers=2, puzzles=[{"name": "x", "first": 7}])),
        "puzzle 'x' has identifiers from 7 on; 1 must fit in before 2",
    ),
    dataset(
        as_recorded(NAMES, edited(NAMES, num_identifiers=2, puzzles=[{"name": ["x"], "first": 1}])), "must be text"
    ),
]

PREPARE = [
    Bad("prepare sudoku --output new --size 5", "size=5 is not supported; use 4, 6, 9"),
    Bad("prepare sudoku --output new --train 0", "train=0 must be at least 1"),
    Bad("prepare sudoku --output new --test -3", "test=-3 must be at least 0"),
    Bad("prepare sudoku --output new --seed -1", "seed=-1 must be at least 0"),
    Bad("prepare sudoku --output new --clues 30 2", "clues=30 2 must be MIN ≤ MAX between"),
    Bad("prepare sudoku --output new --difficulty hard", "difficulty='hard' must be singles or any"),
    Bad("prepare sudoku --output new --subsample 3", "--subsample.* among the rows of a file"),
    Bad("prepare sudoku --output run", r"run exists and is no dataset \(.*\); choose another --output"),
    Bad("prepare sudoku --output data", "data already holds a dataset; pass --overwrite"),
    Bad("prepare sudoku --output puzzle.txt", "--output puzzle.txt is a file; choose another --output"),
    Bad("prepare sudoku --output new --from-csv nowhere.csv", r"nowhere\.csv does not exist; pass a CSV file"),
    Bad("prepare sudoku --output new --from-csv puzzle.txt --test 1", r"puzzle\.txt:1: the header is"),
    *(
        Bad(
            "prepare sudoku --output new --test 1 --from-csv puzzles.csv",
            told,
            lambda changed=changed: _write_csv(Path("puzzles.csv"), **changed),
        )
        for changed, told in [
            ({"question": "12"}, r"puzzles\.csv:3: question has 2 characters, '12'; it must have 81"),
            ({"question": "x" * 81}, r"puzzles\.csv:3: x+: "),
            ({"answer": "1" * 81}, r"puzzles\.csv:3: 1+: "),
            ({"rating": "high"}, r"puzzles\.csv:3: rating 'high' must be a number"),
            ({"more": "3"}, r"puzzles\.csv:3: 5 fields; it must have 4"),
        ]
    ),
    Bad("prepare sudoku --output new --from-csv puzzles.csv --test 7", "test=7 is more than the 2 puzzles"),
    Bad("prepare maze --output new --size 1", "size=1 must be at least"),
    Bad("prepare maze --output new --size 6 --min-length 900", "min_length=900"),
    Bad(
        "prepare maze --output new --size 6 --min-length 3 --augment twist", "augment='twist' must be none or dihedral"
    ),
    Bad("prepare arc --input nowhere --subsets training --test-set training --output new", "subset training: there is"),
    Bad("prepare arc --input arc --subsets training --test-set other --output new", "test_set=other must be one of"),
    Bad(
        "prepare arc --input arc --subsets training --test-set training --augmentations -1 --output new",
        "augmentations=-1 must be at least 0",
    ),
    *(
        Bad(
            "prepare arc --input arc --subsets training --test-set training --output new",
            told,
            put("arc_training_challenges.json", content),
        )
        for content, told in [
            ("{", "is not valid JSON"),
            (DEEP, "is not valid JSON"),
            ('{"a": {"train": []}}', "puzzle a: it must have a list of at least one pair under 'train'"),
            ('{"a": {"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{}]}}', "rows of the same length"),
            ('{"a": {"train": [{"input": [[10]], "output": [[1]]}], "test": [{}]}}', "10 is no colour; use 0 to 9"),
        ]
    ),
]

ORIGINALS = [
    Bad("prepare import-original nowhere --output new", r"nowhere/train/dataset\.json cannot be read"),
    original(edited("original/train/dataset.json", sets=["../../data/x"]), r"sets=.* must name at least one set, each"),
    original(edited("original/train/dataset.json", sets=[]), r"sets=\[\] must name at least one set"),
    original(edited("original/train/dataset.json", seq_len="4"), "seq_len='4' must be a whole number"),
    original(edited("original/train/dataset.json", pad_id=3), "pad_id=3 must be 0"),
    original(array("inputs", np.full((2, 4), 9)), "a token is not below vocab_size=6"),
    original(put("original/identifiers.json", "[]"), "0 names; dataset.json says num_puzzle_identifiers=1"),
    original(gone("original/train/all__inputs.npy"), r"all__inputs\.npy is missing"),
    original(array("inputs", b""), r"all__inputs\.npy is no NumPy array that can be mapped"),
    original(array("inputs", b"PK\x03\x04rest"), r"all__inputs\.npy is no NumPy array"),
    original(array("inputs", np.array([Ran()], object)), r"all__inputs\.npy is no NumPy array"),
    original(array("inputs", pickle.dumps(Ran())), r"all__inputs\.npy is no NumPy array"),
    original(cut("original/train/all__inputs.npy", 0.9), r"all__inputs\.npy is no NumPy array"),
    original(array("inputs", np.ones((2, 4))), "it must be whole numbers of 2 dimensions"),
    original(array("puzzle_indices", np.array([0, 2, 1])), "the numbers must rise from 0 to 2"),
]

MODELS = [
    Bad("predict nowhere puzzle.txt", "nowhere does not exist; name the folder of a run"),
    Bad("predict data puzzle.txt", "data holds no checkpoint"),
    model(state_file(b""), r"state\.pt"),
    model(state_file(b"\x80\x04junk"), r"state\.pt"),
    model(state_file(pickle.dumps(Ran())), r"state\.pt"),
    model(lambda: torch.save(Ran(), "run/final_model/state.pt"), r"state\.pt"),
    model(cut("run/final_model/state.pt"), r"state\.pt"),
    model(lambda: torch.save([1, 2], "run/final_model/state.pt"), r"state\.pt"),
    model(state(format_version=1), "format_version=1, this trm-ray reads"),
    model(state(config=...), "holds no config of a run"),
    model(state(config={"lr": "fast"}), "holds no config of a run: "),
    model(state(model=...), "holds no weights by name"),
    model(state(model={"x": 3}), "holds no weights by name"),
    model(state(shape={"seq_len": -1}), "has shape=.*; it must hold seq_len, vocab_size"),
    model(state(shape={**vars(SHAPE), "vocab_size": 10**9}), "contradicts itself: vocab_size=1000000000"),
    model(state(ema={"lm_head.weight": torch.zeros(3)}), "does not fit its own config"),
    Bad("predict step_1 puzzle.txt", "says nothing of its architecture; make a run of it: trm-ray import-checkpoint"),
    Bad("predict model.safetensors puzzle.txt", "cannot be read as safetensors", put("model.safetensors", b"junk")),
    Bad("predict model.safetensors puzzle.txt", "cannot be read as safetensors", cut("model.safetensors")),
    Bad("predict model.safetensors puzzle.txt", "damaged metadata", portable(config="[")),
    Bad("predict model.safetensors puzzle.txt", "its config has YAML aliases", portable(config=BOMB)),
    Bad("predict model.safetensors puzzle.txt", "damaged metadata", portable(shape=DEEP)),
    Bad("predict model.safetensors puzzle.txt", "damaged metadata", portable(step="soon")),
    Bad("predict model.safetensors puzzle.txt", "missing or misshapen|contradicts itself", portable()),
    Bad("export-checkpoint nowhere --output new", "nowhere does not exist"),
    Bad("export-checkpoint run --output puzzle.txt", "puzzle.txt exists; replace it with --overwrite"),
    Bad("import-checkpoint nowhere --output new", "nowhere is no file; name a checkpoint"),
    Bad("import-checkpoint puzzle.txt --output new", "cannot be read as a checkpoint of weights alone"),
    Bad("import-checkpoint hostile --output new", "cannot be read", lambda: torch.save(Ran(), "hostile")),
    Bad(
        "import-checkpoint odd --output new", "holds no state dict|and no state dict", lambda: torch.save({1: 2}, "odd")
    ),
    Bad("import-checkpoint step_1 --output run", "run exists; replace it with --overwrite"),
    Bad(
        "import-checkpoint step_1 --output data --overwrite",
        r"--output data holds files but no run \(dataset.json, .*\); choose another folder",
    ),
    Bad("import-checkpoint step_1 --output new --arch L_cycles", "--arch L_cycles must be KEY=VALUE"),
    Bad("import-checkpoint step_1 --output new --arch L_cycles=[", r"--arch L_cycles=\[ must"),
    Bad(
        "import-checkpoint step_1 --output new --arch L_cycles=010", "arch.L_cycles=010: 010 is 10 in decimal and 8 in"
    ),
    Bad("import-checkpoint step_1 --output new --arch seq_len=many", "arch.seq_len=many must be a whole number of at"),
    Bad("import-checkpoint step_1 --output new --arch colour=3", "--arch colour=3 is no key of an architecture"),
    Bad("import-checkpoint step_1 --output new --config puzzle.txt", "must be lines of `key: value`|cannot be read"),
    Bad("import-checkpoint step_1 --output new --config nowhere", "--config nowhere cannot be read"),
    Bad("import-checkpoint step_1 --output new --identifiers puzzle.txt", "--identifiers puzzle.txt is no map"),
    Bad(train("init_from=nowhere"), "nowhere does not exist"),
    Bad(train("init_from=run"), "another architecture|has other"),
]

RUNS = [
    Bad(train("--resume", "--overwrite"), "--resume and --overwrite exclude each other; choose one"),
    Bad(train("log_dir=data"), r"log_dir=data holds files but no run \(dataset.json, .*\); choose another log_dir"),
    Bad(train("log_dir=puzzle.txt"), "log_dir=puzzle.txt is a file; choose another log_dir"),
    Bad(train("log_dir=run"), "log_dir=run already holds a run; go on with it with --resume"),
    Bad(train("log_dir=run", "--resume"), "differs from the run in run"),
    Bad(train("log_dir=run", "--resume"), r"run/config\.yaml.*must be valid YAML", put("run/config.yaml", "lr: [")),
    Bad(train("log_dir=/proc/nowhere/run"), r"/proc/nowhere.*: No such file or directory", code=1),
    Bad("evaluate nowhere", "nowhere does not exist"),
    Bad("evaluate run --segments 4,x", "--segments=4,x must be whole numbers of at least 1, such as"),
    Bad("evaluate run --augmentations some", "--augmentations=some must be a whole number of at least 0, or all"),
    Bad("evaluate run --data data --split validation", "no validation split; it holds train, test"),
    Bad("evaluate run --data nowhere", "nowhere does not exist"),
    Bad("evaluate run --data data --output puzzle.txt", "--output puzzle.txt must be a folder"),
    Bad("predict run nowhere.txt", r"nowhere\.txt cannot be read: No such file or directory; name a file"),
    Bad("predict run puzzle.txt", "puzzle.txt is empty; give it a puzzle", put("puzzle.txt", " \n")),
    Bad("predict run puzzle.txt", "puzzle.txt cannot be read: it is no text", put("puzzle.txt", b"\xff\x00")),
    Bad("predict run puzzle.txt", "this model solves 4×4 boards of 16", put("puzzle.txt", "123\n")),
    Bad("predict run puzzle.txt", "has the character '9'; use 1 to 4", put("puzzle.txt", "9" * 16)),
    Bad("predict run puzzle.txt --gif out.png", r"--gif out\.png must end with \.gif"),
    Bad("predict run puzzle.txt --gif out.gif --delay 0", "--delay 0 must be at least 20 milliseconds"),
    Bad("dashboard nowhere", "nowhere is not a folder; name the log_dir of a run"),
    Bad("dashboard data", r"data is no run: config\.yaml and metrics\.jsonl missing"),
    Bad("dashboard run", "is a sweep; name one of its trials", put("run/sweep.yaml", "")),
    Bad("dashboard run", r"metrics\.jsonl, line 1 is not a metrics row", put("run/metrics.jsonl", "{\n{}\n{}\n")),
    Bad(
        "dashboard run", r"line 1 is not a metrics row", put("run/metrics.jsonl", '{"step": "x", "wall_s": 1}\n{}\n{}')
    ),
    Bad("dashboard run", r"config\.yaml holds no keys", put("run/config.yaml", "3")),
    Bad("dashboard run", r"config\.yaml is not YAML", put("run/config.yaml", "a: [")),
    Bad("dashboard run", r"config\.yaml is not YAML", put("run/config.yaml", b"\xff\xfe\x00")),
    Bad("compare nowhere", "nowhere does not exist; name a run's folder"),
    Bad("compare data", "no run in data: a run's folder holds"),
    Bad("replay run", "run has no eval/exact_accuracy and must be evaluated"),
    Bad("replay two/a", "all 1 runs are of one group, a; name at least two", two_runs()),
    Bad("replay nowhere", "nowhere does not exist"),
    Bad("replay two", r"two.a ends at step 3 of 6 and must be trained to its end.*asha\.enabled=false", two_runs(of=6)),
    Bad("replay two", r"the 2 runs must all be evaluated at two steps or more, and share \[3\]", two_runs(steps=[3])),
    Bad("replay two --grace 0", r"grace=0 must be from 1 to below the last step, 3; use 1,2", two_runs()),
    Bad("replay two --grace 3", r"grace=3 must be from 1 to below the last step, 3; use 1,2", two_runs()),
    Bad("replay two --grace soon", r"--grace=soon must be whole numbers of at least 1, such as --grace 100,200,400"),
    Bad("replay two --reduction 1", r"reduction=1 must be above 1; use 2,3,4", two_runs()),
    Bad("replay two --reduction half", r"--reduction=half must be numbers above 1, such as --reduction 2,3,4"),
    Bad("replay two --reduction inf", r"reduction=inf must be above 1; use 2,3,4", two_runs()),
    Bad("replay two --metric eval/los", r"metric=eval/los must be one of eval/loss, eval/acc", two_runs()),
    Bad("replay two --metric eval/anytime_accuracy", "must be logged by all runs, and is not; use one of", two_runs()),
    Bad("replay two --unit seed", "unit=seed must be one of trial, group", two_runs()),
    Bad("replay two --keep c", r"keep=c must name the scenario of a run; did you mean `a`", two_runs()),
    Bad("replay two --group-by ls", r"group_by=ls must be a run key; did you mean `lr`", two_runs()),
    Bad("replay two --save nowhere/x.png", "--save nowhere/x.png: there is no folder nowhere; make it first"),
    Bad("compare two --save x.bmp", r"cannot save a picture as x\.bmp: its name must end with", two_runs()),
    Bad("dashboard run --save x.bmp", r"cannot save a picture as x\.bmp: its name must end with"),
    Bad("replay two --save x.bmp", r"cannot save a picture as x\.bmp: its name must end with", two_runs()),
    Bad("bench --preset sudoku7", r"preset=sudoku7 is unknown; did you mean `sudoku6`\? All are sudoku6, text_tiny"),
    Bad("bench --scenarios none", r"scenarios=none is unknown; did you mean .* All are baseline"),
    Bad("bench --steps 0", "steps=0 must be at least 1"),
    Bad("bench --threads -1", "threads=-1 must be at least 1"),
    Bad("bench scaling --workers 1,two", "--workers 1,two must be numbers of at least 1; use e.g. 1,2,4"),
    Bad("bench scaling --workers 3", "global_batch_size=32 must be divisible by ray.num_workers=3; use 30 or 33"),
    Bad("bench scaling --plot nowhere/x.png", "--plot nowhere/x.png: there is no folder nowhere; make it first"),
    Bad("bench projection --recipe cube", "--recipe cube is unknown; use one of arc1, sudoku_extreme"),
    Bad("bench projection --gpus 0", "--gpus 0 must be numbers of at least 1; use e.g. 1,2,4"),
    Bad("bench --save nowhere/x.json", "--json nowhere/x.json: there is no folder nowhere; make it first"),
    Bad("selftest --only flood", "--only flood is unknown; use one of driver, elsewhere, cut"),
    Bad("selftest --only worker", "--only worker needs Ray workers and --workers is 0; use --workers 2"),
    Bad("selftest --folder nowhere", "--folder nowhere is no folder; make it first"),
]

USAGE = [
    Bad("trian", "No such command 'trian'", usage=True),
    Bad("prepare chess", "No such command 'chess'", usage=True),
    Bad("train --config", "No such option: --config|requires an argument", usage=True),
    Bad("evaluate", "(?i)Missing argument '{?run", usage=True),
    Bad("predict run", "(?i)Missing argument '{?puzzle", usage=True),
    Bad("compare", "(?i)Missing argument '{?runs", usage=True),
    Bad("prepare maze", "Missing option '--output'", usage=True),
    Bad("prepare sudoku --output new --size six", "'--size'", usage=True),
    Bad("prepare sudoku --output new --clues 3", "'--clues'|--clues.* requires 2 arguments", usage=True),
    Bad("evaluate run --workers -1", "'--workers'", usage=True),
    Bad("evaluate run --batch-size 0", "'--batch-size'", usage=True),
    Bad("predict run puzzle.txt --segments 0", "'--segments'", usage=True),
    Bad("replay", "(?i)Missing argument '{?sweep", usage=True),
    Bad("replay run --orders -1", "'--orders'", usage=True),
    Bad("compare run --threshold 2", r"^error: --threshold 2 must be from 0 to 1.*; use e\.g\. --threshold 0\.5"),
    Bad("compare run --threshold nan", "'--threshold'", usage=True),
    Bad("export-checkpoint run --output x --format onnx", "'--format'.*'onnx'", usage=True),
    Bad("import-checkpoint step_1 --output x --puzzle-embedding burn", "'--puzzle-embedding'.*'burn'", usage=True),
]

TABLE = [*OVERRIDES, *CONFIG_FILES, *SWEEPS, *DATASETS, *PREPARE, *ORIGINALS, *MODELS, *RUNS, *USAGE]


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.called)
def test_bad_input_ends_in_one_line_and_changes_nothing(
    bad: Bad, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "here"
    shutil.copytree(world, here, copy_function=shutil.copy)
    monkeypatch.chdir(here)
    bad.spoil()
    before = tree(here)
    result = run(*bad.arguments)
    assert result.exit_code == bad.code, f"{result.output} {result.exception!r}"
    assert "Traceback" not in result.output
    assert re.fullmatch(r"(Reading .*\n)?", result.stdout)  # files of others are read before their mistakes are found
    assert re.search(bad.told, result.stderr if bad.usage else one_line(result)), result.stderr
    assert tree(here) == before


def one_line(result: Result) -> str:
    """The error stream, which is one line that begins as errors do."""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "internal error" not in result.stderr
    return result.stderr


def test_the_table_is_long_and_has_every_command():
    rows = {" ".join(bad.arguments): bad for bad in TABLE}
    assert len(TABLE) > 60
    promised = {"train", "sweep", "evaluate", "predict", "dashboard", "compare", "bench", "selftest", "prepare sudoku"}
    promised |= {"prepare maze", "prepare arc", "prepare import-original", "import-checkpoint", "export-checkpoint"}
    assert {name for name in promised if any(words.startswith(name) for words in rows)} == promised


# ---- bugs of ours ----------------------------------------------------------------------------------------


@pytest.fixture
def buggy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise KeyError("colour")

    monkeypatch.setattr("trm_ray.reporting.run_log.read_run", fails)
    monkeypatch.setenv("TRM_RAY_VERBOSE", "0")  # put back afterwards


def test_a_bug_ends_in_one_line_that_says_so(buggy: None):
    result = run("dashboard", "run")
    assert result.exit_code == 1
    told = "error: internal error: KeyError: 'colour' (run with --verbose for the traceback, and report it)"
    assert result.stderr.strip() == told


def test_verbose_shows_the_traceback_before_the_line(buggy: None):
    result = run("dashboard", "run", "--verbose")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.strip().splitlines()[-1].startswith("error: internal error: KeyError")


def test_verbose_keeps_the_exit_code_of_the_user_s_mistake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRM_RAY_VERBOSE", "0")
    result = run("train", "lr=fast", "--verbose")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


# ---- clusters --------------------------------------------------------------------------------------------


ON_RAY = [
    train("ray.num_workers=1"),
    ("evaluate", "run", "--workers", "2"),
    ("sweep", *tiny_overrides(), "data_paths=[data]", "log_dir=new"),
]


@pytest.mark.parametrize("words", ON_RAY, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RAY_ADDRESS", "http://127.0.0.1:8265", r"must be local, auto or HOST:PORT; this is a job server's"),
        ("RAY_ADDRESS", "ray://127.0.0.1:10001", r"must be local, auto or HOST:PORT; Ray Client is not supported"),
        ("RAY_ADDRESS", "127.0.0.1:1", r"does not answer: .*; start a cluster there, or unset RAY_ADDRESS to"),
        ("TMPDIR", "missing", r"must be a folder that can be written to"),
    ],
)
def test_what_the_environment_says_to_ray_is_checked_before_anything_is_touched(
    words: tuple[str, ...],
    name: str,
    value: str,
    told: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    here = tmp_path / "here"
    shutil.copytree(world, here, copy_function=shutil.copy)
    monkeypatch.chdir(here)
    for other in ("RAY_ADDRESS", "TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    before = tree(here)
    result = run(*words)
    assert result.exit_code == (1 if "answer" in told else 2), result.output
    assert re.search(rf"^error: {name}={value} {told}", one_line(result))
    assert tree(here) == before


@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_a_failure_within_seconds(address: str, world: Path, tmp_path: Path):
    """In a process of its own: this one may be part of a cluster already, which would do."""
    shutil.copytree(world, tmp_path / "here")
    words = [sys.executable, "-m", "trm_ray.cli", *train("ray.num_workers=1", f"ray.address={address}")]
    ended = subprocess.run(words, cwd=tmp_path / "here", capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    told = rf"error: ray\.address={address} does not answer: .*; start a cluster there, or leave"
    assert re.fullmatch(told + r".*\n", ended.stderr), ended.stderr
