"""How the original TRM code lays out its checkpoints: names of weights, what their shapes tell, its config's keys.

Source: github.com/SamsungSAILMontreal/TinyRecursiveModels, `pretrain.py` and `models/recursive_reasoning/trm.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_ray.config import ArchConfig, Config
from trm_ray.config.errors import show
from trm_ray.interop.foreign import Shut, load_shut
from trm_ray.model.layers import swiglu_inner_size
from trm_ray.storage import local_file
from trm_ray.training.state import TokenShape, build_model

PREFIX = "_orig_mod.model.inner."
TABLE = "puzzle_embedding.table"
_WRAPPERS = frozenset({"_orig_mod", "module", "model", "inner"})  # torch.compile, DDP, the loss head, the ACT wrapper
_STATE_KEYS = ("model", "state_dict", "model_state_dict")  # what a wrapping dict calls the weights
MULTIPLE_OF = 256  # of every feed-forward width

# In the order in which the original saves them; the layers follow.
_NAMES = {
    "H_init": "answer_init",
    "L_init": "latent_init",
    "embed_tokens.embedding_weight": "embed_tokens",
    "lm_head.weight": "lm_head.weight",
    "q_head.weight": "q_head.weight",
    "q_head.bias": "q_head.bias",
    "puzzle_emb.weights": TABLE,
    "embed_pos.embedding_weight": "embed_positions",
}
_PARTS = {"self_attn": "mixer", "mlp_t": "mixer.mlp", "mlp": "mlp"}
_LAYER = re.compile(r"L_level\.layers\.(\d+)\.(self_attn|mlp_t|mlp)\.(\w+)\.weight")
_BLOCK = re.compile(r"blocks\.(\d+)\.(mixer\.mlp|mixer|mlp)\.(\w+)\.weight")
_MIXERS = re.compile(r"blocks\.\d+\.mixer\.(mlp\.)?")


def our_name(key: str) -> str | None:
    """Translate a key of the original's state dict, whatever wraps it; None if it is none of TRM's."""
    bare = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    if layer := _LAYER.fullmatch(bare):
        return f"blocks.{layer[1]}.{_PARTS[layer[2]]}.{layer[3]}.weight"
    return _NAMES.get(bare)


def original_name(name: str) -> str:
    """Translate one of our names to the original's key, as a compiled model saves it, or to one that it would have."""
    if block := _BLOCK.fullmatch(name):
        part = next(theirs for theirs, ours in _PARTS.items() if ours == block[2])
        return f"{PREFIX}L_level.layers.{block[1]}.{part}.{block[3]}.weight"
    return PREFIX + next((theirs for theirs, ours in _NAMES.items() if ours == name), name)


@dataclass(frozen=True)
class Weights:
    """Weights from a file, by our names.

    average: their moving average, where the file holds both. keys: the file's own name of each. surplus: keys that
    are none of TRM's. step: the optimizer steps taken, if the file says so.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    keys: dict[str, str]
    surplus: tuple[str, ...]
    step: int | None


def read_original(path: Path) -> Weights:
    """Read a checkpoint of the original, memory-mapped where its format allows that; code in it never runs.

    Raises:
        ValueError: the file is no checkpoint, or names a weight twice.
    """
    try:
        held = load_shut(local_file(path))
    except ValueError as error:
        rule = f"cannot be read as a checkpoint of weights alone: {error}"
        raise ValueError(f"{path} {rule}; name a step_N file") from None
    try:
        return _weights(path, held)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no state dict of TRM ({type(error).__name__}); name a step_N file") from error


def _weights(path: Path, held: Any) -> Weights:
    state = _state_dict(held)
    if state is None:
        raise ValueError(f"{path} holds {_described(held)}, and no state dict of TRM; name a step_N file")
    weights = translate(state, str(path))
    average, step = held.get("ema_helper"), held.get("step")
    if average and not isinstance(average, Mapping):
        raise ValueError(f"{path} holds ema_helper, the averaged weights, as {_described(average)}")
    return replace(
        weights,
        average=translate(average, f"ema_helper of {path}").model if average else None,
        step=None if step is None else int(step),
    )


def _described(held: Any) -> str:
    """Say what a file holds instead of weights."""
    if isinstance(held, Shut):
        return f"a whole object of the class {held.path}, which is not made alive here (save its state_dict())"
    if not isinstance(held, Mapping):
        return type(held).__name__
    inner = [value for part in held.values() if isinstance(part, Mapping) for value in part.values()]
    shut = sorted({value.path for value in [*held.values(), *inner] if isinstance(value, Shut)})
    keys = f"the keys {', '.join(map(str, list(held)[:5]))}" if held else "nothing"
    return keys + (f", in them objects of {', '.join(shut[:3])}" if shut else "")


def _state_dict(held: Any) -> dict[str, Any] | None:
    """Find the state dict: the thing itself, or inside one dict or two."""
    if not isinstance(held, Mapping):
        return None
    if any(isinstance(value, Tensor) and our_name(str(key)) for key, value in held.items()):
        return dict(held)
    inner = (held[key] for key in _STATE_KEYS if key in held)
    return next(filter(None, map(_state_dict, inner)), None)


def translate(state: Mapping[str, Any], source: str) -> Weights:
    """Give a state dict our names.

    Raises:
        ValueError: two keys name the same weight.
    """
    keys: dict[str, str] = {}
    for key, value in state.items():
        name = our_name(key) if isinstance(value, Tensor) else None
        if name in keys:
            raise ValueError(f"{source} holds {keys[name]} and {key}, which name the same weight; remove one")
        if name is not None:
            keys[name] = key
    known = set(keys.values())
    surplus = tuple(key for key in state if key not in known)
    return Weights({name: state[key] for name, key in keys.items()}, None, keys, surplus, None)


def to_original(model: Mapping[str, Tensor], forward_dtype: torch.dtype) -> dict[str, Tensor]:
    """Lay weights out as the original saves them: its keys, order and dtypes.

    The original keeps weights in float32 and makes the two initial states in the dtype of its recursion.
    """
    order = [*_NAMES.values(), *model]
    names = sorted(model, key=lambda name: (order.index(name), name))
    dtypes = {"answer_init": forward_dtype, "latent_init": forward_dtype}
    return {
        original_name(name): model[name].detach().to(dtypes.get(name, torch.float32)).contiguous() for name in names
    }


# ---- architecture ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What the shapes of weights tell of the architecture; None where they do not.

    num_positions: board and prefix. feature_width, position_width: of the SwiGLUs over features and positions.
    """

    vocab_size: int
    hidden_size: int
    L_layers: int
    mixer: str
    learned: bool
    puzzle_emb_ndim: int
    num_puzzle_identifiers: int | None
    num_positions: int | None
    feature_width: int | None
    position_width: int | None
    forward_dtype: str | None


def facts_of(weights: Mapping[str, Tensor]) -> Facts:
    """Read off shapes what they tell.

    Raises:
        ValueError: neither the token embedding nor the head is there, which both are (vocabulary, features).
    """
    tables = [weights[name] for name in ("embed_tokens", "lm_head.weight") if name in weights]
    sized = next((table for table in tables if table.dim() == 2), None)
    if sized is None:
        keys = " and ".join(map(original_name, ("embed_tokens", "lm_head.weight")))
        raise ValueError(f"{keys} are missing or misshapen; they must be (vocabulary, features)")
    vocab_size, hidden_size = sized.shape
    if "embed_proj.weight" in weights:  # from a token embedding of another width
        hidden_size = len(weights["embed_proj.weight"])
    layers = [int(block[1]) for name in weights if (block := _BLOCK.fullmatch(name))]
    narrowing = {name: weight for name, weight in weights.items() if name.endswith(".mlp.down_proj.weight")}
    over_features = next((weight for name, weight in narrowing.items() if ".mixer." not in name), None)
    over_positions = next((weight for name, weight in narrowing.items() if ".mixer." in name), None)
    spanning = weights.get("embed_positions", over_positions)
    mixers = [match[1] for name in weights if (match := _MIXERS.match(name))]
    table, start = weights.get(TABLE), weights.get("answer_init")
    return Facts(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        L_layers=1 + max(layers, default=0),
        mixer="mlp" if any(mixers) else "attention",
        learned="embed_positions" in weights,
        puzzle_emb_ndim=0 if table is None else table.shape[-1],
        num_puzzle_identifiers=None if table is None else len(table),
        num_positions=None if spanning is None else len(spanning),
        feature_width=None if over_features is None else over_features.shape[-1],
        position_width=None if over_positions is None else over_positions.shape[-1],
        forward_dtype=None if start is None else str(start.dtype).removeprefix("torch."),
    )


def expansion_of(facts: Facts, multiple_of: int = MULTIPLE_OF) -> float | None:
    """Find an expansion that gives the widths at hand; the original's 4 if it does, None if none does.

    Widths are rounded up, so many expansions give the same network.
    """
    sizes = [(facts.hidden_size, facts.feature_width), (facts.num_positions, facts.position_width)]
    pairs = [(size, width) for size, width in sizes if size and width]
    candidates = [4.0, *(1.5 * width / size for size, width in pairs)]
    fitting = (e for e in candidates if all(swiglu_inner_size(n, e, multiple_of) == width for n, width in pairs))
    return next(fitting, None)


_SAME_RUN_KEYS = (
    *("global_batch_size", "epochs", "lr", "lr_min_ratio", "lr_warmup_steps", "beta1", "beta2", "weight_decay"),
    *("puzzle_emb_lr", "puzzle_emb_weight_decay", "data_paths", "data_paths_test", "seed", "checkpoint_every_eval"),
    *("ema", "ema_rate", "freeze_weights"),
)
# Keys that say nothing of the network or its recipe, or that have one meaning here.
_IDLE_ARCH = {"name", "loss", "H_layers", "batch_size", "causal", "vocab_size", "num_puzzle_identifiers"}
_IDLE_KEYS = {
    *("arch", "evaluators", "eval_interval", "eval_save_outputs", "min_eval_interval"),
    *("project_name", "run_name", "checkpoint_path", "load_checkpoint"),
}
# What is always so there, by our keys.
AS_THE_ORIGINAL = {
    **{"norm": "post", "causal": False, "document_mask": True, "embedding_size": None, "tied_embeddings": False},
    **{"pretrained_embeddings": None, "freeze_embeddings": False},
}
_NETWORK = "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1"


def our_arch(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate the original's `arch` keys, or ours, to ours and `seq_len`; also return those that mean nothing here.

    Raises:
        ValueError: `arch.name` is another network than TRM.
    """
    if (name := theirs.get("name", _NETWORK)) != _NETWORK:
        raise ValueError(f"arch.name={name} is another network; only checkpoints of {_NETWORK} can be imported")
    ours = {key: value for key, value in theirs.items() if key in ArchConfig.model_fields}
    if "mlp_t" in theirs:
        ours["mixer"] = "mlp" if theirs["mlp_t"] else "attention"
    if "seq_len" in theirs:
        ours["seq_len"] = theirs["seq_len"]
    if ours.get("mixer") == "mlp" and ours.get("pos_encodings") == "rope":
        ours["pos_encodings"] = "none"  # the original makes the tables and never uses them
    idle = set(theirs) - set(ours) - _IDLE_ARCH - {"mlp_t"}
    if theirs.get("no_ACT_continue", True):
        idle.discard("no_ACT_continue")
    return ours, sorted(idle)


def our_recipe(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Translate the original's keys outside `arch`; also return those that mean nothing here.

    What the original does without a key comes along: AdamATan2, no clipping, a loss of the last H-cycle alone.
    """
    loss = (theirs.get("arch") or {}).get("loss") or {}
    ours = {key: theirs[key] for key in _SAME_RUN_KEYS if theirs.get(key) is not None}
    if "lr_warmup_steps" in ours:
        ours["lr_warmup_steps"] = round(float(ours["lr_warmup_steps"]))
    ours |= {"optimizer": "adam_atan2", "grad_clip_norm": None, "deep_supervision_enabled": False}
    ours["loss_type"] = loss.get("loss_type", "stablemax_cross_entropy")
    return ours, sorted(set(theirs) - set(ours) - _IDLE_KEYS - set(_SAME_RUN_KEYS))


def original_arch(arch: ArchConfig) -> dict[str, Any]:
    """Translate an architecture to the original's `arch` keys, as its command line takes them."""
    ours_alone = {"mixer", "mixer_norm", "ffn_multiple_of", "residual_init_scale", *AS_THE_ORIGINAL}
    values = arch.model_dump(exclude=ours_alone)
    return {**values, "puzzle_emb_len": arch.prefix_len, "mlp_t": arch.mixer == "mlp", "H_layers": 0}


def foreign_to_original(arch: ArchConfig) -> list[str]:
    """List what the original cannot do with weights of an architecture, in words."""
    limits = []
    if arch.mixer == "mlp" and arch.mixer_norm != "positions":
        limits.append(f"arch.mixer_norm={arch.mixer_norm}: the original norms over positions and answers differently")
    if arch.ffn_multiple_of != MULTIPLE_OF:
        limits.append(f"arch.ffn_multiple_of={arch.ffn_multiple_of}: the original has {MULTIPLE_OF} built in")
    if arch.L_cycles == 0:
        limits.append("arch.L_cycles=0: the original leaves the question out where there is no latent update")
    for key in ("norm", "causal", "embedding_size", "tied_embeddings"):
        if getattr(arch, key) != AS_THE_ORIGINAL[key]:
            limits.append(f"arch.{key}={show(getattr(arch, key))}: the original has {show(AS_THE_ORIGINAL[key])}")
    return limits


def check_layout(arch: ArchConfig) -> None:
    """Refuse an architecture whose weights are not those that the original has.

    Raises:
        ValueError: the token embedding is tied to the head, or projected.
    """
    for key in ("tied_embeddings", "embedding_size"):
        if (value := getattr(arch, key)) not in (AS_THE_ORIGINAL[key], arch.hidden_size):
            rule = "has other weights than the original, which could not load them"
            raise ValueError(f"a model with arch.{key}={show(value)} {rule}; use --format safetensors")


# ---- checks ----------------------------------------------------------------------------------------------


def contradictions(arch: ArchConfig, shape: TokenShape, facts: Facts) -> list[str]:
    """List the values that the weights' shapes deny, in words."""
    positions = arch.prefix_len + shape.seq_len
    width = swiglu_inner_size(arch.hidden_size, arch.expansion, arch.ffn_multiple_of)
    span = f"seq_len={shape.seq_len} and a prefix of {arch.prefix_len}"
    claims = [
        (f"hidden_size={arch.hidden_size}", arch.hidden_size, facts.hidden_size, "embed_tokens has {} columns"),
        (f"vocab_size={shape.vocab_size}", shape.vocab_size, facts.vocab_size, "embed_tokens has {} rows"),
        (f"mixer={arch.mixer}", arch.mixer, facts.mixer, "the layers are those of mixer={}"),
        (f"expansion={arch.expansion:g}", width, facts.feature_width, "mlp.down_proj has {} columns"),
        (span, positions, _positions(arch, facts), "the weights span {} positions"),
    ]
    if facts.num_puzzle_identifiers:
        ndim, rows = arch.puzzle_emb_ndim, shape.num_puzzle_identifiers
        claims.append((f"puzzle_emb_ndim={ndim}", ndim, facts.puzzle_emb_ndim, "puzzle_emb has {} columns"))
        claims.append((f"num_puzzle_identifiers={rows}", rows, facts.num_puzzle_identifiers, "puzzle_emb has {} rows"))
    return [f"{claim} but {seen.format(there)}" for claim, given, there, seen in claims if there and given != there]


def check_weights(weights: Weights, config: Config, shape: TokenShape, source: str) -> None:
    """Hold weights against the network of a config.

    Raises:
        ValueError: one line that names all that contradicts, is missing, surplus or misshapen.
    """
    facts = facts_of(weights.model)
    wanted = _network(config, shape, facts)
    wrong = contradictions(config.arch, shape, facts)
    wrong += _listed("missing", [original_name(name) for name in wanted if name not in weights.model])
    wrong += _listed("surplus", [*weights.surplus, *(weights.keys[n] for n in weights.model if n not in wanted)])
    wrong += _listed("misshapen", _misshapen(weights.model, wanted))
    if weights.average is not None:
        buffers = {"answer_init", "latent_init", TABLE}
        absent = [original_name(name) for name in wanted if name not in {*weights.average, *buffers}]
        wrong += _listed("missing in the average", absent)
        wrong += _listed("misshapen in the average", _misshapen(weights.average, wanted))
    if wrong:
        blank = TABLE in wanted and TABLE not in weights.model
        way_out = (
            "--puzzle-embedding drop begins with a blank table" if blank else "mend the values or name another file"
        )
        raise ValueError(f"{source} does not fit its architecture: {'; '.join(wrong)}; {way_out}")


def _network(config: Config, shape: TokenShape, facts: Facts) -> dict[str, Tensor]:
    """Lay out the weights, without values, of a config in which what they tell stands for what they deny.

    So whatever does not fit is another fault than those that `contradictions` names.
    """
    arch, positions = _arch_as_told(config.arch, facts), _positions(config.arch, facts)
    seq_len = max(1, positions - arch.prefix_len) if positions else shape.seq_len
    with torch.device("meta"):
        told = replace(shape, seq_len=seq_len, vocab_size=facts.vocab_size, num_puzzle_identifiers=1)
        model = build_model(config.model_copy(update={"arch": arch}), told)
    return model.state_dict()


def _arch_as_told(arch: ArchConfig, facts: Facts) -> ArchConfig:
    learned = arch.pos_encodings == "learned"
    known: dict[str, Any] = {"hidden_size": facts.hidden_size, "mixer": facts.mixer}
    if facts.num_puzzle_identifiers:
        known["puzzle_emb_ndim"] = facts.puzzle_emb_ndim
    # These have no weights, but do not go with every size.
    known |= {"num_heads": 1, "pos_encodings": "learned" if learned else "none"}
    width = swiglu_inner_size(facts.hidden_size, arch.expansion, arch.ffn_multiple_of)
    if facts.feature_width not in (None, width):
        known["expansion"] = expansion_of(facts, arch.ffn_multiple_of) or arch.expansion
    return arch.model_copy(update=known)


def _positions(arch: ArchConfig, facts: Facts) -> int | None:
    """Return the positions that the weights span, None if they or those of the architecture do not tell."""
    return facts.num_positions if facts.learned == (arch.pos_encodings == "learned") else None


def _listed(word: str, keys: list[str]) -> list[str]:
    return [f"{word}: {', '.join(keys)}"] if keys else []


def _misshapen(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say of each weight of another shape which it should have; the table may have any number of rows."""
    wrong = []
    for name in weights.keys() & wanted.keys():
        have, want = tuple(weights[name].shape), tuple(wanted[name].shape)
        if name == TABLE:
            want = (*have[:1], *want[1:])
        if have != want:
            wrong.append(f"{original_name(name)} {have} must be {want}")
    return sorted(wrong)


def infer_arch(given: Mapping[str, Any], facts: Facts, *, told_all: bool) -> tuple[dict[str, Any], list[str]]:
    """Complete an architecture from shapes.

    Args:
        given: our keys that somebody has given, `seq_len` among them.
        told_all: a config file was given, so that keys it lacks have the original's defaults.

    Returns:
        Our keys and `seq_len`, and the names of those that are still to be asked for.
    """
    arch = {
        "hidden_size": facts.hidden_size,
        "L_layers": facts.L_layers,
        "mixer": facts.mixer,
        "puzzle_emb_ndim": facts.puzzle_emb_ndim,
        "forward_dtype": facts.forward_dtype or "bfloat16",
        **given,
    }
    if "expansion" not in arch and (fitting := expansion_of(facts, arch.get("ffn_multiple_of", MULTIPLE_OF))):
        arch["expansion"] = fitting
    if facts.learned or arch["mixer"] == "mlp":
        arch.setdefault("pos_encodings", "learned" if facts.learned else "none")
    if arch["mixer"] == "mlp":  # heads play no part
        arch.setdefault("num_heads", 1)
    _infer_lengths(arch, facts, told_all)
    needed = ("H_cycles", "L_cycles", "num_heads", "expansion", "pos_encodings", "puzzle_emb_len", "seq_len")
    return arch, [key for key in needed if key not in arch]


def _infer_lengths(arch: dict[str, Any], facts: Facts, told_all: bool) -> None:
    """Part the positions into prefix and board, as far as one of the two is known."""
    ndim, positions = arch["puzzle_emb_ndim"], facts.num_positions
    if told_all or not ndim:
        arch.setdefault("puzzle_emb_len", 16)  # counts for nothing without an embedding
    if positions and positions > arch.get("seq_len", positions):
        arch.setdefault("puzzle_emb_len", positions - arch["seq_len"])
    if positions and "puzzle_emb_len" in arch:
        prefix = (arch["puzzle_emb_len"] or -(-ndim // arch["hidden_size"])) if ndim else 0
        if positions > prefix:
            arch.setdefault("seq_len", positions - prefix)
