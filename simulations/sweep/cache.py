"""Finished runs shared by sweeps: found again by scenario digest, code, device, libraries and the data themselves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

from fedpriv.config import Scenario
from fedpriv.data.clients import files, roster
from fedpriv.provenance import source_digest
from fedpriv.reports.atomic import read_json, write_json
from fedpriv.reports.folder import versions

_LEFT_OUT = ("checkpoint.safetensors", ".lock", "*.tmp")
_LIBRARIES = ("torch", "numpy", "dp-accounting", "platform")  # on other machines the last bits differ


def key(scenario: Scenario) -> str:
    """Hex SHA-256 of all that decides the bytes of a result."""
    known = versions()
    parts = {
        "scenario": scenario.digest(),
        "source": source_digest(),
        "device": scenario.run.device,
        "libraries": {name: known.get(name, "") for name in _LIBRARIES},
        "data": [_content(str(path), *_stamp(path)) for path in files(scenario)],
        "clients": roster(scenario).names,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fetch(cache: Path, scenario: Scenario, folder: Path) -> bool:
    """Copies a finished run of this very scenario to `folder`; False when there is none."""
    found = cache / key(scenario)[:32]
    if not (found / "result.json").is_file():
        return False
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found, temporary)
    write_json(temporary / "result.json", {**read_json(temporary / "result.json"), "run": folder.name, "cached": True})
    os.replace(temporary, folder)
    return True


def store(cache: Path, scenario: Scenario, folder: Path) -> None:
    """Copies a finished run into the cache; one that is there already stays."""
    target = cache / key(scenario)[:32]
    if target.exists():
        return
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = cache / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    try:
        os.replace(temporary, target)
    except OSError:  # another worker was first
        shutil.rmtree(temporary, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=512)
def _content(path: str, size: int, modified: int) -> str:
    """SHA-256 of a file, read once as long as it does not change."""
    del size, modified
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
