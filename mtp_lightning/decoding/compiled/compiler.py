"""Compiles `kernels.cpp` for the machine at hand, in a few seconds, and keeps the result for all models and shapes."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from mtp_lightning.files import cache_folder, to_disk

Compile = Literal["auto"] | bool
"""auto: for long work. true: wherever there is a compiler. Decoding goes on without where there is none."""
LONG = 4000
"""Forwards that are long work: compiling takes some seconds, and a forward saves a millisecond or more."""
SOURCE = Path(__file__).with_name("kernels.cpp")
THREADS = "-fopenmp"
"""Left out where the compiler does not take it: several threads are then one."""
FLAGS = (
    "-O3", "-march=native", "-std=gnu++17", "-shared", "-fPIC", THREADS, "-fno-math-errno", "-ffp-contract=off"
)  # fmt: skip
COMPILERS = ("g++", "clang++", "c++")


def wanted(compile: Compile, device: torch.device, forwards: int) -> bool:
    """Whether to decode compiled, on a CPU alone.

    Args:
        forwards: how many are to come, about.
    """
    asked = forwards >= LONG if compile == "auto" else compile
    return asked and device.type == "cpu" and kernels() is not None


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """None where they cannot be had, which is said once."""
    try:
        library = _library()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"warning: decoding goes on without compiled layers: {error}", file=sys.stderr)
        return None
    for name in ("mtp_linear", "mtp_layer", "mtp_layers", "mtp_seconds"):
        getattr(library, name).restype = None
    return library


def _library() -> ctypes.CDLL:
    """Kept in `~/.cache/mtp_lightning/kernels`, where that can be read or written.

    Raises:
        OSError: no compiler, or it fails.
        CalledProcessError: it does not say its version.
    """
    compiler, folder = _compiler(), cache_folder()
    if folder is None:
        _not_kept("there is no home folder")
    else:
        file = folder / "kernels" / f"decoding-{_identity(compiler)}.so"
        if _is_ours(file):
            with suppress(OSError):  # a damaged one is made again
                return ctypes.CDLL(str(file))
        if _can_be_written(file.parent):
            return ctypes.CDLL(str(_build(compiler, file)))
    with tempfile.TemporaryDirectory(prefix="mtp_kernels_") as name:  # what is loaded needs its file no more
        return ctypes.CDLL(str(_build(compiler, Path(name) / "decoding.so")))


def _compiler() -> str:
    for name in (os.environ.get("CXX"), *COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise FileNotFoundError(f"there is no C++ compiler ({', '.join(COMPILERS)}, or the one that CXX names)")


def _identity(compiler: str) -> str:
    """Of what is compiled, with what and for which processor: a folder may be shared by several machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    parts = [SOURCE.read_bytes(), " ".join(FLAGS).encode(), version, _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """What it can do, as far as the system says: any other than Linux says its name."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return " ".join(os.uname()).encode()
    return b"\n".join(sorted({line for line in lines if line.lower().startswith((b"flags", b"features", b"model"))}))


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        _not_kept(f"{folder}: {error.strerror}")
        return False


def _not_kept(why: str) -> None:
    print(f"warning: {why}; compiled layers are not kept", file=sys.stderr)


def _is_ours(file: Path) -> bool:
    """A library is code: one that others may have written is made again, as is one that is missing."""
    try:
        stats = [file.stat(), file.parent.stat()]
    except OSError:
        return False
    return all(stat.st_uid == os.getuid() and not stat.st_mode & 0o022 for stat in stats)


def _build(compiler: str, file: Path) -> Path:
    """Under another name at first: two processes may compile at once."""
    with tempfile.TemporaryDirectory(dir=file.parent) as name:
        made = Path(name) / file.name
        for flags in (FLAGS, tuple(flag for flag in FLAGS if flag != THREADS)):  # Apple's clang has no OpenMP
            command = [compiler, *flags, "-o", str(made), str(SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if not done.returncode:
                break
        else:
            raise OSError(f"{compiler} fails: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        made.chmod(0o700)
        to_disk(made)
        made.replace(file)
    return file
