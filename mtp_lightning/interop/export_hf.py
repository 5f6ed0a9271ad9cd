"""A model as `transformers` holds it: configuration, tensors under its names, and the code that goes with them.

    llama      n = 1, or head 1 alone                  a stock class
    standard   `sequential`, `recurrent`               a stock class + 15 lines, `generate(use_mtp=True)`
    own        `parallel`, `causal`, `linear`          code of our own, `generate(custom_generate=FOLDER)`

Widths of a parameter-matched trunk are made equal by zero columns, which leave the function as it is: gate and up give
0 there, and down adds nothing. So one configuration with one width holds every model, and the stock classes of every
server read it; a list of widths would need code that only `transformers` runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import hf_config
from mtp_lightning.interop.hf_names import SHARED_HEAD_NORM, Layout, swap_halves, tensor_names
from mtp_lightning.model.config import JOINED, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import trunk_widths
from mtp_lightning.model.mtp import MTPModel

OWN_CODE: tuple[str, ...] = ("parallel", "causal", "linear")
"""Kinds whose heads `remote_code/modeling_mtp_lightning.py` computes."""
LINEAR = "mtp_linear"
"""Model type of kind `linear`, which no stock class loads; `mtp_family` says which layers it has."""
INSTEAD = "`--heads 1` exports head 1 as an ordinary Llama, `--to safetensors` all of it for `mtp` itself"


Precision = torch.dtype | Mapping[str, torch.dtype] | None


class Exported(NamedTuple):
    """What a folder for `transformers` holds of a model."""

    layout: Layout
    family: str
    """Whose classes compute its layers: Llama, Mistral, Qwen2, Qwen3."""
    heads: int
    """Prediction heads that are in it."""
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    changes: list[str]
    """What is other than a renaming, for the card."""
    dtypes: dict[str, torch.dtype]
    """Our name of each weight that is in it -> the precision that it was written in."""


def choose_layout(heads: HeadsConfig, keep: int | None = None) -> Layout:
    """The layout that holds these heads, all of them, or the first alone with `keep` = 1.

    Raises:
        InputError: there is none; names the key, and what would work instead.
    """
    if keep == 1 and heads.kind != "linear":
        return "llama"
    if heads.n_future == 1 and heads.kind != "linear":
        return "llama"
    n = f"n_future {heads.n_future}"
    if heads.is_own or heads.kind not in (*JOINED, *OWN_CODE):
        raise InputError(f"model.heads.kind is '{heads.kind}' with {n}: no layout holds such heads; {INSTEAD}")
    if heads.horizon != heads.n_future and keep != 1:
        raise InputError(
            f"model.heads.offsets is {list(heads.head_offsets)}: heads 1 .. n are served only where head i predicts "
            f"the i-th token ahead; {INSTEAD}"
        )
    if heads.kind in OWN_CODE:
        return "own"
    if heads.layers > 1:
        raise InputError(f"model.heads.layers is {heads.layers}: in the MTP standard a head has one layer; {INSTEAD}")
    if heads.replicate_unembedding:
        raise InputError(
            f"model.heads.replicate_unembedding: in the MTP standard all heads share one unembedding; {INSTEAD}"
        )
    return "standard"


@torch.no_grad()
def export_model(model: MTPModel, keep: int | None = None, dtype: Precision = None) -> Exported:
    """
    Args:
        keep: 1: head 1 alone; None: all heads.
        dtype: of every tensor, or of some by our names; others keep the model's.

    Raises:
        InputError: no layout holds these heads.
    """
    backbone, heads = model.config, model.heads_config
    layout = choose_layout(heads, keep)
    count = 1 if keep == 1 else heads.n_future
    names = tensor_names(backbone, heads, layout, count)
    weights, changes = model.state_dict(), []
    fold = layout == "standard" and folds(model)
    if fold:
        changes.append(
            "The final norm's weight is folded into the unembedding, and all final norms are ones, since the standard "
            "hands the normed state on to the next head."
        )
        weights["unembedding.weight"] = weights["unembedding.weight"].float() * weights["norm.weight"].float()
        weights["norm.weight"] = torch.ones_like(weights["norm.weight"])
    tied = backbone.tie_embeddings and not fold
    if backbone.tie_embeddings and fold:
        changes.append("The tied unembedding is written on its own for the same reason.")
    if tied:
        names.pop("lm_head.weight")
    width = swiglu_width(backbone, heads)
    if set(trunk_widths(backbone, heads)) | {width} != {width}:
        changes.append(f"Narrower SwiGLUs are padded to {width} columns with zeros, which change nothing.")
    given = dict.fromkeys(names.values(), dtype) if isinstance(dtype, torch.dtype) else dtype or {}
    dtypes = {ours: given.get(ours, model.embedding.weight.dtype) for ours in names.values()}
    tensors = {theirs: _converted(theirs, weights[ours], width).to(dtypes[ours]) for theirs, ours in names.items()}
    if layout == "standard" and heads.norms == "shared":
        first = len(trunk_widths(backbone, heads)) + 1
        norm = tensors["model.norm.weight"]
        tensors |= {SHARED_HEAD_NORM.format(first + i): norm for i in range(count - 1)}
    if layout == "standard" and heads.kind == "recurrent" and count > 2:
        changes.append(f"The one module of heads 2 to {count} is written {count - 1} times.")
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    config = hf_config(replace(backbone, ffn_dim=width, tie_embeddings=tied), path_layers(backbone, heads))
    family = config["architectures"][0].removesuffix("ForCausalLM")
    config |= _heads_config(backbone, heads, layout, family, count) | {"dtype": _dtype_name(tensors)}
    return Exported(layout, family, count, config, tensors, changes, dtypes)


def folds(model: MTPModel) -> bool:
    """Whether the norm that all heads share has to go into the unembedding for the standard."""
    return model.heads_config.norms == "shared" and bool((model.norm.weight != 1).any())


def swiglu_width(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """That of the widest layer."""
    layers = () if heads.kind == "linear" else (backbone.ffn,)
    return max(*trunk_widths(backbone, heads), *layers)


def path_layers(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Transformer layers between embedding and norm on the way to head 1."""
    own = {"linear": 0, "anticausal": heads.n_future * heads.layers}.get(heads.kind, heads.layers)
    return len(trunk_widths(backbone, heads)) + own


def _converted(name: str, weight: Tensor, width: int) -> Tensor:
    if name.endswith("eh_proj.weight"):
        return swap_halves(weight)
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        return F.pad(weight, (0, 0, 0, width - weight.shape[0]))
    if name.endswith("down_proj.weight"):
        return F.pad(weight, (0, width - weight.shape[1]))
    return weight


def context_of(backbone: BackboneConfig, trained: int | None) -> int:
    """Positions that the configuration names: those it was trained on, or for which its rotary positions were slowed;
    2048, as in Llama, where neither is known."""
    scaling = backbone.rope_scaling
    return trained or int((scaling.original_context or 2048) * scaling.factor)


def _heads_config(
    backbone: BackboneConfig, heads: HeadsConfig, layout: Layout, family: str, count: int
) -> dict[str, Any]:
    """What config.json says of the heads, and of the code that they need."""
    if layout == "llama":
        return {}
    if layout == "standard":
        config: dict[str, Any] = {"num_nextn_predict_layers": count - 1, "num_mtp_layers": count - 1}
        if family.startswith("Qwen"):  # whose layers have types
            config["mtp_layer_types"] = ["full_attention"] * (count - 1)
        return config | _code(f"modeling_mtp_{family.lower()}", f"Mtp{family}ForCausalLM")
    config = {
        "mtp_kind": heads.kind,
        "mtp_n_future": count,
        "mtp_trunk_layers": len(trunk_widths(backbone, heads)),
        "mtp_head_layers": heads.layers,
        "mtp_unembeddings": heads.replicate_unembedding and count > 1,
        **_code("modeling_mtp_lightning", "MtpLightningForCausalLM"),
    }
    if heads.kind == "linear":
        config |= _code("modeling_mtp_lightning", "MtpLinearForCausalLM")
        config |= {"model_type": LINEAR, "mtp_family": family.lower()}
        config["auto_map"]["AutoConfig"] = "modeling_mtp_lightning.MtpLinearConfig"
    return config


def _code(module: str, name: str) -> dict[str, Any]:
    return {"architectures": [name], "auto_map": {"AutoModelForCausalLM": f"{module}.{name}"}}


def code_files(exported: Exported) -> dict[str, str]:
    """Path in the folder -> file of `remote_code` that goes there."""
    if exported.layout == "llama":
        return {}
    module = exported.config["auto_map"]["AutoModelForCausalLM"].split(".")[0]
    files = {f"{module}.py": "modeling_mtp_llama.py" if exported.layout == "standard" else f"{module}.py"}
    return files | ({"custom_generate/generate.py": "generate.py"} if exported.layout == "own" else {})


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    """What they are loaded in: float32, which holds all, where they differ."""
    found = {tensor.dtype for tensor in tensors.values()}
    return str(found.pop() if len(found) == 1 else torch.float32).removeprefix("torch.")
