"""The gate of an export: a wrong conversion, a changed file and a full disk are seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_interop_export import save, trained, write_exported

from mtp_lightning.cli import main
from mtp_lightning.interop import export_gate, export_hf
from mtp_lightning.model.config import HeadsConfig

pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own
pytest.importorskip("transformers")


def mutate_tensor(exported: export_hf.Exported) -> None:
    exported.tensors["model.layers.0.mlp.down_proj.weight"][0, 0] += 0.5


def swap_back(exported: export_hf.Exported) -> None:
    name = next(name for name in exported.tensors if name.endswith("eh_proj.weight"))
    exported.tensors[name] = torch.cat(exported.tensors[name].chunk(2, dim=1)[::-1], dim=1)


def turn_rope(exported: export_hf.Exported) -> None:
    exported.config["rope_theta"] *= 1.05


BREAKS: dict[str, tuple[Callable[[export_hf.Exported], None], str]] = {
    "tensor": (mutate_tensor, "the logits of head 1 differ"),
    "halves": (swap_back, "the logits of head 2 differ"),
    "rope": (turn_rope, "the logits of head 1 differ"),
}


@pytest.mark.parametrize("case", BREAKS)
def test_the_gate_sees_a_wrong_conversion(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, says = BREAKS[case]
    real = export_hf.export_model

    def broken(*arguments: Any) -> export_hf.Exported:
        exported = real(*arguments)
        exported.tensors.update({name: tensor.clone() for name, tensor in exported.tensors.items()})
        spoil(exported)
        return exported

    monkeypatch.setattr(export_hf, "export_model", broken)
    source = save(tmp_path / "m.safetensors", trained(HeadsConfig(n_future=2, kind="sequential")))
    assert main(["export", str(source), str(tmp_path / "out"), "--to", "hf"]) == 1
    assert says in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_gate_sees_a_changed_file_and_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(HeadsConfig(n_future=2))
    exported = export_hf.export_model(model)
    folder = write_exported(tmp_path / "out", exported)
    name = "mtp_heads.0.0.input_layernorm.weight"
    kept = exported.tensors[name]
    exported.tensors[name] = kept + 1e-6
    with pytest.raises(export_gate.UnprovenError, match=name.replace(".", r"\.")):
        export_gate.prove(folder, model, exported, None)
    exported.tensors[name] = kept
    code = folder / "custom_generate" / "generate.py"
    code.write_text(code.read_text().replace("block[0, certain] != token", "False and token"))  # accepts every draft
    with pytest.raises(export_gate.UnprovenError, match="another greedy text"):
        export_gate.prove(folder, model, exported, None)


def test_without_transformers_nothing_is_exported_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path / "m.safetensors", trained(HeadsConfig(n_future=2)))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    command = ["export", str(source), str(tmp_path / "out"), "--to", "hf"]
    assert main(command) == 2
    assert "transformers is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--verify", "false"]) == 0
    assert (tmp_path / "out" / "custom_generate" / "generate.py").is_file()


@pytest.mark.parametrize("to", ["hf", "safetensors", "meta"])
def test_a_full_disk_leaves_nothing(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource
    import signal

    source = save(tmp_path / "m.safetensors", trained(HeadsConfig(n_future=2)))
    out = tmp_path / ("out.safetensors" if to == "safetensors" else "out")
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        status = main(["export", str(source), str(out), "--to", to])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert status == 1
    assert "File too large" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
