"""`model.compile`: slow to begin, the same numbers."""

import json
from pathlib import Path

import pytest
from processes import Mtp


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "layers", "attention", "heads"])
def test_compiled_layers_train_alike(mtp: Mtp, folder: Path, recompute: str) -> None:
    losses = {}
    for compiled in ("false", "true"):
        root = f"runs/compile-{compiled}-{recompute}"
        flags = ["--model.heads.n_future", "2", "--model.compile", compiled, "--trainer.default_root_dir", root]
        flags += ["--model.recompute", recompute if compiled == "true" else "none"]
        mtp("fit", "-c", "conf/base.yaml", "-c", "tiny.yaml", *flags, timeout=580, fresh=True)
        result = json.loads((folder / root / "result.json").read_text())
        losses[compiled] = result["metrics"]["val/loss/head_1"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)
