"""`mtp import`: somebody's model as a file of ours."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import BackboneConfig, HeadsConfig, RopeScaling
from mtp_lightning.ranges import Range, check_value

Layout = Literal["auto", "hf", "meta"]
RopeFactor = Annotated[float, Range(least=1, most=10**6)]


def import_command(
    folder: str,
    out: str,
    layout: Layout = "auto",
    heads: int | None = None,
    context: int | None = None,
    tokenizer: str | None = None,
    end_token: str | None = None,
    rope_factor: RopeFactor | None = None,
    force: bool = False,
) -> None:
    """Write a model of Hugging Face's Llama family, or of Meta's layout, to one file of ours. Precision is kept.

    Llama, Code Llama, SmolLM2, Mistral, Qwen2, Qwen3, and heads in the MTP standard of `transformers`. Whatever a model
    here does not compute is refused by its name. Code in the folder is never run.

    Args:
        folder: The model's folder: config.json and safetensors, or params.json and consolidated.*.pth.
        out: File to write, *.safetensors. `mtp generate`, `mtp evaluate` and `mtp export` read it like a checkpoint.
        layout: hf: Hugging Face's; meta: Meta's, also with the further heads of the multi-token prediction paper's
            release; auto: meta where there is a params.json and no config.json.
        heads: 1 imports head 1 alone; by default all.
        context: Positions that the model will be used with, where they are fewer than it is made for, or where
            params.json does not say how many these are.
        tokenizer: A tokenizer.json or SentencePiece tokenizer.model instead of the folder's own; none: without.
        end_token: The token that ends a document, where it is not the one that the tokenizer's configuration names.
        rope_factor: How many times slower positions rotate where Meta's params.json has `use_scaled_rope`, which does
            not say it: 8 for Llama 3.1 and 3.3, 32 for Llama 3.2.
        force: Overwrite `out`.
    """
    from mtp_lightning.checkpoints.files import describe_model
    from mtp_lightning.checkpoints.streaming import write_model
    from mtp_lightning.data.tokens.tokenizer import begin_ids
    from mtp_lightning.interop.importing.import_hf import open_hf
    from mtp_lightning.interop.importing.import_meta import open_meta
    from mtp_lightning.interop.importing.tokenizers import find_tokenizer, rows_note, run_flags

    source, target = Path(folder), check_target(out, force)
    if not source.is_dir():
        raise InputError(f"there is no folder '{folder}'")
    if context is not None and context < 1:
        raise InputError(f"--context is {context}: it has to be at least 1")
    check_value("--rope_factor", rope_factor, RopeFactor | None)
    if heads not in (None, 1):
        raise InputError(f"--heads is {heads}: 1 imports head 1 alone, and without it all heads are imported")
    is_meta = (source / "params.json").is_file() and not (source / "config.json").is_file()
    if layout == "meta" or (layout == "auto" and is_meta):
        found = open_meta(source, heads, context, rope_factor)
    elif rope_factor is not None:
        raise InputError(f"--rope_factor is {rope_factor:g}, which goes with Meta's layout: config.json says it itself")
    else:
        found = open_hf(source, heads, context)
    text = find_tokenizer(source, tokenizer, end_token, found.backbone.vocab_size)
    state = None if text is None else text.state()
    begins: dict[str, Any] = {} if text is None else {"begin_ids": begin_ids(text)}
    described = describe_model(found.backbone, found.heads, state, found.context, imported=found.origin, **begins)
    write_model(target, described, found.weights)
    for note in filter(None, [*found.notes, rows_note(text, found.backbone.vocab_size)]):
        print(note)
    weights = sum(spec.nbytes for spec in found.weights.specs.values())
    kinds = ", ".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in found.weights.specs.values()}))
    print(
        f"{out}: {found.backbone.n_layers} layers of width {found.backbone.dim}, "
        f"{f'{found.heads.n_future} heads ({found.heads.kind})' if found.heads.n_future > 1 else '1 head'}, "
        f"{weights / 2**20:.1f} MiB in {kinds}, "
        f"{'no tokenizer' if text is None else f'{text.vocab_size} tokens for {found.backbone.vocab_size} rows'}"
    )
    further = {key: value for key, value in vars(found.heads).items() if value != getattr(HeadsConfig, key)}
    with_heads = f" --model.heads '{_yaml(further)}'" if found.heads.n_future > 1 else ""
    tokens = run_flags(source, tokenizer, text)
    print(f"to begin a run with it (model.init.path): --model.backbone '{_flow(found.backbone)}'{with_heads}{tokens}")


def _flow(backbone: BackboneConfig) -> str:
    """What a run that begins with this model has to say, in one line of YAML; what never matters is left out."""
    said = {
        key: value
        for key, value in asdict(backbone).items()
        if value is not None and key not in ("init_std", "attend_across_documents")
    }
    given = vars(backbone.rope_scaling)
    said["rope_scaling"] = {key: value for key, value in given.items() if value != getattr(RopeScaling, key)}
    if not said["rope_scaling"]:
        del said["rope_scaling"]
    return _yaml(said)


def _yaml(mapping: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(mapping, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.strip()


def check_target(out: str, force: bool) -> Path:
    """
    Raises:
        InputError: a file that cannot be written, or that is there already.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise InputError(f"out is '{out}': a model file is named *.safetensors")
    if target.exists() and not (force and target.is_file()):
        raise InputError(f"'{out}' exists: give another name, or --force true to overwrite it")
    if not target.parent.is_dir():
        raise InputError(f"out: there is no folder '{target.parent}'")
    return target
