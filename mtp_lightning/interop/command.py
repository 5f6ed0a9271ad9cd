"""`mtp export`: a checkpoint's model as a file that others read."""

from pathlib import Path
from typing import Literal

from mtp_lightning.errors import InputError


def export_command(ckpt: str, out: str, to: Literal["safetensors"] = "safetensors", force: bool = False) -> None:
    """Write a checkpoint's weights, configuration and tokenizer to one file, whatever strategy it was trained under.

    Args:
        ckpt: Checkpoint file, or the folder of a run, of which the newest checkpoint is taken.
        out: File to write. `mtp generate` reads it like a checkpoint.
        to: safetensors: all heads, weights under the model's own names, what describes the model in the header.
        force: Overwrite `out`.
    """
    from mtp_lightning.checkpoints.files import load_model, save_safetensors
    from mtp_lightning.checkpoints.select import find_checkpoint

    target = Path(out)
    if target.suffix != f".{to}":
        raise InputError(f"out is '{out}': a {to} file is named *.{to}")
    if target.exists() and not force:
        raise InputError(f"'{out}' exists: give another name, or --force true to overwrite it")
    if not target.parent.is_dir():
        raise InputError(f"out: there is no folder '{target.parent}'")
    loaded = load_model(find_checkpoint(Path(ckpt)))
    save_safetensors(loaded, target)
    weights = sum(p.numel() for p in loaded.model.parameters())
    print(f"{out}: {weights:,} parameters, {target.stat().st_size / 2**20:.1f} MiB, of step {loaded.step}")
