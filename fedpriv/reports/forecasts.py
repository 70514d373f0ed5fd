"""The few held-out windows that the report shows: what was given, what came true, what was forecast."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpriv.errors import InputError
from fedpriv.reports.atomic import replace_file

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class ForecastExamples:
    """E example windows in physical units; NaN marks a step without a reading.

    Shapes: Lc steps of context, H steps to generate, Q quantile levels. Forecast: `stamps` has Lc + H steps.
    Imputation: context, truth and stamps all cover the same L = Lc = H steps, and what was hidden is NaN in `context`.

    Attributes:
        client: [E] names (channel or meter may follow after a slash).
        stamps: [E, Lc + H] or [E, L] datetime64.
        context: [E, Lc] what the model was given.
        truth: [E, H] what was read.
        point: [E, H] the point forecast.
        quantiles: [E, Q, H].
        levels: [Q] of the quantiles, rising, in (0, 1).
        baseline: [E, H] seasonal naive; empty [0, 0] where not kept.
        unit: physical unit of the values, such as MW.
    """

    client: NDArray[np.str_]
    stamps: NDArray[np.datetime64]
    context: Floats
    truth: Floats
    point: Floats
    quantiles: Floats
    levels: Floats
    baseline: Floats
    unit: str = ""

    def __post_init__(self) -> None:
        count, horizon = self.truth.shape
        steps = self.stamps.shape[1]
        problems = [
            f"{name} has shape {array.shape}, expected {shape}"
            for name, array, shape in (
                ("client", self.client, (count,)),
                ("point", self.point, (count, horizon)),
                ("quantiles", self.quantiles, (count, len(self.levels), horizon)),
                ("context", self.context, (count, self.context.shape[1])),
            )
            if array.shape != shape
        ]
        if steps not in (self.context.shape[1] + horizon, horizon):
            problems.append(f"stamps has {steps} steps, context {self.context.shape[1]} and horizon {horizon}")
        if self.baseline.size and self.baseline.shape != self.truth.shape:
            problems.append(f"baseline has shape {self.baseline.shape}, expected {self.truth.shape}")
        if problems:
            raise ValueError("examples do not fit together: " + "; ".join(problems))

    def __len__(self) -> int:
        return len(self.client)

    @property
    def is_forecast(self) -> bool:
        """True when the generated steps follow the context; False when they lie inside it (imputation)."""
        return self.stamps.shape[1] == self.context.shape[1] + self.truth.shape[1]

    def save(self, path: Path) -> None:
        """Writes one compressed npz."""
        arrays: dict[str, Any] = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        arrays["stamps"] = arrays["stamps"].astype("datetime64[s]").astype(np.int64)  # npz would pickle other units

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez_compressed(handle, **arrays)

        replace_file(path, write)

    @classmethod
    def load(cls, path: Path) -> ForecastExamples:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {f.name: archive[f.name] for f in fields(cls)}
            arrays["stamps"] = arrays["stamps"].astype("datetime64[s]")
            arrays["unit"] = str(arrays["unit"])
            return cls(**arrays)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is not a file of forecast examples ({error}); nothing was changed.") from None
