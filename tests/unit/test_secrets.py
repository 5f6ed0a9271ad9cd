"""No secret is written, sent or printed; and what was masked is found again where it is needed."""

import io
import os
import stat
import sys
from pathlib import Path

import pytest
import yaml
from fsspec.implementations.local import get_umask
from small_runs import fit, make_folder
from test_grid_fakes import cells_of
from test_tracking_fakes import CountingClient

from mtp_lightning import secrets
from mtp_lightning.cli import careful_umask, main
from mtp_lightning.errors import InputError
from mtp_lightning.grid.run.process import fit_config
from mtp_lightning.grid.run.state import Failure
from mtp_lightning.grid.slurm.task import write_cell
from mtp_lightning.secrets import MaskedStream, mask, masked, references
from mtp_lightning.tracking.logger import MLflowRunLogger
from mtp_lightning.tracking.patience import StoreAwayError
from mtp_lightning.tracking.store import whole_uri
from mtp_lightning.tracking.writer import RunWriter

URI = "http://ann:Planted-01@127.0.0.1:1/mlflow"
PLANTED = {
    "MLFLOW_TRACKING_URI": URI,
    "MLFLOW_TRACKING_PASSWORD": "Planted-02",
    "MLFLOW_TRACKING_TOKEN": "Planted-03",
    "AWS_ACCESS_KEY_ID": "Planted-04",
    "AWS_SECRET_ACCESS_KEY": "Planted/05+x=",
    "AWS_SESSION_TOKEN": "Planted-06",
    "HF_TOKEN": "hf_Planted-07",
    "WANDB_API_KEY": "Planted-08",
    "HTTPS_PROXY": "http://ann:Planted%4009@proxy:3128",
    "DATABASE_URL": "postgresql://ann:Planted/10#@db/runs?sslpassword=Planted-12",
    "MY_SECRET": "Planted-11",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secrets, "_given", set())
    return PLANTED


def clean(text: str) -> bool:
    return "Planted" not in text


def all_of_them() -> str:
    return " and ".join(f"{name}={value}" for name, value in PLANTED.items()) + " or Planted@09, Planted%2F05%2Bx%3D"


def test_all_are_masked_wherever_they_stand(planted: dict[str, str]) -> None:
    assert clean(mask(all_of_them()))
    assert mask(f"at {URI}/#/runs") == "at http://ann:***@127.0.0.1:1/mlflow/#/runs"
    assert clean(repr(masked({"a": [all_of_them()], "b": (URI, 3)})))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:hunter2@db:5432/x", "postgresql://ann:***@db:5432/x"),
        ("https://ghp_abc@github.com/x", "https://***@github.com/x"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("s3://b/k?X-Amz-Signature=abc&part=1", "s3://b/k?X-Amz-Signature=***&part=1"),
        ("https://host/?shareKey=a&monkey=b&api_key=abc", "https://host/?shareKey=a&monkey=b&api_key=***"),
        ("https://host/a@b and ann:x@y", "https://host/a@b and ann:x@y"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
    ],
)
def test_passwords_of_any_url(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_short_values_paths_and_ordinary_names_are_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_KEY", str(tmp_path))
    monkeypatch.setenv("MY_TOKEN", "true")
    monkeypatch.setenv("KEYBOARD", "qwertz-and-more")
    text = f"true {tmp_path} qwertz-and-more {os.getcwd()}"
    assert mask(text) == text


def test_whoever_prints(planted: dict[str, str]) -> None:
    out = io.StringIO()
    print(all_of_them(), "https://ann:theirs@host/", file=MaskedStream(out))  # type: ignore[arg-type]
    assert clean(out.getvalue())
    assert out.getvalue().endswith("https://ann:theirs@host/\n"), "text of others is text"


def test_a_configuration_refers_to_the_environment(planted: dict[str, str]) -> None:
    written = references({"token": "hf_Planted-07", "uri": URI, "n": 3, "more": [f"x {URI}"]})
    assert written == {
        "token": "${oc.env:HF_TOKEN}",
        "uri": "http://ann:***@127.0.0.1:1/mlflow",
        "n": 3,
        "more": ["x http://ann:***@127.0.0.1:1/mlflow"],
    }
    assert references(written) == written
    assert MLflowRunLogger(tracking_uri=written["uri"]).tracking_uri == URI


def test_without_the_environment_a_masked_address_is_refused() -> None:
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI to the whole address"):
        whole_uri("http://ann:***@127.0.0.1:1/mlflow")


def test_an_address_from_a_flag_is_a_secret_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_given", set())
    MLflowRunLogger(tracking_uri="http://ann:from-a-flag@127.0.0.1:1")
    assert mask("refused: from-a-flag") == "refused: ***"


def test_what_is_sent_and_kept_of_a_run(planted: dict[str, str], tmp_path: Path) -> None:
    client = CountingClient()
    sent: list[object] = []
    client.log_batch = lambda *args, **more: sent.append([vars(e) for key in more for e in more[key]])  # type: ignore
    client.log_text = lambda *args: sent.append(args)  # type: ignore[attr-defined]
    writer = RunWriter(client, "id", URI, 5.0)
    writer.log_params({"key": all_of_them()})
    writer.set_tags({"tag": all_of_them()})
    writer.log_text(all_of_them(), "config.yaml")
    Failure("OSError", all_of_them()).write(tmp_path)
    away = StoreAwayError(URI, 1.0, OSError(all_of_them()))
    assert len(sent) == 3
    assert clean(f"{sent} {away} {away.filename} {(tmp_path / 'failure.json').read_text()}")


def test_cells_are_written_without_them_and_find_their_server(planted: dict[str, str], tmp_path: Path) -> None:
    cell = cells_of(tmp_path)[0]
    config = fit_config(cell)
    assert config["trainer"]["logger"]["init_args"]["tracking_uri"] == URI
    write_cell(tmp_path, 0, cell, config, ["mtp"])
    assert clean((tmp_path / "0.json").read_text())


def test_a_run_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path)
    for name, value in PLANTED.items():
        if name != "MLFLOW_TRACKING_URI":
            monkeypatch.setenv(name, value)
    tags = f"--trainer.logger.init_args.tags={{a: 'x {PLANTED['HF_TOKEN']}', b: {PLANTED['MY_SECRET']}}}"
    monkeypatch.setattr(sys, "argv", ["mtp"])
    get_umask.cache_clear()  # it asks once a process, which here has done other things before
    assert fit("runs/fit", tags, "--trainer.max_steps=3") == 0
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in everything if b"Planted" in path.read_bytes()]
    written = yaml.safe_load(Path("runs/fit/config.yaml").read_text())
    assert written["trainer"]["logger"]["init_args"]["tags"] == {"a": "x ***", "b": "${oc.env:MY_SECRET}"}
    assert clean("".join(capsys.readouterr()))
    others = [p for p in (tmp_path / "runs/fit").rglob("*") if stat.S_IMODE(p.stat().st_mode) & 0o007]
    assert others == [], "nothing of a run is for others on the machine"
    assert stat.S_IMODE(Path("runs/fit").stat().st_mode) & 0o700 == 0o700


def test_a_message_of_the_command_line_holds_none(planted: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--uri", "ftp://ann:Planted-13@x"]) == 2
    assert clean(capsys.readouterr().err)


def test_only_runs_are_made_private() -> None:
    before = os.umask(0o022)
    try:
        with careful_umask(["data", "prepare"]):
            assert os.umask(0o022) == 0o022
        with careful_umask(["fit"]):
            assert os.umask(0o027) == 0o027
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
