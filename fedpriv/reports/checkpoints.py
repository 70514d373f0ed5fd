"""One file with the state after a round: model, optimiser, random streams, and rows not yet in the table."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.reports.atomic import replace_file

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """State after `round`.

    Attributes:
        round: the last complete round.
        arrays: name -> array; dtype and shape are kept.
        meta: JSON-ready; floats keep every bit.
        rows: rows of the table of rounds that its file does not have yet.
    """

    round: int
    arrays: Arrays
    meta: dict[str, Any]
    rows: list[list[object]]

    def save(self, path: Path, *, digest: str, durable: bool) -> None:
        """Replaces `path` whole; `digest` names the scenario that it belongs to."""
        from safetensors.numpy import save_file

        contiguous = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        header = {
            "round": str(self.round),
            "digest": digest,
            "crc32": str(_checksum(contiguous)),
            "rows": json.dumps(self.rows),
            "meta": json.dumps(self.meta),
        }
        replace_file(path, lambda temporary: save_file(contiguous, temporary, metadata=header), durable=durable)

    @classmethod
    def load(cls, path: Path, *, digest: str) -> Self | None:
        """What `save` wrote; None when there is no file.

        Raises:
            InputError: damaged, or of a scenario with another digest.
        """
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                header: dict[str, str] = file.metadata()
                arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no __iter__
            if int(header["crc32"]) != _checksum(arrays):
                raise ValueError("its checksum does not match")
            if header["digest"] != digest:
                raise ValueError("it belongs to another scenario")
            return cls(int(header["round"]), arrays, json.loads(header["meta"]), json.loads(header["rows"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"the checkpoint {path} cannot be used: {error}. Nothing was started; begin again in another folder "
                "with --out (what the ledgers here have committed stays spent)."
            ) from None


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(arrays[name].data if arrays[name].size else b"", zlib.crc32(name.encode(), total))
    return total
