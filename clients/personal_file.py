"""The file of a client's own model: beside its ledger, for its owner's eyes alone, never sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from fedpriv.reports.folder import RunFolder

_ENDING = ".personal.safetensors"
_NOTHING = "Nothing was computed."


def personal_path(ledger: Path) -> Path:
    """Where a client's own model is kept: beside its ledger."""
    return ledger.with_name(f"{ledger.stem}{_ENDING}")


def find_personal(folder: RunFolder, which: str | Path) -> Path:
    """The file of a client's own model, to be used with the run that it was made in.

    Args:
        folder: of the run.
        which: the file, or the name of a client whose file lies in the run folder.

    Raises:
        InputError: no such file or client, a file that is no personal model, or one of another run.
    """
    path = Path(which)
    if not path.is_file():
        path = personal_path(folder.ledger_path(str(which)))
    if not path.is_file():
        there = sorted(found.name.removesuffix(_ENDING) for found in (folder.path / "ledgers").glob(f"*{_ENDING}"))
        if there:
            hint = f"clients with one in {folder.path}: {', '.join(there)}"
        elif folder.scenario.personal.kind == "none":
            hint = f"the run in {folder.path} made none (personal.kind=none)"
        else:
            hint = f"there are none in {folder.path}; a deployed client's lies beside its ledger: give the file"
        raise InputError(f"--personal {which}: no file, and no client with a model of its own; {hint}. {_NOTHING}")
    try:
        with safe_open(path, framework="numpy") as file:
            run = (file.metadata() or {}).get("run")
    except (OSError, SafetensorError) as error:
        raise InputError(f"the personal model {path} cannot be read ({error}). {_NOTHING}") from None
    if run is None:
        raise InputError(f"{path} is not a client's own model (CLIENT{_ENDING}). {_NOTHING}")
    known = folder.status.get("run_id")
    if known is not None and known != run:
        raise InputError(
            f"the personal model {path} was made in another run (run_id {run}) than that of {folder.path} ({known}). "
            f"{_NOTHING}"
        )
    return path


def personal_remark(scenario: Scenario) -> str:
    """What its user must know of a personal model's results; empty where the label covers them."""
    if scenario.personal.kind == "private":
        return ""
    return (
        "this client's own model was fine-tuned without noise: nothing made with it is covered by the privacy label, "
        "and it must not leave the client"
    )


def write_personal(path: Path, weights: Mapping[str, NDArray[np.float32]], *, about: Mapping[str, str]) -> None:
    """Replaces `path` by all parameters of the model by name; readable and writable by the owner only."""
    content = save({name: np.ascontiguousarray(array) for name, array in weights.items()}, metadata=dict(about))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        # Made with its final mode: no moment at which others could open it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
