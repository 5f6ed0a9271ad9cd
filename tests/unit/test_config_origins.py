"""A message about a key names the file and line, or the flag, that set it last."""

from pathlib import Path

import pytest

from mtp_lightning.config.keys.key_origins import KeyOrigins
from mtp_lightning.errors import InputError

A = """\
model:
  heads: {n_future: 2}
  loss:
    z_loss: 0.1
trainer:
  logger:
    class_path: mtp_lightning.tracking.logger.MLflowRunLogger
    init_args:
      experiment: here
  callbacks:
    - class_path: callbacks.decoding.DecodingProbe
      init_args: {prompts: 3, when: log}
    - class_path: callbacks.exact_match.ExactMatchProbe
      init_args: {when: 7}
data:
  class_path: mtp_lightning.data.TokenDataModule
  init_args:
    source:
      kind: text
    seed: 3
"""
B = """\
model.heads.kind: causal
model:
  heads.n_future: 4
trainer:
  max_steps: 7
  logger.experiment: there
data: {init_args: {context: 8}}
"""
C = """\
trainer:
  callbacks+:
    - class_path: callbacks.heartbeat.Heartbeat
    - class_path: callbacks.checkpointing.PeriodicCheckpoint
      init_args:
        keep: 0
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a", A), ("b", B), ("c", C)):
        (tmp_path / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize(
    ("args", "message", "where"),
    [
        ("-c a.yaml", "model.heads.n_future is 2: no", " (in a.yaml:2)"),
        ("-c a.yaml --model.heads.n_future 3", "model.heads.n_future is 3: no", " (on the command line)"),
        ("--model.heads.n_future=3 -c a.yaml", "model.heads.n_future is 2: no", " (in a.yaml:2)"),
        ("-c a.yaml -c b.yaml", "model.heads.n_future is 4: no", " (in b.yaml:3)"),
        ("-c b.yaml -c a.yaml", "model.heads.n_future is 2: no", " (in a.yaml:2)"),
        ("-c a.yaml -c b.yaml", "model.heads.kind is causal: no", " (in b.yaml:1)"),
        ("-c a.yaml -c b.yaml", "trainer.max_steps is 7: no", " (in b.yaml:5)"),
        ("-c a.yaml -c b.yaml", "data.context is 8: no", " (in b.yaml:7)"),
        ("-c a.yaml -c b.yaml", "data.init_args.context is 8: no", " (in b.yaml:7)"),
        ("-c a.yaml", "data.source.kind is text: no", " (in a.yaml:19)"),
        ("-c a.yaml --data.source.kind json", "data.source.kind is json: no", " (on the command line)"),
        ("-c a.yaml", "data.seed is 3", " (in a.yaml:20)"),
        ("-c a.yaml", "trainer.logger.experiment is here", " (in a.yaml:9)"),
        ("-c a.yaml -c b.yaml", "trainer.logger.experiment is there", " (in b.yaml:6)"),
        ("-c a.yaml", "trainer.callbacks.prompts is 3: no", " (in a.yaml:12)"),
        ("-c a.yaml", "trainer.callbacks.when is 7: no", " (in a.yaml:14)"),
        ("-c a.yaml", "trainer.callbacks.when is log: no", " (in a.yaml:12)"),
        ("-c a.yaml", "DecodingProbe.when is log: no", " (in a.yaml:12)"),
        ("-c a.yaml -c b.yaml -c c.yaml", "PeriodicCheckpoint.keep is 0: no", " (in c.yaml:6)"),
        (
            "-c a.yaml -c c.yaml",
            "trainer.callbacks.class_path is 'callbacks.heartbeat.Heartbeat': no",
            " (in c.yaml:3)",
        ),
        ("-c a.yaml --trainer.callbacks+=x.Y", "trainer.callbacks.class_path is 'x.Y': no", " (on the command line)"),
        ("-c a.yaml --trainer.callbacks.when 9", "trainer.callbacks.when is 9: no", " (on the command line)"),
        ("-c a.yaml", "there is no key 'model.loss'; did you mean 'trainer.logger'?", " (in a.yaml:3)"),
        ("-c a.yaml", "model.backbone.dim is 3", ""),
        ("-c a.yaml --model '{loss: {z_loss: 2}}'", "model.loss.z_loss is 2", " (on the command line)"),
        (
            "-c a.yaml -c b.yaml",
            "model.loss.z_loss is 1, and trainer.max_steps is 7",
            " (model.loss.z_loss in a.yaml:4, trainer.max_steps in b.yaml:5)",
        ),
    ],
)
def test_where(args: str, message: str, where: str) -> None:
    import shlex

    assert KeyOrigins(shlex.split(args)).where(message) == where


def test_flags_of_a_grid_are_not_the_command_line() -> None:
    assert KeyOrigins(["-c", "a.yaml", "--model.heads.n_future=3"], flags="").where("model.heads.n_future is 3") == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {heads: {n_future: 2}}\nmodel: {}\n", "2: model: written twice, first on line 1"),
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "holds keys and values"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(InputError, match=r"d\.yaml") as refused:
        KeyOrigins(["-c", "d.yaml"])
    assert says in str(refused.value)
