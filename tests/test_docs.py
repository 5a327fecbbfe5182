"""README and the pages of docs/: their links lead somewhere, their commands and keys exist, their programs run."""

import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from run_helpers import ROOT, TINY_RUN
from typer.main import get_command

from trm_ray.cli import app
from trm_ray.config import Config, SweepConfig, config_names, known_keys, load_config, load_sweep
from trm_ray.config.keys import Settings, section_of
from trm_ray.kinds.registry import KINDS
from trm_ray.runs.data import complete, complete_trials
from trm_ray.training.inference import Solution

README, DOCS, CONFIGS = ROOT / "README.md", ROOT / "docs", ROOT / "configs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
ARGUMENTS = [kind.arguments for kind in KINDS.values() if kind.arguments]
KIND_KEYS = [f"generator.{key}" for arguments in ARGUMENTS for key in known_keys(arguments)]
KEYS = {*known_keys(), *known_keys(SweepConfig), *KIND_KEYS}
NAMES_OF_PLACES = {*Config.model_fields, *SweepConfig.model_fields}  # `generator`, `asha` …, which hold keys


def blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of a language, each with its page."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.M | re.S)
    return [(page, block) for page, text in TEXTS.items() for block in fence.findall(text)]


def prose(text: str) -> str:
    """A page without its blocks, lines joined where they were wrapped."""
    return re.sub(r"(?<=\S)\n *(?=[\w`])", " ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


# ---- the front page --------------------------------------------------------------------------------------------------


def test_readme_is_a_front_page():
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_readme_names_every_page():
    assert [
        page.name for page in PAGES[1:] if f"| [docs/{page.name}](docs/{page.name}) |" not in TEXTS["README.md"]
    ] == []


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_a_page_begins_with_what_one_can_do_after_it(page: Path):
    title, _, opening = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert opening.startswith("After this page you ")


# ---- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#{1,6} (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: str, text: str) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text))):
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place
        there = target.read_text(encoding="utf-8") if anchor and target.is_file() else text
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(there))):
            yield link


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str):
    assert list(broken(page, TEXTS[page])) == []


def test_every_file_and_room_that_is_named_is_there():
    named = {word for text in TEXTS.values() for word in re.findall(r"\b(?:trm_ray|tests)/[a-z_/]+(?:\.py)?", text)}
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


def test_the_house_in_the_readme_has_every_room():
    house = TEXTS["README.md"].partition("\ntrm_ray/ ")[2].partition("```")[0]
    rooms = set(re.findall(r"^  ([a-z_]+(?:/|\.py)) ", house, re.M)) - {"task/"}
    package = ROOT / "trm_ray"
    there = {f"{path.name}/" if path.is_dir() else path.name for path in package.iterdir() if path.name[0] not in "_."}
    assert rooms == there


def test_a_dead_link_is_found():
    dead = ["docs/no.md", "docs/train.md#no", "#no"]
    text = "# Title\n\n" + "\n".join(f"[here]({link})" for link in [*dead, "docs/train.md#look", "#title", "LICENSE"])
    assert list(broken("README.md", text)) == dead


# ---- commands --------------------------------------------------------------------------------------------------------


def commands_in(block: str) -> Iterator[list[str]]:
    """The words after each `trm-ray`: at the beginning of a line, after another command, or in quotes as its word."""
    for line in block.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no shell's: what a command prints
            continue
        for number, word in enumerate(words):
            before = words[number - 1] if number else ""
            if word == "trm-ray" and words[0] != "$" and not before.startswith("--"):  # after $: wrong on purpose
                ends = [at for at, later in enumerate(words) if at > number and later in ("<<<", ">", "|", "&&")]
                yield words[number + 1 : min(ends, default=len(words))]
            elif word.startswith("trm-ray "):
                yield from commands_in(word)


COMMANDS = [
    pytest.param(words, id=f"{page}: {shlex.join(words)}")
    for page, block in blocks("(?:bash)?")
    for words in commands_in(block)
]


def command_of(words: Sequence[str]) -> tuple[list[str], object]:
    """The names that lead to a command, and the command."""
    found, names = get_command(app), []
    while inner := getattr(found, "commands", None):
        word = next(iter(words[len(names) :]), "")
        if not word or (word not in inner and found.invoke_without_command):
            break
        names.append(word)
        found = inner[word]
    return names, found


def load(command: str, params: dict) -> None:
    """Resolve what a command's `key=value` words make of its config: each key exists, and each value fits."""
    overrides = params.get("overrides") or []
    name = params.get("name") or params.get("config_name")
    name = "deep_supervision_linear" if name and name.endswith(".yaml") else name  # of a run that is not there
    if command == "sweep" or name in config_names("sweep", CONFIGS):
        complete_trials(load_sweep(name, overrides, config_dir=CONFIGS))
    elif name is not None:
        complete(load_config(name, overrides, config_dir=CONFIGS))


def read(words: list[str]) -> None:
    """Read words as the command that they name would, without running it."""
    names, command = command_of(words)
    context = command.make_context(" ".join(names), words[len(names) :])  # type: ignore[attr-defined]
    if names == ["submit"]:
        read(context.params["command"])
    else:
        load(names[-1], context.params)


def test_commands_are_found_wherever_they_stand():
    block = "trm-ray bench  # speed\ntimeout 9 trm-ray train lr=1 \\\n  seed=2 && cmp a b\n$ trm-ray no\n"
    block += 'aws --stack-name trm-ray --x y\nray exec cluster.yaml "trm-ray sweep a"'
    assert list(commands_in(block)) == [["bench"], ["train", "lr=1", "seed=2"], ["sweep", "a"]]
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_can_be_read_and_its_keys_exist(words: list[str]):
    read(words)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_and_options_named_in_the_text_exist(page: str):
    for told in re.findall(r"`trm-ray ([a-z][^`]*)`", prose(TEXTS[page])):
        words = [word for word in told.split() if word not in ("…", "NAME")]
        _, command = command_of(words)
        options = {name for parameter in getattr(command, "params", []) for name in parameter.opts}
        named = {word for word in words if word.startswith("--")} if words[0] != "submit" else set()
        assert named <= options | {"--help", "--verbose"}, told


@pytest.mark.parametrize("page", TEXTS)
def test_keys_named_in_the_text_exist(page: str):
    places = "|".join(sorted(NAMES_OF_PLACES & {"arch", "ray", "generator", "asha"}))
    told = re.findall(rf"`'?((?:{places})\.[A-Za-z_]+)(?:=[^`]*)?`", prose(TEXTS[page]))
    assert set(told) - KEYS - {f"arch.{name}" for name in ("mlp_t", "loss")} == set()


def test_the_keys_that_people_change_first_exist():
    rows = re.findall(r"^\| (`[^|]+) \|", TEXTS["docs/train.md"].partition("| key | default |")[2], re.M)
    told = {key for row in rows for key in re.findall(r"`([\w.]+)`", row)}
    assert {"lr", "deep_supervision_weight", "ray.num_workers"} <= told
    assert told - KEYS == set()


# ---- programs --------------------------------------------------------------------------------------------------------


def flat_arch() -> list[tuple[str, object]]:
    """The tiny run's keys, `arch` as a mapping in YAML."""
    arch = {key.partition(".")[2]: value for key, value in TINY_RUN.items() if key.startswith("arch.")}
    plain = [(key, value) for key, value in TINY_RUN.items() if "." not in key]
    return [*plain, ("arch", "{" + ", ".join(f"{key}: {value}" for key, value in arch.items()) + "}")]


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a tiny task of the name that the pages use."""
    task = tmp_path / "configs" / "task" / "sudoku4.yaml"
    task.parent.mkdir(parents=True)
    generator = "generator: {name: sudoku, size: 4, train: 40, test: 16, seed: 0}"
    values = [f"{key}: {value}" for key, value in flat_arch() if value is not None]
    task.write_text("\n".join(["data_paths: [data/sudoku4]", generator, *values]))
    monkeypatch.chdir(tmp_path)


PYTHON = [pytest.param(block, id=f"{page}-{number}") for number, (page, block) in enumerate(blocks("python"))]


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("program", PYTHON)
def test_every_program_runs(program: str):
    found: dict[str, object] = {}
    exec(compile(program, "a page", "exec"), found)
    if "trm_ray.solve" in program:
        assert isinstance(found["solution"], Solution)
        assert found["solution"].logits.shape[1:] == (1, 16, 6)
        assert Path("runs/four/final_model/state.pt").is_file()
    else:
        assert Path("data/sorting/dataset.json").is_file()


def test_there_are_programs():
    assert len(PYTHON) == 2


# ---- the page of the keys --------------------------------------------------------------------------------------------


spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
assert spec is not None
assert spec.loader is not None
page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page)


def test_config_md_is_what_make_docs_writes():
    assert TEXTS["docs/config.md"] == page.reference(), "run `make docs`"


def test_the_page_is_printed_in_utf_8(capsysbinary: pytest.CaptureFixture[bytes]):
    page.main()
    assert capsysbinary.readouterr().out == page.reference().encode()


def test_the_page_has_every_key_once_and_those_of_a_kind_once_a_kind():
    rows = re.findall(r"^\| `([\w.]+)` \|", page.reference(), re.M)
    assert sorted(rows) == sorted([*known_keys(), *known_keys(SweepConfig), *KIND_KEYS])


@pytest.mark.parametrize("model", [Config, SweepConfig, *ARGUMENTS], ids=lambda model: model.__name__)
def test_every_key_has_a_meaning(model: type[Settings]):
    sections = [section for field in model.model_fields.values() if (section := section_of(field))]
    for owner in (model, *sections):
        meanings, fields = page.field_meanings(owner), owner.model_fields
        assert [name for name, field in fields.items() if not section_of(field) and not meanings[name]] == []


def test_a_meaning_is_the_remark_on_the_line_or_those_above_it():
    meanings = page.field_meanings(SweepConfig)
    assert meanings["keep"] == "scenarios that are never stopped early"
    assert meanings["seeds"] == "several give a spread"
