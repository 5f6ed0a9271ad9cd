"""Meta's own layout, that of Llama's first releases and of the multi-token prediction paper's models: params.json, and
consolidated.*.pth, several where the model was split over processors.

In the paper's release `layers` holds the trunk and, as its last, head 1; `extra_heads` are heads 2 .. n.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.interop.hf_config import check_context
from mtp_lightning.interop.importing.hf_folder import read_json, require
from mtp_lightning.interop.importing.import_hf import Imported, model_shapes
from mtp_lightning.model.config import BackboneConfig, HeadsConfig, Layers, RopeScaling, Width
from mtp_lightning.model.weights import Spec, Weights
from mtp_lightning.ranges import TINY, Range, check_value

PARAMS = "params.json"
BLOCK = {
    "attention.wq": "attention.wq",
    "attention.wk": "attention.wk",
    "attention.wv": "attention.wv",
    "attention.wo": "attention.wo",
    "ffn.gate": "feed_forward.w1",
    "ffn.up": "feed_forward.w3",
    "ffn.down": "feed_forward.w2",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
TOP = {"embedding": "tok_embeddings", "norm": "norm", "unembedding": "output"}
SPLIT_COLUMNS = ("attention.wo", "feed_forward.w2")
"""Matrices of which each file has columns, as of the embedding until Llama 3; of others rows. Norms are in every file,
whole."""
NUMBERS: dict[str, Any] = {
    "dim": Width,
    "n_layers": Layers,
    "n_heads": Width,
    "n_kv_heads": Width | None,
    "vocab_size": Width,
    "multiple_of": Width,
    "ffn_dim_multiplier": Annotated[float, Range(above=0, most=1000)] | None,
    "norm_eps": Annotated[float, Range(least=TINY, most=1)],
    "rope_theta": Annotated[float, Range(least=1, most=1e18)],
    "n_future_tokens": Layers,
    "max_seq_len": Annotated[int, Range(least=1, most=10**9)],
}
"""Keys of params.json with what they may be, null where Meta's code has it so; -1 as vocab_size is the tokenizer's."""
KNOWN = {*NUMBERS, "use_scaled_rope", "max_batch_size", "model_parallel_size"}


def meta_names(heads: HeadsConfig, trunk: int) -> dict[str, str]:
    """Meta's name of each weight -> ours, of `parallel` heads of one layer each."""
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in TOP.items()}
    places = {f"layers.{i}": f"trunk.{i}" for i in range(trunk)} | {f"layers.{trunk}": "heads.0.0"}
    places |= {f"extra_heads.{j}": f"heads.{j + 1}.0" for j in range(heads.n_future - 1)}
    for theirs, ours in places.items():
        names |= {f"{theirs}.{part}.weight": f"{ours}.{mine}.weight" for mine, part in BLOCK.items()}
    return names


def to_half_split(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of queries or keys: Meta rotates the neighbours (2j, 2j + 1) of each attention head, we (j, j + E/2)."""
    return rows.view(-1, head_dim // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def to_neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """The way back."""
    return rows.view(-1, 2, head_dim // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def read_params(
    params: Mapping[str, Any], vocab_size: int, rope_factor: float | None = None
) -> tuple[BackboneConfig, HeadsConfig]:
    """
    Args:
        vocab_size: rows of the embedding, where the file says -1: the tokenizer's.
        rope_factor: how many times slower `use_scaled_rope` is, which the file does not say.

    Raises:
        InputError: something that a model here does not compute; names the key of params.json.
    """
    unknown = sorted(params.keys() - KNOWN)
    if unknown:
        raise InputError(f"{unknown[0]} is {params[unknown[0]]!r}: this key is not known, and may change the model")
    for key, hint in NUMBERS.items():
        if key in params and not (key == "vocab_size" and params[key] == -1):
            check_value(key, params[key], hint)
        elif key in ("dim", "n_layers", "n_heads"):
            raise InputError(f"{key} is missing")
    if type(params.get("use_scaled_rope", False)) is not bool:
        raise InputError(f"use_scaled_rope is {params['use_scaled_rope']!r}: it has to be true or false")
    n = params.get("n_future_tokens", 1)
    if n >= params["n_layers"]:
        raise InputError(f"n_future_tokens is {n}, and n_layers {params['n_layers']}: there have to be more layers")
    kv_heads = params.get("n_kv_heads")
    backbone = BackboneConfig(
        vocab_size=vocab_size if params.get("vocab_size", -1) == -1 else params["vocab_size"],
        dim=params["dim"],
        n_layers=params["n_layers"] - n + 1,
        n_heads=params["n_heads"],
        n_kv_heads=None if kv_heads == params["n_heads"] else kv_heads,
        ffn_dim=ffn_width(params),
        rope_theta=float(params.get("rope_theta", 10_000.0)),
        norm_eps=params.get("norm_eps", 1e-5),
        rope_scaling=_scaling(params, rope_factor),
    )
    return backbone, HeadsConfig(n_future=n, kind="parallel", match="none") if n > 1 else HeadsConfig()


def _scaling(params: Mapping[str, Any], factor: float | None) -> RopeScaling:
    """Llama 3.1 and 3.2 have the same `use_scaled_rope: true` and other factors (meta-llama/llama-models#166)."""
    if not params.get("use_scaled_rope", False):
        if factor is not None:
            raise InputError(f"--rope_factor is {factor:g}, which goes with use_scaled_rope: true alone")
        return RopeScaling()
    if factor is None:
        raise InputError(
            "use_scaled_rope is true, which does not say how much slower positions rotate: give --rope_factor 8 for "
            "Llama 3.1 and 3.3 and for what `mtp export` wrote, 32 for Llama 3.2"
        )
    return RopeScaling("llama3", factor=factor, original_context=8192)


def ffn_width(params: Mapping[str, Any]) -> int:
    """Llama's rule: two thirds of 4 dim, times the multiplier, up to a multiple."""
    width = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(params["ffn_dim_multiplier"] * width)
    multiple = params.get("multiple_of", 256)
    return int(multiple * math.ceil(width / multiple))


def open_meta(
    folder: Path, keep: int | None = None, context: int | None = None, rope_factor: float | None = None
) -> Imported:
    """
    Args:
        rope_factor: as `read_params` has it.

    Raises:
        InputError: not such a folder, or one whose files do not fit together.
    """
    params = read_json(folder / PARAMS)
    parts = _read_parts(folder)
    source = _joined(folder, parts, params.get("dim"))
    if "tok_embeddings.weight" not in source:
        raise InputError(f"'{folder}' has no tensor 'tok_embeddings.weight': not in Meta's layout")
    try:
        backbone, heads = read_params(params, source.specs["tok_embeddings.weight"].shape[0], rope_factor)
        made_for = params.get("max_seq_len")
        if context is not None and made_for is not None:
            check_context(context, made_for, "max_seq_len")
    except InputError as error:
        raise InputError(f"'{folder / PARAMS}': {error}") from error
    names, notes = meta_names(heads, backbone.n_layers - 1), []
    shapes = model_shapes(backbone, heads)
    unused = {name for name in source if name == "rope.freqs"}
    specs = {name: spec for name, spec in source.specs.items() if name not in unused}
    require(folder, specs, {theirs: shapes[ours] for theirs, ours in names.items()})
    if heads.n_future > 1 and keep == 1:
        notes.append(f"{heads.n_future - 1} further heads are left out")
        heads = HeadsConfig()
        names = meta_names(heads, backbone.n_layers - 1)
    theirs_of = {ours: theirs for theirs, ours in names.items()}

    def read(ours: str) -> Tensor:
        tensor = source[theirs_of[ours]]
        rotated = ours.endswith((".wq.weight", ".wk.weight"))
        return to_half_split(tensor, backbone.head_size) if rotated else tensor

    weights = Weights({ours: specs[theirs] for theirs, ours in names.items()}, read)
    used = context or made_for
    if used is None:
        notes.append(
            "params.json does not say for how many positions the model is made (max_seq_len): give --context, or "
            "`mtp export` writes a number that is a guess"
        )
    return Imported(backbone, heads, used, weights, {"layout": "meta"}, notes)


def _read_parts(folder: Path) -> list[dict[str, Tensor]]:
    """Every file's tensors, left in the file until they are used; unpickled as tensors and nothing else.

    Raises:
        InputError: no such file, or one that holds anything but tensors.
    """
    paths = sorted(folder.glob("consolidated*.pth"))
    if not paths:
        raise InputError(f"'{folder}' holds no consolidated.*.pth")
    parts = []
    for path in paths:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
            said = " ".join(str(error).split())[:160]
            why = "holds more than tensors, or is damaged; nothing in it was run"
            raise InputError(f"'{path}' {why} ({said})") from error
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise InputError(f"'{path}' holds something else than tensors by name")
        parts.append(content)
    return parts


def _joined(folder: Path, parts: list[dict[str, Tensor]], dim: Any) -> Weights:
    """The tensors of all files together.

    Args:
        dim: the model's width, which tells how the embedding is split.

    Raises:
        InputError: files that do not hold parts of the same tensors.
    """
    first = parts[0]
    for part in parts[1:]:
        odd = sorted(part.keys() ^ first.keys())
        if odd:
            raise InputError(
                f"'{folder}': the tensor '{odd[0]}' is in some of its {len(parts)} files and not in others"
            )

    def axis(name: str) -> int | None:
        if first[name].ndim < 2 or len(parts) == 1:
            return None
        if name == "tok_embeddings.weight":
            return 0 if first[name].shape[1] == dim else 1
        return 1 if any(f"{place}." in name for place in SPLIT_COLUMNS) else 0

    def read(name: str) -> Tensor:
        along = axis(name)
        return first[name] if along is None else torch.cat([part[name] for part in parts], dim=along)

    def spec(name: str) -> Spec:
        shape, along = list(first[name].shape), axis(name)
        if along is not None:
            shape[along] = sum(part[name].shape[along] for part in parts)
        return Spec(first[name].dtype, tuple(shape))

    return Weights({name: spec(name) for name in first}, read)
