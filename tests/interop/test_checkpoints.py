"""Checkpoints of the original in and out, safetensors, and weights to begin with."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import TINY_ARCH, assert_same, tiny_config
from safetensors import safe_open
from typer.testing import CliRunner

from trm_ray.cli import app
from trm_ray.config import config_from_run, flat
from trm_ray.data.identifiers import PuzzleIdentifiers
from trm_ray.interop.checkpoints import export_checkpoint, import_checkpoint, initial_weights
from trm_ray.interop.loading import load_model
from trm_ray.interop.original import to_original
from trm_ray.interop.portable import read_portable
from trm_ray.training.checkpoint import load_checkpoint, save_checkpoint
from trm_ray.training.inference import solve
from trm_ray.training.state import TokenShape, TrainState, build_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT.parent / "shared" / "conformance"
CASES = ("att_sudoku", "mlp_sudoku")
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden outputs of the original are not here")

ARCH = {**TINY_ARCH, "ffn_multiple_of": 256, "mixer": "attention", "pos_encodings": "rope"}
ARCH |= {"puzzle_emb_ndim": 24, "puzzle_emb_len": 2, "forward_dtype": "bfloat16", "residual_init_scale": 1.0}
SHAPE = TokenShape(16, 6, 3)
TABLE = "puzzle_embedding.table"
THEIR_TABLE = "_orig_mod.model.inner.puzzle_emb.weights"
NAMES = ["<blank>", "one", "one|||t3|||0213456789"]
THEIR_ARCH = {
    **{key: ARCH[key] for key in ("H_cycles", "L_cycles", "L_layers", "hidden_size", "num_heads", "expansion")},
    **{key: ARCH[key] for key in ("pos_encodings", "puzzle_emb_ndim", "puzzle_emb_len", "forward_dtype")},
    **{"H_layers": 0, "halt_max_steps": 3, "halt_exploration_prob": 0.3, "mlp_t": False, "no_ACT_continue": True},
    "name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
}
THEIR_CONFIG = {
    **{"arch": THEIR_ARCH, "data_paths": ["data/sudoku-extreme"], "data_paths_test": [], "epochs": 500, "lr": 1e-4},
    **{"global_batch_size": 384, "weight_decay": 1.0, "ema": True, "ema_rate": 0.99, "eval_interval": 50, "seed": 4},
    **{"run_name": "x", "project_name": "y", "evaluators": [], "load_checkpoint": None, "beta1": 0.9, "beta2": 0.95},
}


def our_model(seed=0, **arch):
    model = build_model(tiny_config(seed=seed, arch=ARCH | arch), SHAPE)
    if model.puzzle_embedding is not None:
        table = model.puzzle_embedding.table
        table.copy_(torch.arange(table.numel(), dtype=torch.float32).view_as(table))
    return model


def write_original(path, **arch):
    """A file as the original saves it, and its state dict."""
    state = to_original(our_model(**arch).state_dict(), getattr(torch, ARCH["forward_dtype"]))
    torch.save(state, path)
    return state


def write_config(path, arch=None, **changes):
    path.write_text(yaml.safe_dump({**THEIR_CONFIG, "arch": THEIR_ARCH | (arch or {}), **changes}))
    return path


@pytest.fixture
def case(tmp_path):
    """A file step_77 of the original with its config and the names of its identifiers."""
    write_original(tmp_path / "step_77")
    write_config(tmp_path / "all_config.yaml")
    (tmp_path / "identifiers.json").write_text(json.dumps(NAMES))
    return tmp_path


def imported(case, **changes):
    options = {"config_file": case / "all_config.yaml", "arch": {"seq_len": 16}} | changes
    return import_checkpoint(case / "step_77", case / "run", overwrite=True, **options)


# ---- the original's own outputs --------------------------------------------------------------------------


def golden_run(name, folder):
    (folder / "all_config.yaml").write_text(json.dumps({"arch": json.loads((GOLDEN / f"{name}.json").read_text())}))
    import_checkpoint(GOLDEN / f"{name}.pt", folder / "run", config_file=folder / "all_config.yaml")
    return folder / "run"


# The second is chaotic: the original's own float32 is 8e-5 from float64 after one segment, and far off after the next.
@needs_golden
@pytest.mark.parametrize(("name", "segments", "atol"), [("att_sudoku", 6, 1e-4), ("mlp_sudoku", 1, 2e-4)])
def test_an_imported_model_answers_as_the_original(tmp_path, name, segments, atol):
    model, golden = load_model(golden_run(name, tmp_path)), np.load(GOLDEN / f"{name}.npz")
    told = solve(model, *(torch.from_numpy(golden[key]) for key in ("inputs", "puzzle_identifiers")), segments)
    assert torch.allclose(told.logits, torch.from_numpy(golden["logits"][:segments]), atol=atol, rtol=0)
    assert torch.allclose(told.halt_logits, torch.from_numpy(golden["q"][:segments]), atol=atol, rtol=0)


@needs_golden
@pytest.mark.parametrize("name", CASES)
def test_golden_weights_go_through_a_run_and_safetensors_unchanged(tmp_path, name):
    run = golden_run(name, tmp_path)
    export_checkpoint(run, tmp_path / "m.safetensors", file_format="safetensors")
    import_checkpoint(tmp_path / "m.safetensors", tmp_path / "again")
    export_checkpoint(tmp_path / "again", tmp_path / "out.pt", file_format="original")
    before, after = (torch.load(path, weights_only=True) for path in (GOLDEN / f"{name}.pt", tmp_path / "out.pt"))
    assert_same(before, after)


# ---- in --------------------------------------------------------------------------------------------------


def test_an_imported_run_has_the_originals_architecture_recipe_and_weights(case):
    done = imported(case, identifiers_file=case / "identifiers.json")
    config, state = config_from_run(case / "run"), load_checkpoint(case / "run" / "final_model")
    assert config == done.config
    told = {key: value for key, value in THEIR_CONFIG.items() if key in flat(config) and key != "eval_interval"}
    assert {key: flat(config)[key] for key in told} == told
    ours = {key: value for key, value in THEIR_ARCH.items() if f"arch.{key}" in flat(config)}
    assert {key: flat(config)[f"arch.{key}"] for key in ours} == ours
    assert (config.optimizer, config.grad_clip_norm, config.deep_supervision_enabled) == ("adam_atan2", None, False)
    assert (state["shape"], state["step"], state["ema"]) == (vars(SHAPE), 77, None)
    model = our_model().state_dict()
    model |= {name: model[name].bfloat16().float() for name in ("answer_init", "latent_init")}
    assert_same(model, state["model"])
    assert done.notes == ()


def test_an_imported_run_tells_where_it_comes_from(case):
    imported(case)
    told = json.loads((case / "run" / "environment.json").read_text())["imported"]
    sha256 = hashlib.sha256((case / "step_77").read_bytes()).hexdigest()
    assert told == {"file": "step_77", "sha256": sha256, "step": 77, "puzzle_embedding": "keep"}


def test_the_map_of_puzzle_identifiers_lies_with_the_weights(case):
    imported(case, identifiers_file=case / "identifiers.json")
    saved = PuzzleIdentifiers.load(case / "run" / "final_model" / "identifiers.json")
    assert saved.all_names() == NAMES
    (case / "identifiers.json").write_bytes(saved.to_bytes())  # ours is read as well as theirs
    imported(case, identifiers_file=case / "identifiers.json")
    assert PuzzleIdentifiers.load(case / "run" / "final_model" / "identifiers.json").all_names() == NAMES


def test_a_table_without_a_map_is_told_of(case):
    assert imported(case).notes == (
        "3 puzzle vectors and no map of whose they are; --identifiers FILE keeps it with them",
    )
    assert not (case / "run" / "final_model" / "identifiers.json").exists()


def test_a_map_of_another_size_is_refused(case):
    (case / "identifiers.json").write_text(json.dumps(NAMES[:2]))
    with pytest.raises(ValueError, match="names 2 puzzle identifiers but the table has 3 rows"):
        imported(case, identifiers_file=case / "identifiers.json")


@pytest.mark.parametrize("content", ["[1, 2]", "{}", "no JSON", '["a"]'])
def test_a_file_that_is_no_map_is_named(case, content):
    (case / "identifiers.json").write_text(content)
    with pytest.raises(ValueError, match=r"--identifiers .*identifiers.json is no map of puzzle identifiers"):
        imported(case, identifiers_file=case / "identifiers.json")


@pytest.mark.parametrize(("option", "row"), [("mean", range(24, 48)), ("drop", [0] * 24)])  # rows 0 to 2 are 0 … 71
def test_a_new_table_holds_the_mean_or_zeros(case, option, row):
    done = imported(case, puzzle_embedding=option, num_puzzle_identifiers=5)
    table = load_checkpoint(case / "run" / "final_model")["model"][TABLE]
    assert table.tolist() == [list(row)] * 5
    assert done.shape.num_puzzle_identifiers == 5


def test_a_new_table_has_one_row_or_one_for_each_named_identifier(case):
    assert imported(case, puzzle_embedding="mean").shape.num_puzzle_identifiers == 1
    (case / "identifiers.json").write_text(json.dumps(["<blank>", "x"]))
    done = imported(case, puzzle_embedding="drop", identifiers_file=case / "identifiers.json")
    assert done.shape.num_puzzle_identifiers == 2


def test_a_file_whose_table_was_taken_out_begins_with_a_blank_one_where_that_is_asked_for(case):
    state = torch.load(case / "step_77", weights_only=True)
    del state[THEIR_TABLE]
    torch.save(state, case / "step_77")
    with pytest.raises(ValueError, match=r"missing: .*puzzle_emb.weights; --puzzle-embedding drop begins with"):
        imported(case)
    imported(case, puzzle_embedding="drop")
    assert load_checkpoint(case / "run" / "final_model")["model"][TABLE].tolist() == [[0.0] * 24]


def test_options_of_a_table_that_is_not_there_or_stays_are_refused(tmp_path):
    write_original(tmp_path / "step_77", puzzle_emb_ndim=0)
    write_config(tmp_path / "all_config.yaml", arch={"puzzle_emb_ndim": 0})
    with pytest.raises(ValueError, match="--puzzle-embedding mean but the model has no puzzle embedding"):
        imported(tmp_path, puzzle_embedding="mean")
    with pytest.raises(ValueError, match="--num-puzzle-identifiers 9 but the table has 1 rows"):
        imported(tmp_path, num_puzzle_identifiers=9)


def test_without_a_config_what_the_file_does_not_tell_is_asked_for_and_then_taken(case):
    with pytest.raises(ValueError, match=r"does not tell H_cycles, L_cycles, num_heads, .*--arch pos_encodings=rope"):
        import_checkpoint(case / "step_77", case / "run")
    arch = {"H_cycles": 3, "L_cycles": 2, "num_heads": 2, "pos_encodings": "rope", "puzzle_emb_len": 2, "seq_len": 16}
    done = import_checkpoint(case / "step_77", case / "run", arch=arch)
    want = tiny_config(arch=ARCH).arch.model_dump() | {"halt_max_steps": 16, "halt_exploration_prob": 0.1}
    assert done.config.arch.model_dump() | {"expansion": want["expansion"]} == want  # any that gives the same width
    assert "halt_max_steps=16" in done.notes[0]


def test_the_length_comes_from_a_dataset_of_ours_or_of_the_original(case):
    for folder in ("ours", "theirs/train"):
        (case / folder).mkdir(parents=True)
        (case / folder / "dataset.json").write_text(json.dumps({"seq_len": 16}))
    for folder in ("ours", "theirs"):
        assert imported(case, arch={}, data_paths=[case / folder]).shape == SHAPE


def test_the_length_of_the_originals_tasks_is_known_by_their_vocabulary_and_said(case):
    done = imported(case, arch={})  # 6 tokens are its mazes'
    assert done.shape.seq_len == 900
    assert "seq_len=900" in done.notes[0]


def test_values_that_the_weights_deny_are_named(case):
    write_config(case / "all_config.yaml", arch={"hidden_size": 32, "num_puzzle_identifiers": 4})
    with pytest.raises(ValueError, match=r"hidden_size=32 but embed_tokens has 16 columns; .*=4 but puzzle_emb has 3"):
        imported(case)
    write_config(case / "all_config.yaml", arch={"forward_dtype": "float32"})
    with pytest.raises(ValueError, match="forward_dtype=float32 but H_init is bfloat16"):
        imported(case)
    assert imported(case, arch={"seq_len": 16, "forward_dtype": "float32"}).config.arch.forward_dtype == "float32"
    with pytest.raises(ValueError, match="--arch L_cycle=3 is no key of an architecture"):
        imported(case, arch={"L_cycle": 3})


def test_keys_that_mean_nothing_here_are_said(case):
    write_config(case / "all_config.yaml", arch={"depth_controller": True}, curriculum_max_depth=16)
    assert imported(case).notes[0] == ("ignored curriculum_max_depth, arch.depth_controller: nothing here is called so")


def test_a_wrapped_file_brings_its_average_along(case):
    state = torch.load(case / "step_77", weights_only=True)
    average = {key: weight + 1 for key, weight in state.items() if "init" not in key and key != THEIR_TABLE}
    torch.save({"model": state, "step": 5, "ema_helper": average, "optimizers": []}, case / "step_77")
    write_config(case / "all_config.yaml", ema=False)
    done = imported(case)
    raw, averaged = (load_model(case / "run", averaged=choice).lm_head.weight for choice in (False, True))
    assert torch.equal(averaged, raw + 1)
    assert (done.step, done.config.ema) == (5, True)
    export_checkpoint(case / "run", case / "average", file_format="original")
    export_checkpoint(case / "run", case / "raw", file_format="original", averaged_weights=False)
    assert_same(torch.load(case / "raw", weights_only=True), state)
    assert_same(torch.load(case / "average", weights_only=True), state | average)


def test_weights_in_half_precision_become_float32(case):
    state = {key: weight.bfloat16() for key, weight in torch.load(case / "step_77", weights_only=True).items()}
    torch.save(state, case / "step_77")
    imported(case)
    assert {w.dtype for w in load_checkpoint(case / "run" / "final_model")["model"].values()} == {torch.float32}


def test_folders_are_not_replaced_by_accident(case):
    imported(case)
    options = {"config_file": case / "all_config.yaml", "arch": {"seq_len": 16}}
    with pytest.raises(ValueError, match=r"--output .*run exists; replace it with --overwrite"):
        import_checkpoint(case / "step_77", case / "run", **options)
    with pytest.raises(ValueError, match="holds step_77 itself"):
        import_checkpoint(case / "step_77", case, overwrite=True, **options)
    (case / "mine").mkdir()
    (case / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds files but no run \(.*\)"):
        import_checkpoint(case / "step_77", case / "mine", overwrite=True, **options)
    with pytest.raises(ValueError, match="step_78 is no file"):
        import_checkpoint(case / "step_78", case / "new", **options)


def test_a_failed_import_leaves_the_old_run(case):
    imported(case)
    write_config(case / "all_config.yaml", arch={"hidden_size": 32})
    with pytest.raises(ValueError, match="hidden_size=32"):
        imported(case)
    assert load_model(case / "run").step == 77


# ---- out -------------------------------------------------------------------------------------------------


def test_safetensors_carry_config_shape_step_and_map(case):
    done = imported(case, identifiers_file=case / "identifiers.json")
    file = case / "out" / "m.safetensors"
    export_checkpoint(case / "run", file, file_format="safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert yaml.safe_load(metadata["config"])["arch"]["L_cycles"] == 2
    assert (json.loads(metadata["shape"]), metadata["step"]) == (vars(SHAPE), "77")
    assert PuzzleIdentifiers.from_bytes(metadata["identifiers"].encode()).all_names() == NAMES
    again = import_checkpoint(file, case / "again")
    assert (again.shape, again.step, again.config.arch) == (done.shape, 77, done.config.arch)
    first, second = (load_checkpoint(case / run / "final_model") for run in ("run", "again"))
    assert_same(first["model"], second["model"])
    maps = [(case / run / "final_model" / "identifiers.json").read_bytes() for run in ("run", "again")]
    assert maps[0] == maps[1]
    direct = load_model(file)
    assert_same(direct.model.state_dict(), first["model"])
    assert direct.identifiers == maps[0]


def test_safetensors_of_the_originals_names_are_read_with_its_config(case):
    from safetensors.torch import save_file

    save_file(torch.load(case / "step_77", weights_only=True), case / "theirs.safetensors")
    options = {"config_file": case / "all_config.yaml", "arch": {"seq_len": 16}}
    import_checkpoint(case / "theirs.safetensors", case / "run", **options)
    assert torch.equal(load_model(case / "run").lm_head.weight, our_model().lm_head.weight)
    with pytest.raises(ValueError, match="says nothing of its architecture; make a run of it"):
        load_model(case / "theirs.safetensors")


def test_damaged_safetensors_are_named(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"12345678 cut off")
    with pytest.raises(ValueError, match=r"m.safetensors cannot be read as safetensors"):
        import_checkpoint(tmp_path / "m.safetensors", tmp_path / "run")


@pytest.mark.parametrize("file_format", ["original", "safetensors"])
def test_an_exported_file_is_exported_again_as_its_run_is(case, file_format):
    imported(case, identifiers_file=case / "identifiers.json")
    export_checkpoint(case / "run", case / "m.safetensors", file_format="safetensors")
    for source, out in (("run", "first"), ("m.safetensors", "second")):
        export_checkpoint(case / source, case / out, file_format=file_format)
    first, second = case / "first", case / "second"
    assert second.stat().st_size == pytest.approx(first.stat().st_size, rel=0.01)  # not each weight the whole file
    if file_format == "original":
        assert_same(*(torch.load(file, weights_only=True) for file in (first, second)))
    else:
        assert_same(*(read_portable(file).tensors for file in (first, second)))
        maps = {read_portable(file).identifiers for file in (first, second)}
        assert maps == {(case / "run" / "final_model" / "identifiers.json").read_bytes()}


def test_what_cannot_be_exported_is_answered_with_what_can(case):
    with pytest.raises(
        ValueError, match=r"nowhere does not exist; name the folder of a run .*, or a \.safetensors file"
    ):
        export_checkpoint(case / "nowhere", case / "out", file_format="original")
    with pytest.raises(ValueError, match=r"step_77 says nothing of its architecture; make a run of it"):
        export_checkpoint(case / "step_77", case / "out", file_format="original")


def test_a_file_is_not_replaced_by_accident(case):
    imported(case)
    with pytest.raises(ValueError, match=r"--output .*step_77 exists; replace it with --overwrite"):
        export_checkpoint(case / "run", case / "step_77", file_format="original")


def test_the_command_line_of_the_original_is_said(case):
    imported(case)
    (told,) = export_checkpoint(case / "run", case / "out", file_format="original")
    assert "arch.H_cycles=3 arch.L_cycles=2" in told
    assert "arch.mlp_t=False" in told
    assert "rope_theta" not in told


def test_the_commands_tell_what_they_did(case):
    run, words = case / "cli", ["--config", f"{case / 'all_config.yaml'}", "--arch", "seq_len=16 halt_max_steps=4"]
    told = CliRunner().invoke(app, ["import-checkpoint", f"{case / 'step_77'}", "--output", f"{run}", *words])
    assert told.exit_code == 0, told.output
    assert "step 77; 16 cells, 6 tokens, 3 puzzle identifiers" in told.output
    assert config_from_run(run).arch.halt_max_steps == 4
    told = CliRunner().invoke(app, ["export-checkpoint", f"{run}", "--format", "original", "--output", f"{run}.pt"])
    assert told.exit_code == 0, told.output
    assert_same(torch.load(f"{run}.pt", weights_only=True), torch.load(case / "step_77", weights_only=True))
    told = CliRunner().invoke(app, ["import-checkpoint", f"{run}.pt", "--output", f"{run}", "--arch", "L_cycles"])
    assert told.exit_code == 2


def test_training_does_not_go_on_from_weights_alone(case):
    from trm_ray.config import ConfigError
    from trm_ray.runs.folder import check_folder

    imported(case)
    plan = SimpleNamespace(folder=case / "run", config=config_from_run(case / "run"))
    for resume in (True, False):
        with pytest.raises(ConfigError, match=r"holds weights only, .*; use --init-from"):
            check_folder(plan, resume=resume)


# ---- weights to begin with -------------------------------------------------------------------------------


def checkpoint_of(folder, names, **arch):
    """A checkpoint of ours with an average that is one above the weights."""
    model = our_model(**arch)
    state = {"config": tiny_config(arch=ARCH | arch).model_dump(mode="json"), "shape": vars(SHAPE), "step": 3}
    average = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    content = None if names is None else PuzzleIdentifiers.from_names(names).to_bytes()
    save_checkpoint(folder, {**state, "model": model.state_dict(), "ema": average}, content)
    return model


def test_a_run_begins_with_averaged_weights_and_its_puzzles_vectors(tmp_path):
    model = checkpoint_of(tmp_path / "final_model", NAMES)
    new = PuzzleIdentifiers.from_names(["<blank>", "other", NAMES[1], NAMES[2]]).to_bytes()
    begun = initial_weights(tmp_path, tiny_config(arch=ARCH), TokenShape(16, 6, 4), new)
    assert torch.equal(begun.model["lm_head.weight"], model.lm_head.weight + 1)
    table = our_model().state_dict()[TABLE]
    assert_same({"t": begun.model[TABLE]}, {"t": torch.stack([table[0], table.mean(0), table[1], table[2]])})
    assert "3 of 4 puzzle vectors" in begun.note
    build_model(tiny_config(arch=ARCH), TokenShape(16, 6, 4)).load_state_dict(begun.model)


@pytest.mark.parametrize("kind", ["original", "safetensors"])
def test_a_run_begins_with_a_file(tmp_path, kind):
    model = checkpoint_of(tmp_path / "final_model", NAMES)
    file = tmp_path / ("m.safetensors" if kind == "safetensors" else "step_3")
    export_checkpoint(tmp_path, file, file_format=kind)
    begun = initial_weights(file, tiny_config(arch=ARCH), SHAPE, PuzzleIdentifiers.from_names(NAMES).to_bytes())
    assert torch.equal(begun.model["lm_head.weight"], model.lm_head.weight + 1)
    assert torch.equal(begun.model[TABLE], model.state_dict()[TABLE])


def test_another_architecture_is_refused_with_each_difference(tmp_path):
    checkpoint_of(tmp_path / "final_model", NAMES)
    want = tiny_config(arch=ARCH | {"L_cycles": 5, "H_cycles": 1})
    with pytest.raises(ValueError, match=r"arch\.H_cycles=3 there and 1 here, arch\.L_cycles=2 there and 5 here"):
        initial_weights(tmp_path, want, SHAPE, None)
    export_checkpoint(tmp_path, tmp_path / "step_3", file_format="original")
    with pytest.raises(ValueError, match="hidden_size=32 but embed_tokens has 16 columns"):
        initial_weights(tmp_path / "step_3", tiny_config(arch=ARCH | {"hidden_size": 32}), SHAPE, None)


def begin_with_file(case, **arch):
    return initial_weights(case / "step_77", tiny_config(arch=ARCH | arch), SHAPE, None)


def test_without_the_originals_config_beside_its_file_the_keys_that_weights_cannot_tell_are_said(case):
    (case / "all_config.yaml").unlink()
    told = begin_with_file(case).note.partition("; unchecked, as no all_config.yaml lies beside it: ")[2]
    values = {"H_cycles": 3, "L_cycles": 2, "num_heads": 2, "pos_encodings": "rope", "rope_theta": 10000.0}
    assert told == ", ".join(f"{k}={v}" for k, v in (values | {"rms_norm_eps": 1e-05, "puzzle_emb_len": 2}).items())


def test_the_originals_config_beside_its_file_is_compared(case):
    assert "unchecked" not in begin_with_file(case).note
    telling = {"H_cycles": 1, "L_cycles": 5, "num_heads": 4, "pos_encodings": "none", "rope_theta": 500.0}
    for key, value in telling.items():
        with pytest.raises(ValueError, match=rf"step_77 with the all_config.yaml .*arch\.{key}=.* and {value} here;"):
            begin_with_file(case, **{key: value})
    begin_with_file(case, halt_max_steps=7, forward_dtype="float32")  # the same network


def test_what_the_config_beside_a_file_leaves_out_is_said(case):
    theirs = {key: value for key, value in THEIR_ARCH.items() if key != "num_heads"}
    (case / "all_config.yaml").write_text(yaml.safe_dump({"arch": theirs}))
    assert begin_with_file(case).note.endswith("all_config.yaml does not tell them: num_heads=2")
    write_config(case / "all_config.yaml", arch={"H_cycles": "three"})
    with pytest.raises(ValueError, match=r"all_config.yaml: arch.H_cycles=three must be"):
        begin_with_file(case)
    (case / "all_config.yaml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^/.*all_config.yaml cannot be read"):
        begin_with_file(case)


# ---- memory ----------------------------------------------------------------------------------------------

# Not `ru_maxrss`, which begins at the memory of the process that starts another.
PEAK = """
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
"""
MEASURED = f"""{PEAK}
from pathlib import Path
from trm_ray.interop.checkpoints import import_checkpoint, export_checkpoint
before = peak()
arch = dict(H_cycles=3, L_cycles=2, num_heads=2, pos_encodings="rope", puzzle_emb_len=2, seq_len=16)
import_checkpoint(Path("step_77"), Path("run"), arch=arch)
export_checkpoint(Path("run"), Path("m.safetensors"), file_format="safetensors")
export_checkpoint(Path("run"), Path("out"), file_format="original")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.slow
def test_conversions_take_no_more_memory_than_the_file_once(tmp_path):
    state = write_original(tmp_path / "step_77")
    state[THEIR_TABLE] = torch.ones(1_500_000, 24)
    torch.save(state, tmp_path / "step_77")
    size = (tmp_path / "step_77").stat().st_size
    assert size > 140e6
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", MEASURED]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(told.stdout.splitlines()[-1]) < 1.4 * size


USED = f"""{PEAK}
import torch
from pathlib import Path
from trm_ray.interop.checkpoints import initial_weights
from trm_ray.training.inference import solve
from trm_ray.interop.loading import load_model
solve(load_model("small"), torch.ones(1, 16), torch.tensor([0]))
before = peak()
for file in map(Path, ("large", "m.safetensors")):
    loaded = load_model(file)
    solve(loaded, torch.ones(1, 16), torch.tensor([599_999]))
    initial_weights(file, loaded.config, loaded.shape, None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.slow
def test_using_a_model_takes_the_rows_of_its_table_that_are_used(tmp_path):
    checkpoint_of(tmp_path / "small", None)
    state, table = load_checkpoint(tmp_path / "small"), torch.ones(600_000, 24)
    state["model"][TABLE], state["shape"]["num_puzzle_identifiers"] = table, len(table)
    save_checkpoint(tmp_path / "large", {**state, "carry": {"answer": torch.ones(10_000_000)}})
    export_checkpoint(tmp_path / "large", tmp_path / "m.safetensors", file_format="safetensors")
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-c", USED]
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(told.stdout.splitlines()[-1]) < 0.4 * table.nbytes


@pytest.mark.parametrize("source", ["final_model/state.pt", "m.safetensors"])
def test_a_mapped_file_is_not_changed_through_what_was_read_of_it(tmp_path, source):
    checkpoint_of(tmp_path / "final_model", NAMES)
    export_checkpoint(tmp_path, tmp_path / "m.safetensors", file_format="safetensors")
    before, opened = (tmp_path / source).read_bytes(), tmp_path / source.removesuffix("final_model/state.pt")
    config = tiny_config(arch=ARCH)
    state = TrainState(config, SHAPE, torch.device("cpu"))
    state.begin_with(initial_weights(opened, config, SHAPE, PuzzleIdentifiers.from_names(NAMES).to_bytes()).model)
    for model in (state.model, load_model(opened)):
        for weight in model.state_dict().values():
            weight.zero_()
    assert (tmp_path / source).read_bytes() == before
    assert load_model(opened).lm_head.weight.any()
