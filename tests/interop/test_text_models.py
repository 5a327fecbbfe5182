"""Models of text on their way in and out of files: token embeddings to begin with, reloads, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT_ARCH, assert_same, tiny_config
from run_helpers import laid_over, run_config
from safetensors.torch import save_file
from torch import Tensor

from trm_ray.config import ArchConfig, Config
from trm_ray.interop.checkpoints import export_checkpoint, import_checkpoint, initial_weights
from trm_ray.interop.loading import load_model
from trm_ray.interop.original import to_original
from trm_ray.interop.pretrained import token_embedding
from trm_ray.kinds.text.generate import generate_text
from trm_ray.runs.execute import train_in_process
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.plan import RunPlan, plan_run
from trm_ray.training.checkpoint import load_checkpoint, save_checkpoint
from trm_ray.training.inference import solve
from trm_ray.training.state import TokenShape, build_model

SHAPE = TokenShape(12, 257, separator=256)
TIED, PROJECTED = {"tied_embeddings": True, "norm": "pre"}, {"embedding_size": 6}
NETWORKS = pytest.mark.parametrize("arch", [TIED, PROJECTED], ids=["tied", "projected"])


def config_of(**arch: Any) -> Config:
    return tiny_config(arch={**TEXT_ARCH, **arch})


# ---- a token embedding to begin with ---------------------------------------------------------------------


def embedding_file(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "embeddings.safetensors")
    return folder / "embeddings.safetensors"


def table(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows + width))


def read(source: Path | str, **arch: Any) -> Tensor:
    return token_embedding(
        ArchConfig(**{**config_of(**arch).arch.model_dump(), "pretrained_embeddings": str(source)}), SHAPE
    )


def test_the_one_table_of_as_many_tokens_is_found_and_scaled_to_the_one_that_it_stands_for(tmp_path):
    wanted = table(257, 16)
    file = embedding_file(tmp_path, wte=3 * wanted, wpe=table(12, 16), bias=torch.ones(257))
    found = read(file)
    torch.testing.assert_close(found / found[0, 0], wanted / wanted[0, 0])
    assert found.square().mean().item() == pytest.approx(1 / 16)
    torch.testing.assert_close(read(embedding_file(tmp_path, wte=wanted.half())), found, rtol=1e-2, atol=1e-3)


def test_of_two_tables_one_is_to_be_named(tmp_path):
    file = embedding_file(tmp_path, wte=table(257, 16), lm_head=table(257, 16) + 1)
    with pytest.raises(
        ValueError, match=r"has 2 tables of 257 tokens; name one as FILE.safetensors:TENSOR, of lm_head, wte"
    ):
        read(file)
    assert not torch.equal(read(f"{file}:wte"), read(f"{file}:lm_head"))
    with pytest.raises(ValueError, match=r"has no table wpe; name one as FILE.safetensors:TENSOR, of lm_head, wte"):
        read(f"{file}:wpe")


def test_a_table_of_another_vocabulary_or_width_is_refused_with_both_numbers_and_the_way_out(tmp_path):
    file = embedding_file(tmp_path, wte=table(300, 16))
    with pytest.raises(ValueError, match="the file has 0 tables of 257 tokens"):
        read(file)
    with pytest.raises(ValueError, match=r"wte has 300 tokens, the dataset 257; prepare it with that tokenizer"):
        read(f"{file}:wte")
    file = embedding_file(tmp_path, wte=table(257, 6))
    with pytest.raises(ValueError, match=r"is 6 wide and not 16; use arch\.embedding_size=6$"):
        read(file)
    assert read(file, embedding_size=6).shape == (257, 6)


def test_a_file_that_is_not_there_or_is_something_else_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"none.safetensors does not exist; name FILE.safetensors or FILE.safetensors:TENSOR"
    ):
        read(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"12345678 cut off")
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be read as safetensors .*; name another file"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
def test_a_run_begins_with_it_goes_on_bitwise_and_leaves_it_alone_if_it_is_frozen(tmp_path, frozen):
    """Through a projection, on rows that are streamed, each for two segments."""
    generate_text(tmp_path / "sums", source="addition", train=400, test=4, seq_len=13)
    file = embedding_file(tmp_path, wte=table(257, 6))
    words = {f"arch.{key}": value for key, value in {**TEXT_ARCH, "embedding_size": 6}.items()}
    words |= {"arch.pretrained_embeddings": f"{file}:wte", "arch.freeze_embeddings": frozen, "arch.halt_max_steps": 2}
    words |= {"ema": True, "lr_min_ratio": 1, "data_memory_gib": 1e-5}  # 11 kB, for rows of 21 kB

    def planned(name: str, **changes: Any) -> RunPlan:
        given = laid_over([], [f"{key}={str(value).lower()}" for key, value in {**words, **changes}.items()])
        return plan_run(run_config(tmp_path / "sums", tmp_path / name, *given))

    def go_on(name: str, steps: int) -> dict[str, Any]:
        plan = planned(name, max_steps=steps)
        assert not plan.holds_train
        train_in_process(plan, claim_folder(plan, resume=steps > 3 and name == "parts"))
        return load_checkpoint(tmp_path / name / "final_model")

    straight = go_on("straight", 6)
    go_on("parts", 3)
    resumed = go_on("parts", 6)
    for part in ("model", "ema", "carry"):
        assert_same(resumed[part], straight[part])
    begun = read(f"{file}:wte", embedding_size=6)
    assert torch.equal(straight["model"]["embed_tokens"], begun) == frozen
    assert torch.equal(straight["ema"]["embed_tokens"], begun) == frozen
    with pytest.raises(ValueError, match=r"none\.safetensors does not exist"):
        planned("x", **{"arch.pretrained_embeddings": "none.safetensors"})


# ---- reloads ---------------------------------------------------------------------------------------------


def saved(run: Path, **arch: Any) -> tuple[Config, dict[str, Tensor]]:
    """A checkpoint with an average that is one above the weights; return the averaged state."""
    config = config_of(**arch)
    model = build_model(config, SHAPE)
    average = {name: weight.detach() + 1 for name, weight in model.named_parameters()}
    state = {"config": config.model_dump(mode="json"), "shape": vars(SHAPE), "step": 3}
    save_checkpoint(run / "final_model", {**state, "model": model.state_dict(), "ema": average}, None)
    return config, {**model.state_dict(), **average}


@NETWORKS
def test_a_model_is_loaded_begun_with_and_exported_with_its_average(tmp_path, arch):
    config, average = saved(tmp_path / "run", **arch)
    file = tmp_path / "model.safetensors"
    export_checkpoint(tmp_path / "run", file, file_format="safetensors")
    import_checkpoint(file, tmp_path / "again")
    inputs, fresh = torch.arange(24).view(2, 12), build_model(config, SHAPE)
    fresh.load_state_dict(average)
    for source in (tmp_path / "run", file, tmp_path / "again"):
        loaded = load_model(source)
        assert loaded.shape == SHAPE
        assert_same(loaded.model.state_dict(), average)
        assert torch.equal(solve(loaded.model, inputs).logits, solve(fresh, inputs).logits)
        assert_same(initial_weights(source, config, SHAPE, None).model, average)
    assert load_checkpoint(tmp_path / "again" / "final_model")["shape"]["separator"] == 256


@NETWORKS
def test_a_run_of_another_network_is_not_begun_with_it(tmp_path, arch):
    saved(tmp_path / "run", **arch)
    key, value = next(iter(arch.items()))
    with pytest.raises(ValueError, match=rf"has another architecture: .*arch\.{key}={value} there"):
        initial_weights(tmp_path / "run", config_of(), SHAPE, None)
    with pytest.raises(ValueError, match=r"arch\.document_mask=True there and False here"):
        initial_weights(tmp_path / "run", config_of(**arch, document_mask=False), SHAPE, None)


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ({}, "arch.causal=true: the original has false"),
        ({"norm": "pre"}, "arch.norm=pre: the original has post"),
    ],
)
def test_what_the_original_would_compute_otherwise_is_told_when_it_is_exported_to_it(tmp_path, arch, told):
    saved(tmp_path / "run", **arch)
    notes = export_checkpoint(tmp_path / "run", tmp_path / "step_3", file_format="original")
    assert told in notes


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        (TIED, "arch.tied_embeddings=true has other weights than the original, .*; use --format safetensors"),
        (PROJECTED, "arch.embedding_size=6 has other weights than the original, .*; use --format safetensors"),
    ],
)
def test_what_the_original_has_no_weights_for_is_not_exported_to_it(tmp_path, arch, told):
    saved(tmp_path / "run", **arch)
    with pytest.raises(ValueError, match=told):
        export_checkpoint(tmp_path / "run", tmp_path / "step_3", file_format="original")
    assert not (tmp_path / "step_3").exists()


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ({}, r"arch\.causal=False there and True here"),
        (PROJECTED, r"missing: _orig_mod\.model\.inner\.embed_proj\.weight"),
        (TIED, r"surplus: _orig_mod\.model\.inner\.lm_head\.weight"),
    ],
)
def test_a_text_is_not_begun_with_weights_of_the_original(tmp_path, arch, told):
    config = tiny_config(arch={**TEXT_ARCH, "causal": False})
    original = build_model(config, TokenShape(SHAPE.seq_len, SHAPE.vocab_size))
    torch.save(to_original(original.state_dict(), torch.float32), tmp_path / "step_3")
    with pytest.raises(ValueError, match=told):
        initial_weights(tmp_path / "step_3", config_of(**arch), SHAPE, None)
