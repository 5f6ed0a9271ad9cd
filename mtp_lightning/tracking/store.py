"""The store of a project's runs: a SQLite file below `runs/`, or a server; its schema is made once, under a lock."""

import errno
import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from mtp_lightning.errors import InputError
from mtp_lightning.files import try_writing
from mtp_lightning.secrets import MASK, mask, remember, unmasked
from mtp_lightning.tracking.patience import PATIENCE, with_patience

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUNS = Path("runs")
"""Default folder of everything that runs write, below the working directory."""
KEY = "trainer.logger.init_args.tracking_uri"
ENVIRONMENT = "MLFLOW_TRACKING_URI"
_SQLITE, _ESCAPED = "sqlite:///", "sqlite+pysqlite:///"
"""An address with its path as it is, and one with the path's `%` and `?` escaped. SQLAlchemy reads both with escapes;
of the first, MLflow also makes the folder as it is written, which is why it cannot hold any."""
_LONGEST_NAME = 200
"""Of a file, less than the 255 bytes of most disks: MLflow writes some that are longer."""


def default_tracking_uri(runs: Path = RUNS) -> str:
    """What `MLFLOW_TRACKING_URI` names, or else SQLite in the runs folder. (MLflow's file store, Lightning's default,
    is refused by MLflow 3.)

    Where several machines write it has to be a server, such as `http://HOST:PORT`: on a network's file system, SQLite's
    locks do not hold.
    """
    return os.environ.get(ENVIRONMENT) or _below(runs)


def whole_uri(uri: str) -> str:
    """The address with its password, which is written nowhere: it comes from the environment.

    Raises:
        InputError: it does not.
    """
    whole = unmasked(uri, ENVIRONMENT)
    if MASK in whole:
        raise InputError(f"{KEY} is '{uri}': its password was not written; set {ENVIRONMENT} to the whole address")
    remember(whole)
    return whole


def _below(runs: Path) -> str:
    return _address(runs.absolute() / "mlflow.db")


def _address(file: Path) -> str:
    path = file.as_posix()
    if "?" not in path and unquote(path) == path:
        return _SQLITE + path
    return _ESCAPED + path.replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite store, None for any other."""
    if uri.startswith(_ESCAPED):
        return Path(unquote(uri.removeprefix(_ESCAPED)))
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_root(uri: str) -> str | None:
    """Where artifacts of a SQLite store lie: beside its file. A server knows its own place."""
    file = sqlite_file(uri)
    return (file.absolute().parent / "mlflow-artifacts").as_uri() if file else None


def check_uri(uri: str) -> None:
    """Refuse what MLflow does not take.

    Raises:
        InputError: a folder of files, which was MLflow's default for long.
    """
    if "://" not in uri or uri.startswith("file:"):
        key = ENVIRONMENT if uri == os.environ.get(ENVIRONMENT) else KEY
        raise InputError(
            f"{key} is '{mask(uri)}': MLflow keeps runs in a database or on a server, no longer in a folder of files; "
            f"give sqlite:////path/mlflow.db or http://HOST:PORT, or leave it out for {_below(RUNS)}"
        )
    file = sqlite_file(uri)
    if file is None:
        return
    if not str(file).isprintable():
        raise InputError(
            f"{KEY} is {uri!r}: the address of a SQLite store cannot have a line break or another control character; "
            "give another folder"
        )
    if "?" in uri or (uri.startswith(_SQLITE) and unquote(uri) != uri):
        raise InputError(
            f"{KEY} is {uri!r}: after sqlite:/// there can be neither a question mark nor what reads as an escape "
            f"(%41); where that is the file's name, give {_address(file)}"
        )


def check_experiment(name: str) -> None:
    """Its artifacts get a folder of its name.

    Raises:
        InputError: a name that would lie elsewhere, or that no folder can have.
    """
    parts = name.split("/")
    bad = {"", ".", ".."}.intersection(parts) or not name.isprintable()
    if bad or any(len(quote(part).encode()) > _LONGEST_NAME for part in parts):
        raise InputError(
            f"trainer.logger.init_args.experiment is {name!r}: it names a folder, so give words between "
            f"slashes, as in mtp/fit, none of them empty, '.', '..' or longer than {_LONGEST_NAME} bytes"
        )


def connect(uri: str) -> "MlflowClient":
    """A client of the store, which is made if it is not there. Several processes may come at once.

    Raises:
        InputError: a store that MLflow does not take, or a folder that cannot be written.
    """
    check_uri(uri)
    ensure_store(uri)
    from mlflow import MlflowClient

    # What goes wrong in the database is raised as well; a lock that we wait for is not worth a traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


class NotRecordedError(InputError):
    """The store is not there, or holds no such run."""


def connect_existing(uri: str) -> "MlflowClient":
    """A client for reading.

    Raises:
        NotRecordedError: nothing was ever recorded there; a question does not make a store.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise NotRecordedError(
            f"no runs are recorded in '{file}': run something first, or name the folder of earlier runs"
        )
    return connect(uri)


def ensure_store(uri: str) -> None:
    """Make a SQLite store, which takes seconds, under a lock and aside: at its place there is a whole one or none,
    also when its maker is killed. Stores of other kinds are left alone.

    Raises:
        InputError: the folder cannot be written.
    """
    file = sqlite_file(uri)
    if file is None or _has_schema(file):
        return
    from filelock import FileLock

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not _has_schema(file):
                _make_store(file, uri)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{KEY}: '{file.parent}' cannot be written to: {error.strerror}") from error


def _make_store(file: Path, uri: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    scratch = file.with_name(f".{file.name}.new")
    scratch.unlink(missing_ok=True)  # of a maker that was killed: the lock is ours
    root = artifact_root(uri)
    assert root is not None
    make_store: Any = SqlAlchemyStore  # untyped
    with_patience(lambda: make_store(_address(scratch.absolute()), root), uri).engine.dispose()
    os.replace(scratch, file)


def _has_schema(file: Path) -> bool:
    """Whether every migration has run: the last thing a new database gets is its default experiment."""
    if not file.is_file() or file.stat().st_size == 0:
        return False
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return bool(connection.execute("select count(*) from experiments").fetchone()[0])
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError as error:
        raise InputError(f"{KEY}: '{file}' is not a database of MLflow ({error})") from error
    finally:
        connection.close()


def check_writable(uri: str) -> None:
    """Refuse a SQLite store that can only be read. SQLite writes a journal, so it needs the folder as well.

    Raises:
        InputError: names the file or folder.
    """
    file = sqlite_file(uri)
    for path in (file, file.parent) if file is not None else ():
        if not os.access(path, os.W_OK):
            raise InputError(f"{KEY}: '{path}' cannot be written to")


def has_store(uri: str) -> bool:
    """Whether there is a store to ask; a server is taken to be there."""
    file = sqlite_file(uri)
    return file is None or _has_schema(file)


def check_store(uri: str, experiment: str) -> None:
    """Refuse what `ensure_experiment` would, without making or changing anything.

    Raises:
        InputError: the store cannot be made or written, or the experiment was deleted.
        StoreAwayError: a server does not answer.
    """
    check_uri(uri)
    if has_store(uri):
        check_writable(uri)
        client = connect(uri)
        found = with_patience(lambda: client.get_experiment_by_name(experiment), uri)
        if found is not None:
            _check_active(found, uri)
        return
    file = sqlite_file(uri)
    assert file is not None
    try:
        try_writing(file.parent)
    except OSError as error:
        raise InputError(f"{KEY}: '{file.parent}' cannot be written to: {error.strerror}") from error


def ensure_experiment(uri: str, name: str, away: float = PATIENCE) -> str:
    """The id of the experiment, made if need be; its artifacts lie beside a SQLite store's file.

    Raises:
        InputError: it was deleted in MLflow, which keeps its name taken.
        StoreAwayError: a server did not answer for `away` seconds.
    """
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    found = with_patience(lambda: client.get_experiment_by_name(name), uri, away)
    if found is None:
        root = artifact_root(uri)
        location = f"{root}/{quote(name)}" if root else None
        try:
            return str(with_patience(lambda: client.create_experiment(name, artifact_location=location), uri))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was quicker
            if found is None:
                raise
    _check_active(found, uri)
    return str(found.experiment_id)


def _check_active(experiment: Any, uri: str) -> None:
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"experiment '{experiment.name}' was deleted in '{mask(uri)}': restore it "
            f"(mlflow experiments restore -x {experiment.experiment_id}) or choose another name"
        )
