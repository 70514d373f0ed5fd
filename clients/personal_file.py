"""The file of a client's own model: beside its ledger, for its owner's eyes alone, never sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save


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
