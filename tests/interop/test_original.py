"""The original's layout: names, shapes, what they tell, and what does not fit."""

import argparse
import json
import os
import sys
import tarfile
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config
from safetensors.torch import save_file

from trm_ray.config import ArchConfig
from trm_ray.interop.original import (
    Weights,
    check_weights,
    contradictions,
    expansion_of,
    facts_of,
    foreign_to_original,
    infer_arch,
    original_arch,
    original_name,
    our_arch,
    our_name,
    our_recipe,
    read_original,
    to_original,
    translate,
)
from trm_ray.training.state import TokenShape, build_model

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "conformance"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden outputs of the original are not here")

# Written out by hand after the original's modules: attention, learned positions, 5 cells behind a prefix of 2,
# 7 tokens, 3 identifiers of size 12, hidden size 8, one layer, whose feed-forward width 8·4·2/3 is rounded up to 256.
LEARNED = {
    "H_init": (8,),
    "L_init": (8,),
    "embed_tokens.embedding_weight": (7, 8),
    "lm_head.weight": (7, 8),
    "q_head.weight": (2, 8),
    "q_head.bias": (2,),
    "puzzle_emb.weights": (3, 12),
    "embed_pos.embedding_weight": (7, 8),
    "L_level.layers.0.self_attn.qkv_proj.weight": (24, 8),
    "L_level.layers.0.self_attn.o_proj.weight": (8, 8),
    "L_level.layers.0.mlp.gate_up_proj.weight": (512, 8),
    "L_level.layers.0.mlp.down_proj.weight": (8, 256),
}
LEARNED_ARCH = {
    **{"hidden_size": 8, "L_layers": 1, "num_heads": 2, "pos_encodings": "learned", "mixer": "attention"},
    **{"puzzle_emb_ndim": 12, "puzzle_emb_len": 2, "ffn_multiple_of": 256, "expansion": 4},
}
LEARNED_SHAPE = TokenShape(5, 7, 3)


def learned_config(**changes):
    return tiny_config(arch=LEARNED_ARCH | changes)


def learned_state(prefix="_orig_mod.model.inner."):
    """A state dict of the original with weights that differ everywhere."""
    generator = torch.Generator().manual_seed(0)
    return {prefix + key: torch.randn(shape, generator=generator) for key, shape in LEARNED.items()}


def golden_arch(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "model._orig_mod.inner."])
def test_whatever_wraps_a_key_it_names_the_same_weight(prefix):
    assert our_name(f"{prefix}H_init") == "answer_init"
    assert our_name(f"{prefix}embed_tokens.embedding_weight") == "embed_tokens"
    assert our_name(f"{prefix}L_level.layers.11.mlp_t.down_proj.weight") == "blocks.11.mixer.mlp.down_proj.weight"
    assert our_name(f"{prefix}L_level.layers.0.self_attn.o_proj.weight") == "blocks.0.mixer.o_proj.weight"
    assert our_name(f"{prefix}L_level.layers.0.mlp.gate_up_proj.weight") == "blocks.0.mlp.gate_up_proj.weight"
    assert our_name(f"{prefix}H_level.layers.0.mlp.gate_up_proj.weight") is None


def test_our_model_exports_the_keys_order_and_shapes_of_the_original():
    model = build_model(learned_config(), LEARNED_SHAPE)
    exported = to_original(model.state_dict(), torch.float32)
    assert [(key.removeprefix("_orig_mod.model.inner."), tuple(w.shape)) for key, w in exported.items()] == list(
        LEARNED.items()
    )


def test_initial_states_are_exported_in_the_dtype_of_the_recursion_and_weights_in_float32():
    exported = to_original(build_model(learned_config(), LEARNED_SHAPE).state_dict(), torch.bfloat16)
    halves = {key for key, weight in exported.items() if weight.dtype == torch.bfloat16}
    assert halves == {"_orig_mod.model.inner.H_init", "_orig_mod.model.inner.L_init"}
    assert {weight.dtype for key, weight in exported.items() if key not in halves} == {torch.float32}


@needs_golden
@pytest.mark.parametrize("name", ["att_sudoku", "mlp_sudoku"])
def test_golden_weights_come_out_as_they_went_in(name):
    state = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    out = to_original(read_original(GOLDEN / f"{name}.pt").model, torch.float32)
    assert list(out) == list(state)
    for key, weight in state.items():
        assert (out[key].dtype, out[key].shape) == (weight.dtype, weight.shape)
        assert torch.equal(out[key], weight), key


@needs_golden
@pytest.mark.parametrize("name", ["att_sudoku", "mlp_sudoku"])
def test_shapes_of_golden_weights_tell_what_their_config_says(name):
    told, facts = golden_arch(name), facts_of(read_original(GOLDEN / f"{name}.pt").model)
    for key in ("hidden_size", "vocab_size", "L_layers", "puzzle_emb_ndim"):
        assert getattr(facts, key) == told[key]
    assert facts.mixer == ("mlp" if told["mlp_t"] else "attention")
    assert expansion_of(facts) == told["expansion"]


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_a_wrapped_state_dict_is_found_beside_optimizers_step_and_average(tmp_path, wrapper):
    state = learned_state()
    average = {key: weight + 1 for key, weight in state.items() if not key.endswith(("init", "puzzle_emb.weights"))}
    torch.save({wrapper: state, "optimizers": [{"state": {}}], "step": 7, "ema_helper": average}, tmp_path / "wrapped")
    read = read_original(tmp_path / "wrapped")
    assert read.step == 7
    assert read.surplus == ()
    assert torch.equal(read.model["embed_tokens"], state["_orig_mod.model.inner.embed_tokens.embedding_weight"])
    assert read.average is not None
    assert torch.equal(read.average["embed_tokens"], read.model["embed_tokens"] + 1)
    check_weights(read, learned_config(), LEARNED_SHAPE, "it")


def test_a_file_of_the_old_format_is_read(tmp_path):
    torch.save(learned_state(), tmp_path / "old", _use_new_zipfile_serialization=False)
    assert read_original(tmp_path / "old").model.keys() == read_state(learned_state()).model.keys()


def read_state(state):
    return translate(state, "it")


class Hostile:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"model": learned_state(), "evil": Hostile(tmp_path / "made")}, tmp_path / "evil")
    with pytest.raises(ValueError, match="evil cannot be read as a checkpoint of weights alone"):
        read_original(tmp_path / "evil")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "step_1").write_bytes(content)
    with pytest.raises(ValueError, match=r"step_1 cannot be read .*; name a step_N file"):
        read_original(tmp_path / "step_1")


@pytest.mark.parametrize("held", [{}, {"weights": [1]}, [1, 2], torch.zeros(2), {"a": torch.zeros(2)}])
def test_a_file_without_weights_of_trm_is_named(tmp_path, held):
    torch.save(held, tmp_path / "step_1")
    with pytest.raises(ValueError, match=r"step_1 holds .* and no state dict of TRM"):
        read_original(tmp_path / "step_1")


# ---- what lies beside the weights ------------------------------------------------------------------------


class Config:
    """Somebody's config, of a library that is not here when the file is read."""

    def __init__(self, **values):
        self.content, self.inner = values, [self]


class EasyDict(dict):
    """A dict that is read by attributes."""


@pytest.fixture
def foreign(monkeypatch):
    """Let a library hold the classes while files are written; what it does is forgotten before they are read."""
    library = types.ModuleType("omegaconf")
    for kind in (Config, EasyDict):
        monkeypatch.setattr(kind, "__module__", "omegaconf")
        setattr(library, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "omegaconf", library)

    def saved(folder, zipped, *held):
        for number, one in enumerate(held):
            torch.save(one, folder / f"step_{number}", _use_new_zipfile_serialization=zipped)
        monkeypatch.delitem(sys.modules, "omegaconf", raising=False)
        return [folder / f"step_{number}" for number in range(len(held))]

    return saved


BESIDE = {
    "a number of NumPy": lambda: {"step": np.int64(7), "best": np.float32(0.5), "flag": np.bool_(True)},
    "bytes in another order": lambda: {"step": np.array([7], ">i4")[0]},
    "a real number": lambda: {"step": np.float64(7)},
    "arrays": lambda: {"step": 7, "history": np.arange(3.0), "names": np.array(["a"]), "dtype": np.dtype("f4")},
    "somebody's config": lambda: {"step": 7, "config": Config(lr=1, path=Path("x"))},
    "arguments": lambda: {"step": 7, "args": argparse.Namespace(lr=1), "more": types.SimpleNamespace(a=1)},
    "plain things": lambda: {"step": 7, "set": {1}, "frozen": frozenset([2]), "complex": 1j, "when": datetime.now()},
    "dicts": lambda: {"step": 7, "a": OrderedDict(b=1), "c": defaultdict(list, {1: [2]}), "d": Counter("ab")},
    "an optimizer": lambda: {"step": torch.tensor(7), "optimizer": torch.optim.Adam([torch.zeros(2)]).state_dict()},
    "a random state": lambda: {"step": 7, "rng": np.random.default_rng(0), "torch": torch.get_rng_state()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_does_not_keep_them_from_being_read(tmp_path, foreign, name, zipped):
    state, beside = learned_state("_orig_mod.module.model.inner."), BESIDE[name]()
    nested, flat = map(read_original, foreign(tmp_path, zipped, {"model": state, **beside}, {**state, **beside}))
    assert (nested.step, nested.surplus, len(nested.model)) == (7, (), len(state))
    check_weights(nested, learned_config(), LEARNED_SHAPE, "it")
    assert (flat.step, flat.surplus) == (7, tuple(beside))  # which is told of, as whatever is no weight of TRM


def test_numbers_of_an_older_numpy_are_read(tmp_path):
    torch.save(
        {"model": learned_state(), "step": np.int64(258)}, tmp_path / "new", _use_new_zipfile_serialization=False
    )
    content = (tmp_path / "new").read_bytes()
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        named = content.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n")
        named = named.replace(b"cnumpy.core.multiarray\n", b"c" + module + b"\n")
        (tmp_path / "old").write_bytes(named)
        assert read_original(tmp_path / "old").step == 258


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")


def tarred(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")


WEIGHTS = {key: weight.numpy() for key, weight in learned_state().items()}
UNFAMILIAR = {
    "a module": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "a whole object of the class torch.nn.modules.linear",
    ),
    "arrays": (lambda path: torch.save({"model": WEIGHTS}, path), "the keys model, in them objects of numpy"),
    "an average": (
        lambda path: torch.save({"model": learned_state(), "ema_helper": argparse.Namespace(a=1)}, path),
        "ema_helper, the averaged weights, as a whole object of the class argparse.Namespace",
    ),
    "a function": (
        lambda path: torch.save({"model": learned_state(), "f": os.getcwd}, path),
        "it holds posix.getcwd, whose",
    ),
    "eval": (
        lambda path: torch.save({"model": learned_state(), "f": eval}, path),
        "it holds eval, whose code never runs",
    ),
    "a zip": (zipped, r"a zip archive that torch.save has not written, and holds word/document.xml"),
    "a tar": (tarred, r"it is a tar archive, as PyTorch before 0.1.10 wrote"),
    "safetensors": (lambda path: save_file({"a": torch.zeros(2)}, path), "give it a name that ends in .safetensors"),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.trace(torch.relu, torch.ones(1)), str(path)),
        "a TorchScript archive",
    ),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n rest"), "torch.save has not written it"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", UNFAMILIAR)
def test_what_is_merely_unfamiliar_is_not_called_damaged(tmp_path, name):
    write, told = UNFAMILIAR[name]
    write(tmp_path / "step_1")
    with pytest.raises(ValueError, match=told) as caught:
        read_original(tmp_path / "step_1")
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "step_1" in str(caught.value)


def test_a_dict_of_an_unknown_kind_is_named(tmp_path, foreign):
    (path,) = foreign(tmp_path, True, {"model": learned_state(), "cfg": EasyDict(a=1)})
    with pytest.raises(
        ValueError, match=r"it holds objects of omegaconf.EasyDict beside or instead of weights; torch.save"
    ):
        read_original(path)


@pytest.mark.parametrize("cut", [0, 1, 100, 5000])
def test_a_file_that_is_cut_short_is_told(tmp_path, cut):
    torch.save(learned_state(), tmp_path / "step_1")
    content = (tmp_path / "step_1").read_bytes()
    (tmp_path / "step_1").write_bytes(content[: len(content) - 1 - cut] if cut else b"")
    with pytest.raises(ValueError, match=r"it is (damaged or cut short|empty)"):
        read_original(tmp_path / "step_1")


def test_two_keys_of_one_weight_are_named():
    state = learned_state() | {"model.inner.H_init": torch.zeros(8)}
    with pytest.raises(ValueError, match=r"_orig_mod.model.inner.H_init and model.inner.H_init, which name the same"):
        read_state(state)


# ---- what does not fit -----------------------------------------------------------------------------------


def test_every_missing_surplus_and_misshapen_key_is_named_in_one_line():
    state = learned_state()
    del state["_orig_mod.model.inner.lm_head.weight"], state["_orig_mod.model.inner.H_init"]
    state["_orig_mod.model.inner.q_head.weight"] = torch.zeros(3, 8)
    state["_orig_mod.model.inner.L_level.layers.0.self_attn.o_proj.weight"] = torch.zeros(8, 9)
    state |= {"_orig_mod.model.inner.H_level.x": torch.zeros(1), "epoch": 3}
    state["_orig_mod.model.inner.L_level.layers.1.mlp.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit") as caught:
        check_weights(read_state(state), learned_config(), LEARNED_SHAPE, "it")
    told = str(caught.value)
    assert "\n" not in told
    missing, surplus, misshapen = (
        told.split(f"{word}: ")[1].split("; ")[0] for word in ("missing", "surplus", "misshapen")
    )
    assert set(missing.split(", ")) == {"_orig_mod.model.inner.lm_head.weight", "_orig_mod.model.inner.H_init"}
    assert set(surplus.split(", ")) == {
        "_orig_mod.model.inner.H_level.x",
        "epoch",
        "_orig_mod.model.inner.L_level.layers.1.mlp.extra.weight",
    }
    assert "q_head.weight (3, 8) must be (2, 8)" in misshapen
    assert "o_proj.weight (8, 9) must be (8, 8)" in misshapen


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"hidden_size": 16}, LEARNED_SHAPE),
        ({"hidden_size": 30, "num_heads": 3, "expansion": 60}, TokenShape(9, 11, 7)),
        ({"puzzle_emb_ndim": 5, "mixer": "mlp"}, LEARNED_SHAPE),
    ],
)
def test_a_value_that_is_denied_hides_no_misshapen_key_and_stands_for_those_that_it_explains(changes, shape):
    state = learned_state()
    state["_orig_mod.model.inner.q_head.weight"] = torch.zeros(3, 8)
    state["_orig_mod.model.inner.L_level.layers.0.mlp.gate_up_proj.weight"] = torch.zeros(511, 8)
    with pytest.raises(ValueError, match="but ") as caught:
        check_weights(read_state(state), learned_config(**changes), shape, "it")
    inner = "_orig_mod.model.inner"
    wrong = [f"{inner}.L_level.layers.0.mlp.gate_up_proj.weight (511, 8) must be (512, 8)"]
    wrong.append(f"{inner}.q_head.weight (3, 8) must be (2, 8)")
    assert f"; misshapen: {', '.join(wrong)}; mend" in str(caught.value)
    assert "missing" not in str(caught.value)


def test_a_missing_token_embedding_is_named_with_all_else_that_is_missing():
    state = learned_state()
    del state["_orig_mod.model.inner.embed_tokens.embedding_weight"], state["_orig_mod.model.inner.q_head.bias"]
    with pytest.raises(ValueError, match=r"missing: _orig_mod\.model\.inner\.embed_tokens\.\w+, .*q_head\.bias; "):
        check_weights(read_state(state), learned_config(), LEARNED_SHAPE, "it")
    del state["_orig_mod.model.inner.lm_head.weight"]
    with pytest.raises(ValueError, match=r"embed_tokens\.embedding_weight and .* are missing or misshapen"):
        check_weights(read_state(state), learned_config(), LEARNED_SHAPE, "it")


def test_all_values_that_the_weights_deny_are_named_with_what_the_weights_say():
    config = learned_config(hidden_size=16, puzzle_emb_ndim=13, mixer="mlp", pos_encodings="none", expansion=40)
    told = contradictions(config.arch, TokenShape(6, 9, 4), facts_of(read_state(learned_state()).model))
    assert told == [
        "hidden_size=16 but embed_tokens has 8 columns",
        "vocab_size=9 but embed_tokens has 7 rows",
        "mixer=mlp but the layers are those of mixer=attention",
        "expansion=40 but mlp.down_proj has 256 columns",
        "puzzle_emb_ndim=13 but puzzle_emb has 12 columns",
        "num_puzzle_identifiers=4 but puzzle_emb has 3 rows",
    ]
    told = contradictions(learned_config().arch, TokenShape(6, 7, 3), facts_of(read_state(learned_state()).model))
    assert told == ["seq_len=6 and a prefix of 2 but the weights span 7 positions"]


def test_an_average_that_lacks_weights_is_named():
    weights = read_state(learned_state())
    lacking = {name: weight for name, weight in weights.model.items() if name != "embed_positions"}
    halved = Weights(weights.model, lacking, weights.keys, (), None)
    with pytest.raises(
        ValueError, match=r"missing in the average: _orig_mod\.model\.inner\.embed_pos\.embedding_weight; "
    ):
        check_weights(halved, learned_config(), LEARNED_SHAPE, "it")


# ---- configs ---------------------------------------------------------------------------------------------


def test_what_shapes_cannot_tell_is_asked_for():
    facts = facts_of(read_state(learned_state()).model)
    arch, asked = infer_arch({}, facts, told_all=False)
    assert asked == ["H_cycles", "L_cycles", "num_heads", "puzzle_emb_len", "seq_len"]
    assert (arch["pos_encodings"], arch["hidden_size"], arch["expansion"]) == ("learned", 8, 4)
    arch, asked = infer_arch({"H_cycles": 1, "L_cycles": 1, "num_heads": 2, "seq_len": 5}, facts, told_all=False)
    assert (asked, arch["puzzle_emb_len"]) == ([], 2)
    arch, asked = infer_arch({"H_cycles": 1, "L_cycles": 1, "num_heads": 2, "puzzle_emb_len": 0}, facts, told_all=False)
    assert (asked, arch["seq_len"]) == ([], 5)  # 12 values fill two positions of 8


def test_rope_and_none_cannot_be_told_apart_so_they_are_asked_for():
    state = {key: weight for key, weight in learned_state().items() if "embed_pos" not in key}
    _, asked = infer_arch({"seq_len": 5, "num_heads": 2}, facts_of(read_state(state).model), told_all=False)
    assert "pos_encodings" in asked


def test_keys_of_the_originals_config_become_ours_and_foreign_ones_are_listed():
    theirs = {"name": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", "H_cycles": 3, "H_layers": 0}
    theirs |= {"mlp_t": True, "pos_encodings": "rope", "no_ACT_continue": True, "loss": {"name": "x"}, "depth": 4}
    assert our_arch(theirs) == ({"H_cycles": 3, "mixer": "mlp", "pos_encodings": "none"}, ["depth"])
    recipe, idle = our_recipe({"arch": theirs, "lr": "1e-4", "epochs": 5, "lr_warmup_steps": 10.4, "curriculum": 1})
    assert idle == ["curriculum"]
    assert recipe == {
        **{"lr": "1e-4", "epochs": 5, "lr_warmup_steps": 10, "loss_type": "stablemax_cross_entropy"},
        **{"optimizer": "adam_atan2", "grad_clip_norm": None, "deep_supervision_enabled": False},
    }


def test_another_network_of_the_original_is_refused():
    with pytest.raises(ValueError, match=r"arch\.name=recursive_reasoning\.trm_singlez@X is another network"):
        our_arch({"name": "recursive_reasoning.trm_singlez@X"})


def test_an_architecture_survives_the_way_there_and_back():
    arch = ArchConfig(mixer="mlp", pos_encodings="learned", hidden_size=64, puzzle_emb_ndim=64, forward_dtype="float32")
    ours, idle = our_arch(original_arch(arch))
    assert (ArchConfig(**ours), idle) == (arch, [])


def test_what_the_original_does_otherwise_is_said():
    assert foreign_to_original(ArchConfig()) == []
    told = foreign_to_original(ArchConfig(mixer="mlp", pos_encodings="none", mixer_norm="features", ffn_multiple_of=16))
    assert [line.partition(":")[0] for line in told] == ["arch.mixer_norm=features", "arch.ffn_multiple_of=16"]
    assert [line.partition(":")[0] for line in foreign_to_original(ArchConfig(L_cycles=0))] == ["arch.L_cycles=0"]


def test_every_name_of_our_model_has_a_name_there_and_comes_back():
    for mixer in ("attention", "mlp"):
        config = learned_config(mixer=mixer)
        for name in build_model(config, LEARNED_SHAPE).state_dict():
            assert our_name(original_name(name)) == name


def test_a_length_that_cannot_be_is_denied_rather_than_made_up():
    facts = facts_of(read_state(learned_state()).model)  # 7 positions
    arch, asked = infer_arch({"H_cycles": 1, "L_cycles": 1, "num_heads": 2, "seq_len": 900}, facts, told_all=True)
    assert (asked, arch["puzzle_emb_len"], arch["seq_len"]) == ([], 16, 900)
    _, asked = infer_arch({"H_cycles": 1, "L_cycles": 1, "num_heads": 2}, facts, told_all=True)
    assert asked == ["seq_len"]  # not 7 − 16
