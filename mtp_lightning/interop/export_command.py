"""`mtp export`: a checkpoint's model as files that others read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range, check_value

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel

ShardSize = Annotated[float, Range(least=1e-6, most=1e6)]
UNPROVEN = "Nothing was compared: --verify false."


def export_command(
    ckpt: str,
    out: str,
    to: Literal["safetensors", "hf", "meta", "gguf"] = "safetensors",
    heads: int | None = None,
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
    shard_gb: ShardSize = 5.0,
    verify: bool = True,
    force: bool = False,
) -> None:
    """Write a checkpoint's model for others to read, whatever strategy it was trained under.

    Args:
        ckpt: Checkpoint file, or the folder of a run, of which the newest checkpoint is taken.
        out: File to write, or folder for `hf` and `meta`.
        to: safetensors: one file with all heads, which every `mtp` command reads. hf: a folder for transformers, vLLM
            and the like: a Llama, the MTP standard, or code of its own for the paper's heads. meta: the layout of the
            paper's release. gguf: a file for llama.cpp, in float32, of a model with one head, or of head 1.
        heads: 1 exports head 1 alone; by default all.
        dtype: Precision of the weights; keep: of each the one that it has in the file.
        shard_gb: Size above which hf divides the weights into several files.
        verify: Load what was written with transformers and compare logits and texts before it gets its name; a GGUF
            file with llama.cpp, where that is installed.
        force: Overwrite `out`.
    """
    check_value("shard_gb", shard_gb, ShardSize)
    if to == "gguf":
        _export_gguf(Path(ckpt), Path(out), heads, dtype, verify, force)
        return
    if to != "safetensors":
        _export_folder(Path(ckpt), Path(out), to, heads, dtype, shard_gb, verify, force)
        return
    if (heads, dtype) != (None, "keep"):
        raise InputError("heads and dtype go with --to hf and --to meta: a safetensors file is all of the model")
    from mtp_lightning.checkpoints.files import load_model, save_safetensors
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.interop.export_folder import disk_errors

    target = Path(out)
    _check_file(target, "safetensors", force)
    loaded = load_model(find_checkpoint(Path(ckpt)))
    with disk_errors(target):
        save_safetensors(loaded, target)
    weights = sum(p.numel() for p in loaded.model.parameters())
    print(f"{out}: {weights:,} parameters, {target.stat().st_size / 2**20:.1f} MiB, of step {loaded.step}")


def _check_file(target: Path, kind: str, force: bool) -> None:
    """
    Raises:
        InputError: nothing can be written there.
    """
    if target.suffix != f".{kind}":
        raise InputError(f"out is '{target}': a {kind} file is named *.{kind}")
    if target.exists() and not force:
        raise InputError(f"'{target}' exists: give another name, or --force true to overwrite it")
    if not target.parent.is_dir():
        raise InputError(f"out: there is no folder '{target.parent}'")


def _export_gguf(ckpt: Path, out: Path, heads: int | None, dtype: str, verify: bool, force: bool) -> None:
    import tempfile

    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.files import open_as_usual
    from mtp_lightning.interop.export_gguf import check_gguf, export_llama, prove, vocabulary_of, write_gguf

    _check_file(out, "gguf", force)
    if dtype == "bfloat16":
        raise InputError("dtype is bfloat16: a GGUF file is written in float32; llama.cpp's llama-quantize rounds it")
    check_gguf()
    loaded = load_model(find_checkpoint(ckpt))
    exported = export_llama(loaded.model, 1 if heads == 1 else None)
    tokenizer = loaded.text_tokenizer
    vocabulary = None if tokenizer is None else vocabulary_of(tokenizer, loaded.model.config.vocab_size)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as name:
        made = Path(name) / out.name
        begins = loaded.begin_ids[0] if loaded.begin_ids else None
        write_gguf(made, loaded.model, exported, loaded.context, vocabulary, begins)
        said = prove(made, loaded.model, exported) if verify else UNPROVEN
        open_as_usual(made)
        made.replace(out)
    words = "with its tokenizer" if vocabulary else "without a tokenizer: GGUF does not hold this one; give token ids"
    print(f"{said}\n{out}: {out.stat().st_size / 2**20:.1f} MiB, of step {loaded.step}, {words}")


def _export_folder(
    ckpt: Path, out: Path, to: str, heads: int | None, dtype: str, shard_gb: float, verify: bool, force: bool
) -> None:
    import torch

    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint
    from mtp_lightning.interop.export_folder import new_folder
    from mtp_lightning.interop.export_gate import check_transformers

    if verify and to == "hf":
        check_transformers()
    with new_folder(out, force) as folder:
        loaded = load_model(find_checkpoint(ckpt))
        if heads not in (None, 1, loaded.model.n_future):
            raise InputError(
                f"heads is {heads}: this model has {loaded.model.n_future} prediction heads, and either all of them "
                "are exported or the first alone"
            )
        keep = 1 if heads == 1 else None
        precision = loaded.dtypes if dtype == "keep" else getattr(torch, dtype)
        if to == "hf":
            said = write_hf(loaded, folder, out, keep, precision, int(shard_gb * 1e9), verify)
        else:
            said = write_meta(loaded, folder, keep, precision, verify)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{said}\n{out}: {size / 2**20:.1f} MiB, of step {loaded.step}")


def write_hf(
    loaded: "LoadedModel", folder: Path, out: Path, keep: int | None, dtype: Any, shard_bytes: int, verify: bool
) -> str:
    """Fill `folder`, which will be `out`; what was compared.

    Raises:
        InputError: no layout holds these heads.
        UnprovenError: a difference beyond rounding.
    """
    from mtp_lightning.files import write_text
    from mtp_lightning.interop.export_card import card, proven, read_source
    from mtp_lightning.interop.export_folder import write_code, write_config, write_tensors, write_tokenizer
    from mtp_lightning.interop.export_gate import prove
    from mtp_lightning.interop.export_hf import code_files, context_of, export_model

    exported = export_model(loaded.model, keep, dtype)
    tokenizer, context = loaded.text_tokenizer, context_of(loaded.model.config, loaded.context)
    exported.config["max_position_embeddings"] = context
    write_tensors(folder, exported.tensors, shard_bytes)
    write_config(folder, exported.config, None if tokenizer is None else tokenizer.eos_id, loaded.begin_ids)
    if tokenizer is not None:
        write_tokenizer(folder, tokenizer.state(), getattr(tokenizer, "end_token", None), context, loaded.begin_ids)
    write_code(folder, code_files(exported), exported.family)
    proof = prove(folder, loaded.model, exported, tokenizer, loaded.begin_ids) if verify else None
    source = read_source(loaded.path, loaded.step, loaded.lineage)
    write_text(folder / "README.md", card(out.absolute().name, loaded.model.heads_config, exported, proof, source))
    return UNPROVEN if proof is None else proven(proof)


def write_meta(loaded: "LoadedModel", folder: Path, keep: int | None, dtype: Any, verify: bool) -> str:
    """Fill `folder` with the layout of the paper's release; what was compared.

    Raises:
        InputError: it does not hold these heads.
        UnprovenError: a difference beyond rounding.
    """
    from mtp_lightning.files import write_text
    from mtp_lightning.interop.export_card import proven
    from mtp_lightning.interop.export_folder import write_tokenizer
    from mtp_lightning.interop.export_gate import Proof
    from mtp_lightning.interop.export_hf import context_of
    from mtp_lightning.interop.export_meta import FORMULAS, export_release, prove_release, write_release

    release, tokenizer = export_release(loaded.model, keep, dtype), loaded.text_tokenizer
    write_release(folder, release)
    if tokenizer is not None:
        context = context_of(loaded.model.config, loaded.context)
        write_tokenizer(folder, tokenizer.state(), getattr(tokenizer, "end_token", None), context, loaded.begin_ids)
    heads = prove_release(folder, loaded.model, release) if verify else None
    said = UNPROVEN if heads is None else proven(Proof(FORMULAS, heads, []))
    write_text(folder / "README.md", f"# Layout of facebook/multi-token-prediction, without its weights\n\n{said}\n")
    return said
