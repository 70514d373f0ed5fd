"""doctor: is this machine ready, and where it is not, what to do."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json

HELP = """Check this machine: is it ready for a run?

Versions, devices, Ray, Flower's environment, one source for all packages, data and their checksums. Exit code 1 when
something must be mended before a run.
"""
_REQUIRED = {
    "flwr": (">=1.41,<1.42", "all engines"),
    "torch": (">=2.7", "training"),
    "dp-accounting": (">=0.6,<0.7", "accounting"),
    "opacus": (">=1.5,<2", "the opacus gradient engine"),
    "diffusers": (">=0.30,<1", "noise schedules and solvers"),
    "numpy": (">=1.26", "everything"),
    "pandas": (">=2.2", "reading data"),
    "pyarrow": (">=15", "tables of a run"),
    "pydantic": (">=2.7,<3", "scenarios"),
    "matplotlib": (">=3.8", "the report"),
    "jinja2": (">=3.1", "the report"),
    "safetensors": (">=0.4", "models and checkpoints"),
    "cryptography": (">=42", "noise in deployment"),
}
# What the launcher of `--engine flower` sets; another value in the environment would win over nothing but surprise.
_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    level: Literal["ok", "note", "fail"]
    text: str


def doctor(as_json: Json = False) -> None:
    """Runs every check and says what to do."""
    findings = [finding for check in CHECKS for finding in _safely(check)]
    failed = [finding for finding in findings if finding.level == "fail"]
    if as_json:
        state.emit({"ok": not failed, "checks": [vars(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            state.say(f"{finding.level:5} {finding.name:{width}}  {finding.text}")
        state.say("\nReady." if not failed else f"\nNot ready: {len(failed)} to mend.")
    if failed:
        raise typer.Exit(1)


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that breaks is a finding, not the end of the diagnosis."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}")


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("python", "ok" if good else "fail", version if good else f"{version}; 3.11 or 3.12 is needed")


def _packages() -> Iterator[Finding]:
    from importlib import metadata

    from packaging.specifiers import SpecifierSet

    for name, (wanted, purpose) in _REQUIRED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "fail", f"not installed ({purpose}): pip install '{name}{wanted}'")
            continue
        good = SpecifierSet(wanted).contains(version, prereleases=True)
        yield Finding(name, "ok" if good else "fail", version if good else f"{version}; {wanted} is needed ({purpose})")


def _ray() -> Iterator[Finding]:
    from importlib import metadata

    if importlib.util.find_spec("ray") is None:
        yield Finding("ray", "note", "not installed: --engine ray and --engine flower will refuse to start")
    else:
        yield Finding("ray", "ok", metadata.version("ray"))


def _machine() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    text = f"{cores} usable of {os.cpu_count()}, torch uses {torch.get_num_threads()} threads, OMP_NUM_THREADS {limit}"
    yield Finding("cores", "ok", text)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("devices", "ok", f"cpu, {', '.join(names)} (CUDA {torch.version.cuda})")
    else:
        yield Finding("devices", "ok", "cpu (no CUDA device is visible)")


def _flower() -> Iterator[Finding]:
    other = {key: os.environ[key] for key, value in _FLOWER.items() if os.environ.get(key, value) != value}
    if other:
        shown = ", ".join(f"{key}={value}" for key, value in other.items())
        yield Finding("flower environment", "note", f"{shown}; `--engine flower` sets its own values for its processes")
    else:
        yield Finding("flower environment", "ok", "nothing contradicts what `--engine flower` sets")
    home = os.environ.get("FLWR_HOME")
    if home and not os.access(home, os.W_OK):
        yield Finding("FLWR_HOME", "fail", f"{home} is not a directory that can be written")


def _source() -> Iterator[Finding]:
    from fedpriv.provenance import PACKAGES, source_digest, source_root

    found: dict[str, Path] = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            yield Finding("source", "fail", f"the package {name} is not importable from here")
            return
        found[name] = Path(next(iter(spec.submodule_search_locations))).resolve().parent
    if len(set(found.values())) > 1:
        where = ", ".join(f"{name} from {path}" for name, path in found.items())
        yield Finding("source", "fail", f"the packages come from different places: {where}")
    else:
        yield Finding("source", "ok", f"all four packages from {source_root()}, digest {source_digest()[:12]}")


def _data() -> Iterator[Finding]:
    from fedpriv.data.registry import DATA_DIR_VARIABLE, datasets, find_file, verified_path
    from fedpriv.errors import InputError

    chosen = os.environ.get(DATA_DIR_VARIABLE, "")
    if not chosen:
        text = f"{DATA_DIR_VARIABLE} is not set; only synthetic data, or give --set data.dir=DIR"
        yield Finding("data", "note", text)
        return
    base = Path(chosen).expanduser()
    if not base.is_dir():
        yield Finding("data", "fail", f"{DATA_DIR_VARIABLE}={chosen} is not a directory")
        return
    for known in datasets().values():
        entries = [f for files in known.forms.values() for f in files]
        here = [(f, path) for f in entries if (path := find_file(known.key, f.name, base)) is not None]
        if not here:
            yield Finding(
                f"data: {known.key}", "note", f"not in {base}; `fedpriv data download {known.key}` fetches it"
            )
            continue
        try:
            for entry, path in here:
                verified_path(path, entry)
        except InputError as error:
            yield Finding(f"data: {known.key}", "fail", str(error))
        else:
            yield Finding(f"data: {known.key}", "ok", f"{len(here)} files, checksums right")


def _folder() -> Iterator[Finding]:
    base = Path("runs") if Path("runs").is_dir() else Path()
    try:
        with tempfile.TemporaryFile(dir=base):
            yield Finding("run folders", "ok", f"{base.resolve()} can be written")
    except OSError as error:
        text = f"{base.resolve()} cannot be written ({error.strerror}); give another place with --out"
        yield Finding("run folders", "fail", text)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _ray,
    _machine,
    _flower,
    _source,
    _data,
    _folder,
)
