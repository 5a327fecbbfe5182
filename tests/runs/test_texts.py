"""A model of text sees no label of its own, and means nothing on the tokens of another tokenizer."""

from pathlib import Path

import pytest
from run_helpers import run_config

from trm_ray.kinds.text.generate import generate_text
from trm_ray.kinds.text.prepare import prepare_text
from trm_ray.programs.evaluate import evaluate_run
from trm_ray.programs.train import train
from trm_ray.runs.data import open_data

TEXTS = ["so we beat on, boats against the current\n", "call me whatever, some years ago, never mind how long\n"]
CAUSAL = (
    *("arch.causal=true", "arch.mixer=attention", "arch.pos_encodings=rope", "arch.num_heads=2"),
    *("arch.halt_max_steps=1", "max_steps=1", "eval_interval=1", "ray.num_workers=0"),
)


def corpus(folder: Path, text: str, **options: object) -> Path:
    """A dataset of rows of 8 tokens, of which there are 270, and what they mean follows from the text."""
    folder.mkdir()
    lines = [f"{number} {text}" * 9 for number in range(8)]
    (folder / "a.txt").write_text("".join(lines))
    prepare_text(
        folder / "data",
        inputs=[folder / "a.txt"],
        train_vocab=270,
        seq_len=8,
        document_bytes=400,
        test_share=0.3,
        **options,  # type: ignore[arg-type]
    )
    return folder / "data"


def test_tokens_of_another_tokenizer_are_refused_wherever_data_and_weights_meet(tmp_path: Path):
    pytest.importorskip("tokenizers")
    one, two = (corpus(tmp_path / str(number), text) for number, text in enumerate(TEXTS))
    run = tmp_path / "run"
    train(run_config(one, run, *CAUSAL))
    with pytest.raises(
        ValueError, match=r"has another tokenizer than .*final_model was .*its tokenizer.json: --tokenizer"
    ):
        evaluate_run(run, data=[two])
    with pytest.raises(ValueError, match=r"init_from=.*run was trained with another .*its tokenizer.json: --tokenizer"):
        train(run_config(two, tmp_path / "next", f"init_from={run}", *CAUSAL))
    with pytest.raises(ValueError, match=r"data_paths_test=.* has spelling=tokens of tokenizer.json .*must be equal"):
        open_data(run_config(one, run, f"data_paths_test=[{two}]", *CAUSAL))
    one.rename(tmp_path / "before")
    two.rename(one)
    with pytest.raises(ValueError, match=r"has another tokenizer than .* was trained with; prepare the dataset"):
        train(run_config(one, run, *CAUSAL, "max_steps=2"), resume=True)


def test_text_is_refused_to_a_model_that_would_see_its_labels(tmp_path: Path):
    data = tmp_path / "data"
    generate_text(data, source="reverse", train=8, test=4, seq_len=12, size=3, seed=0)
    with pytest.raises(ValueError, match=r"arch\.causal=false must be true for text: .* sees; use arch\.causal=true"):
        train(run_config(data, tmp_path / "run", "ray.num_workers=0", "max_steps=1"))
    assert not (tmp_path / "run").exists()
