"""Small C++ operators, compiled for this machine when they are first asked for, never on import.

Each has a twin in Python that is used, with a warning, where there is no compiler or where the compiled one fails
its own test. Libraries lie in the user's cache directory (XDG_CACHE_HOME or ~/.cache, `fedpriv/`) under a name made of
the source, the flags and the processor's features.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

FLAGS: Final = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
BUILD_SECONDS: Final = 120

T = TypeVar("T")

_lock = threading.Lock()
_found: dict[Path, Any] = {}


def operator(
    name: str,
    source: str,
    wrap: Callable[[ctypes.CDLL], T],
    prove: Callable[[T], str],
    *,
    flags: tuple[str, ...] = (),
    instead: str,
) -> T | None:
    """The operator `wrap(library)`, built if this machine has none yet; None, with a warning, where it cannot be had.

    Args:
        name: of the file, such as ghost-norms.
        source: C++17, needing no headers but the standard ones.
        wrap: makes the operator of the loaded library.
        prove: compares it with its twin; says what is wrong, or nothing.
        flags: of the compiler, after the usual ones.
        instead: what is used where it cannot be had, for the warning.
    """
    path = place(name, source, flags)
    with _lock:
        if path not in _found:
            try:
                built = wrap(ctypes.CDLL(str(path if _ours(path) else _build(path, source, flags))))
                wrong = prove(built)
                if wrong:
                    raise RuntimeError(wrong)
                _found[path] = built
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                warnings.warn(f"no C++ operator for {name} ({error}); using {instead}.", stacklevel=3)
                _found[path] = None
        return _found[path]


def place(name: str, source: str, flags: tuple[str, ...] = ()) -> Path:
    """Where this machine's library lies: another source, compiler flag or processor gives another name."""
    text = "\n".join([source, *FLAGS, *flags, platform.machine(), sys.platform, _processor()])
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fedpriv" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())


def _ours(path: Path) -> bool:
    """Is there a library that only this user (or root) can have written?"""
    if not path.exists():
        return False
    return all(found.st_uid in (os.getuid(), 0) and not found.st_mode & 0o022 for found in (path.stat(),))


def _build(path: Path, source: str, flags: tuple[str, ...]) -> Path:
    """Compiles beside the place and moves it there whole, so that processes may build at the same time."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not compiler:
        raise RuntimeError("no C++ compiler: set CXX or install g++")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, library = Path(folder) / "operator.cpp", Path(folder) / "operator.so"
        text.write_text(source, encoding="utf-8")
        command = [compiler, *FLAGS, *flags, "-o", str(library), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[:300]}")
        library.chmod(0o700)
        library.replace(path)
    return path
