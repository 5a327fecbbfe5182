"""What each mistake is answered with."""

import re

import pytest
from config_helpers import complaint, load, sweep

DID_YOU_MEAN = [
    ("deep_supervision_wieght=0.7", "deep_supervision_weight"),
    ("hidden_size=64", "arch.hidden_size"),
    ("H_cycles=2", "arch.H_cycles"),
    ("arch.h_cycles=2", "arch.H_cycles"),
    ("num_workers=2", "ray.num_workers"),
    ("ray.workers=2", "ray.num_workers"),
    ("arch.lr=1", "lr"),
    ("size=9", "generator.size"),
    ("batch_size=64", "global_batch_size"),
    ("learning_rate=0.5", "lr"),
    ("max-steps=5", "max_steps"),
    ("++seed=5", "seed"),
]


@pytest.mark.parametrize(("override", "meant"), DID_YOU_MEAN)
def test_an_unknown_key_is_answered_with_the_nearest_right_one(override, meant):
    key, _, value = override.partition("=")
    line = complaint(load, override)
    assert line.startswith(f"{key}=")
    assert line.endswith(f"has an unknown key; did you mean `{meant}`?")
    assert value in line


MISTAKES = [
    # wrong type
    ("lr=abc", "lr=abc must be a number above 0; the default is 0.0001"),
    ("lr=true", "lr=true must be a number above 0"),
    ("lr=", "lr= has no value; write lr=VALUE, or lr=null where none is meant"),
    ("lr=null", "lr=null must be a number above 0"),
    ("lr=[1]", "lr=[1] must be a number above 0"),
    ("lr=.nan", "lr=NaN must be a number above 0"),
    ("weight_decay=1e400", "weight_decay=1e400 must be a number of at least 0"),
    ("max_steps=3.7", "max_steps=3.7 must be a whole number of at least 1 or null"),
    ("seed=true", "seed=true must be a whole number"),
    ("ema=1", "ema=1 must be true or false; the default is false"),
    ("ema=maybe", "ema=maybe must be true or false"),
    ("log_dir=[5]", "log_dir=[5] must be text that names a folder"),
    ("data_paths=null", "data_paths=null must be a list of text"),
    ("data_paths=[a, [b]]", "data_paths=[a, [b]] must be a list of text"),
    ("arch=5", "arch=5 must be a section of keys; write arch.KEY=VALUE"),
    # impossible value
    ("lr=0", "lr=0 must be a number above 0"),
    ("lr=-1e-4", "lr=-0.0001 must be a number above 0"),
    ("lr_min_ratio=2", "lr_min_ratio=2 must be a number from 0 to 1"),
    ("lr_warmup_steps=-1", "lr_warmup_steps=-1 must be a whole number of at least 0"),
    ("beta1=1", "beta1=1 must be a number from 0 to below 1"),
    ("beta2=-0.1", "beta2=-0.1 must be a number from 0 to below 1"),
    (
        "deep_supervision_weight=1.5",
        "deep_supervision_weight=1.5 must be a number from 0 to 1; the default is 0.5",
    ),
    ("deep_supervision_weight=-1", "deep_supervision_weight=-1 must be a number from 0 to 1"),
    ("eval_interval=0", "eval_interval=0 must be a whole number of at least 1; the default is 1000"),
    ("log_interval=0", "log_interval=0 must be"),
    ("gradient_stats_interval=0", "gradient_stats_interval=0 must be"),
    ("global_batch_size=0", "global_batch_size=0 must be"),
    (
        "arch.halt_max_steps=0",
        "arch.halt_max_steps=0 must be a whole number of at least 1; the default is 16",
    ),
    ("arch.halt_exploration_prob=1.1", "arch.halt_exploration_prob=1.1 must be a number from 0 to 1"),
    ("arch.H_cycles=0", "arch.H_cycles=0 must be a whole number of at least 1"),
    ("ray.num_workers=-1", "ray.num_workers=-1 must be a whole number of at least 0"),
    ("ray.use_gpu=2", "ray.use_gpu=2 must be true or false"),
    ("generator.name=a/b", "generator.name=a/b must be a name of letters"),
    ("generator.check_existing=1", "generator.check_existing=1 must be true or false"),
    (
        "deep_supervision_schedule=linear",
        "deep_supervision_schedule=linear must be one of constant, linear_decay, exponential_decay, inverse_decay, "
        "last_two, first_and_last; did you mean `linear_decay`?",
    ),
    *(
        (
            f"deep_supervision_weights={value}".replace(" ", ""),
            f"deep_supervision_weights={value} must be null, or a list of numbers of at least 0, the last above 0",
        )
        for value in ("0.3", "[]", "[0.1, 0.3, 0]", "[-0.1, 0.3, 1]", "[a, 0.3, 1]", "[NaN, 0.3, 1]")
    ),
    (
        "deep_supervision_weights=[0.3,1]",
        "deep_supervision_weights=[0.3, 1.0] must have one number for each of arch.H_cycles=3; "
        "write 3 of them, or use arch.H_cycles=2",
    ),
    (
        "deep_supervision_weights=[0.1,0.3,1] deep_supervision_enabled=false",
        "deep_supervision_weights=[0.1, 0.3, 1.0] needs deep_supervision_enabled=true; set it, or leave both",
    ),
    *(
        (f"depth_curriculum={value}", "must be null, or a list of [SHARE, H_CYCLES, L_CYCLES] whose shares")
        for value in (
            *("3", "[]", "[[0,1]]", "[[0.1,3,3]]", "[[0,1,1],[0.3,0,1]]", "[[0,1,1],[0.3,2.5,3]]", "[[0,a,1]]"),
            *("[[0,1,1],[0,3,3]]", "[[0,1,1],[0.5,2,2],[0.4,3,3]]", "[[0,1,1],[1,3,3]]", "[0,1,1]"),
        )
    ),
    (
        "depth_curriculum=[[0,1,1],[0.5,3,2]]",
        "depth_curriculum=[[0.0, 1, 1], [0.5, 3, 2]] must end with arch.H_cycles=3 and arch.L_cycles=3; "
        "use [0.5, null, null] as its last",
    ),
    (
        "depth_curriculum=[[0,2,2],[0.2,3,1],[0.5,3,3]]",
        "must not become shallower, and does at 0.2 from [2, 2] to [3, 1]; let both numbers grow or stay",
    ),
    (
        "depth_curriculum=[[0,1,1],[0.5,3,3]] deep_supervision_weights=[0,0,1]",
        "must not stand beside deep_supervision_weights=[0.0, 0.0, 1.0], which are for arch.H_cycles=3 cycles",
    ),
    ("device=gpu", "device=gpu must be one of auto, cpu, cuda; did you mean `cuda`?"),
    ("compile=maybe", "compile=maybe must be one of auto, true, false; the default is auto"),
    ("compile=ture", "compile=ture must be one of auto, true, false; did you mean `true`?"),
    ("optimizer=adam", "optimizer=adam must be one of adamw, adam_atan2; did you mean `adamw`?"),
    (
        "arch.pos_encodings=None",
        "arch.pos_encodings=None must be one of rope, learned, none; did you mean `none`?",
    ),
    # relations
    (
        "global_batch_size=100 ray.num_workers=8",
        "global_batch_size=100 must be divisible by ray.num_workers=8; use 96 or 104",
    ),
    (
        "global_batch_size=3 ray.num_workers=8",
        "global_batch_size=3 must be divisible by ray.num_workers=8; use 8",
    ),
    (
        "arch.mixer=attention arch.num_heads=5",
        "arch.hidden_size=64 must be divisible by arch.num_heads=5; use 60 or 65",
    ),
    (
        "arch.mixer=attention arch.pos_encodings=rope arch.hidden_size=60",
        "arch.hidden_size=60 must be divisible by twice arch.num_heads=4; use 56 or 64",
    ),
    (
        "arch.pos_encodings=rope",
        "arch.pos_encodings=rope must not go with arch.mixer=mlp; use arch.pos_encodings=none",
    ),
    (
        "arch.causal=true",
        "arch.causal=true must not go with arch.mixer=mlp, which mixes every position with all others; "
        "use arch.mixer=attention",
    ),
    (
        "arch.norm=pre",
        "arch.norm=pre must not go with arch.mixer=mlp, which has a norm of its own; use arch.mixer=attention",
    ),
    (
        "arch.causal=true arch.mixer=attention arch.pos_encodings=learned",
        "arch.pos_encodings=learned must be rope with arch.causal=true: a text's rows begin anywhere in a document, "
        "so that a position in the row means nothing",
    ),
    (
        "arch.causal=true arch.mixer=attention arch.pos_encodings=rope arch.puzzle_emb_ndim=16",
        "arch.puzzle_emb_ndim=16 must be 0 with arch.causal=true: rows of a text are no puzzles with names of their "
        "own",
    ),
    (
        "arch.tied_embeddings=true arch.embedding_size=16",
        "arch.tied_embeddings=true must not go with arch.embedding_size=16, which cannot read an answer of 64; "
        "set one of them",
    ),
    (
        "arch.freeze_embeddings=true",
        "arch.freeze_embeddings=true needs arch.pretrained_embeddings, which is null; name a file",
    ),
    (
        "curriculum_enabled=true curriculum_start_step=500",
        "curriculum_start_step=500 must be less than curriculum_end_step=360; use curriculum_end_step=501",
    ),
    (
        "curriculum_enabled=true deep_supervision_enabled=false",
        "curriculum_enabled=true needs deep_supervision_enabled=true",
    ),
    (
        "recurrent_grad_depth=4",
        "recurrent_grad_depth=4 must be at most arch.H_cycles=3, the cycles that there are; use 3 or less, or all",
    ),
    ("recurrent_grad_depth=0", "recurrent_grad_depth=0 must be a whole number of at least 1, all or null"),
    ("recurrent_grad_depth=every", "recurrent_grad_depth=every must be a whole number of at least 1, all or null"),
    (
        "detach_cycles=true deep_supervision_enabled=false",
        "detach_cycles=true needs deep_supervision_enabled=true; set it, or leave both",
    ),
    ("detach_cycles=true recurrent_grad_depth=2", "recurrent_grad_depth=2 must be null with detach_cycles=true"),
    ("checkpoint_cycles=maybe", "checkpoint_cycles=maybe must be one of auto, true, false"),
    ("max_steps=null epochs=null", "max_steps=null must be given when epochs=null"),
    ("data_paths=[]", "data_paths=[] must name a dataset folder"),
    ("device=cpu ray.use_gpu=true", "ray.use_gpu=true must not go with device=cpu"),
    ("device=cuda", "device=cuda needs ray.use_gpu=true"),
    ("ray.storage_path=s4://b/x", "ray.storage_path=s4://b/x: s4:// is no storage that can be written"),
    ("log_dir=''", "log_dir= must be text that names a folder"),
    ("log_dir=http://b/x", "log_dir=http://b/x: http:// is no storage that can be written"),
    # form
    ("lr", "lr must be key=value"),
    ("=3", "=3 must be key=value"),
    ("lr=[1", "lr=[1 must be a YAML value"),
    ("lr=!!python/name:os.system", "lr=!!python/name:os.system must be a YAML value"),
    ("lr=1e-3 lr=2e-3", "lr=0.001 and lr=0.002 must not both be given; leave one out"),
    (
        "arch={H_cycles: 3} arch.H_cycles=2",
        "arch.H_cycles=3 and arch.H_cycles=2 must not both be given; leave one out",
    ),
    ("config_name=x", "config_name=x must not be overridden; use --config-name x"),
    ("task=sudoku7", "task=sudoku7 must name an existing task; did you mean `sudoku4`, `sudoku6` or `sudoku9`?"),
    ("task=arc3", "task=arc3 must name an existing task; did you mean `arc1` or `arc2`?"),
    ("task=maze_hrd", "task=maze_hrd must name an existing task; did you mean `maze_hard`?"),
    ("task=five_scenarios", "task=five_scenarios must name an existing task, but it is a sweep"),
    ("task=3", "task=3 must name an existing task"),
    ("task=../../etc/passwd", "task=../../etc/passwd must be a name of letters"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=[item[0][:60] for item in MISTAKES])
def test_a_mistake_is_answered_with_key_value_rule_and_way_out(overrides, expected):
    arguments = [overrides] if overrides == "data_paths=[a, [b]]" else re.split(r"(?<!:) ", overrides)
    assert expected in complaint(load, *arguments)


def test_several_mistakes_are_counted():
    assert complaint(load, "lr=x", "beta1=x", "arch.H_cycles=x").endswith("(and 2 more)")


def test_a_key_must_not_be_given_twice_to_a_sweep():
    told = "seeds=[0] and seeds=[1] must not both be given; leave one out"
    assert complaint(sweep, "seeds=[0]", "seeds=[1]") == told
    assert complaint(sweep, "lr=1e-3", "overrides.lr=2e-3").startswith("lr=0.001 and lr=0.002 must not both")


def test_a_section_that_is_removed_first_may_be_given_anew():
    made = load("generator=null", "generator.size=4").generator
    assert made is not None
    assert made.model_extra == {"size": 4}
