"""Which code is running: one digest over the sources of the four packages.

Flower's simulated clients can import another copy of the project than its server does (its workers import from
the directory where its daemon was started). Both sides therefore compute this digest from the files that they
themselves run, and a client refuses a request made by other code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PACKAGES = ("fedpriv", "clients", "strategies", "simulations")


def source_root() -> Path:
    """The directory that holds the four packages: a checkout, an installation, or Flower's bundle."""
    return Path(__file__).resolve().parent.parent


def source_files(root: Path) -> Iterator[Path]:
    """Every Python file of the four packages under `root`, sorted; tests, which no bundle carries, left out."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if not path.name.startswith("test_") and not path.name.endswith("_test.py"):
                yield path


@lru_cache(maxsize=4)
def source_digest(root: Path | None = None) -> str:
    """Hex SHA-256 over names and contents of the sources, line ends normalised; computed once per process."""
    base = source_root() if root is None else root
    total = hashlib.sha256()
    for path in source_files(base):
        content = path.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{path.relative_to(base).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()
