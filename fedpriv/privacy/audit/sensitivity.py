"""D1, sensitivity replay: the same step on neighbouring batches with the noise held still.

The bound that the noise is scaled to must hold for what is really released, so the step is run as a whole, with a
source of noise that returns zeros, on a batch and on its neighbour: one row added, removed, zeroed out or replaced,
by rows made to be as awkward as possible. (The idea of replaying with frozen randomness: arXiv:2602.17454.)
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.audit.result import CheckResult, Rows, Step

Adversary = Callable[[Rows], Rows]
"""A row that knows the batch it will join."""

SLACK = 1e-6  # relative; engines keep 1e-5 of the bound in hand, so exact rules pass with room


class NoiseOnly:
    """Refuses every draw of a step but that of its noise."""

    def random(self, size: int) -> NDArray[np.float64]:
        """Refused: a step draws nothing but its noise."""
        raise RuntimeError(f"a step asked for {size} uniform numbers; it may draw its noise only")

    def integers(self, low: int, high: int) -> int:
        """Refused: a step draws nothing but its noise."""
        raise RuntimeError(f"a step asked for an integer in [{low}, {high}); it may draw its noise only")


class Silence(NoiseOnly):
    """Noise that is all zeros: for replay only."""

    def standard_normal(self, size: int) -> NDArray[np.float64]:
        """[size] zeros."""
        return np.zeros(size)


def join(*parts: Rows) -> Rows:
    """Batches one after another."""
    names = [f.name for f in fields(Examples)]
    examples = Examples(*(torch.cat([getattr(p[0], n) for p in parts]) for n in names))
    return examples, Draws(torch.cat([p[1].time for p in parts]), torch.cat([p[1].noise for p in parts]))


def pick(rows: Rows, index: Sequence[int] | slice) -> Rows:
    """The chosen rows."""
    chosen = index if isinstance(index, slice) else torch.tensor(list(index), dtype=torch.int64)
    return rows[0].rows(chosen), rows[1].rows(chosen)


def _changed(row: Rows, **changes: Tensor) -> Rows:
    return replace(row[0], **changes), row[1]


def _always(row: Rows) -> Adversary:
    """An adversary that does not look at the batch."""

    def adversary(batch: Rows) -> Rows:
        del batch
        return row

    return adversary


def adversarial_windows(row: Rows) -> dict[str, Adversary]:
    """Windows that real meters produce on their worst days, made from one ordinary row."""
    values = row[0].values
    step = torch.zeros_like(values)
    step[:, -1, 0] = 1.0
    one = torch.ones_like(values)
    none = torch.zeros_like(row[0].given)
    made = {
        "flat": _changed(row, values=one),
        "all zero": _changed(row, values=0.0 * one),
        "one spike": _changed(row, values=values + 1e6 * step),
        "spikes everywhere": _changed(row, values=1e6 * values.sign()),
        "alternating": _changed(row, values=1e4 * one * (1 - 2 * (torch.arange(values.shape[1]) % 2))[None, :, None]),
        "1e12": _changed(row, values=1e12 * one),
        "1e30": _changed(row, values=1e30 * one),
        "1e38": _changed(row, values=1e38 * one),
        "1e-30": _changed(row, values=1e-30 * one, baseline=0.0 * one),
        "NaN in one entry": _changed(row, values=torch.where(step > 0, math.nan, values)),
        "all NaN": _changed(row, values=math.nan * one),
        "infinite": _changed(row, values=math.inf * one),
        "infinite baseline": _changed(row, baseline=-math.inf * one),
        "all missing": _changed(row, values=0.0 * one, given=none, target=none, baseline=0.0 * one),
        "nothing given": _changed(row, given=none, target=~none),
        "nothing asked": _changed(row, given=~none, target=none),
    }
    return {name: _always(made_row) for name, made_row in made.items()}


def adversarial_vectors(row: Rows) -> dict[str, Adversary]:
    """For `VectorProbe`, whose gradient is the window itself: gradients chosen outright."""
    examples, draws = row
    size = examples.values.numel()

    def vector(flat: Tensor) -> Rows:
        return _changed((examples, draws), values=flat.reshape(examples.values.shape))

    def one_hot(i: int, height: float) -> Tensor:
        flat = torch.zeros(size)
        flat[i] = height
        return flat

    def against(batch: Rows) -> Rows:
        """Minus the sum of the batch: the row that cancels all others."""
        return vector(-batch[0].values.nan_to_num(0.0, 0.0, 0.0).sum(dim=0).flatten())

    spread = torch.ones(size) / math.sqrt(size)
    fixed = {f"spread {s:g}": vector(s * spread) for s in (0.0, 1e-30, 1e-12, 1e-3, 0.3, 1.0, 30.0, 1e12, 1e30, 1e38)}
    fixed |= {f"one-hot {i}": vector(one_hot(i, 1e3)) for i in (0, size // 2, size - 1)}
    fixed |= {"NaN": vector(one_hot(1, math.nan)), "infinite": vector(one_hot(1, math.inf))}
    fixed |= {"every part alike": vector(1e3 * torch.ones(size))}
    return {"minus the batch": against} | {name: _always(fixed_row) for name, fixed_row in fixed.items()}


def check_sensitivity(
    step: Step,
    *,
    bound: float,
    denominator: float,
    rows: Rows,
    adversaries: Mapping[str, Adversary],
    sizes: Sequence[int] = (0, 1, 2, 5),
) -> list[CheckResult]:
    """Replays `step` on neighbouring batches; denominator * released must move by at most the bound.

    Args:
        bound: L2 norm that one row may add to the sum; a replaced row may change it by twice that.
        rows: ordinary made-up rows, at least max(sizes) of them.
        sizes: of the batches that the adversary joins.

    Returns:
        One result for add/remove, one for replace, one for finite outputs.
    """
    worst = {"add or remove": (0.0, "nothing moved"), "replace": (0.0, "nothing moved")}
    broken: list[str] = []

    def run(batch: Rows) -> Tensor:
        try:
            return step(batch, Silence()).to(torch.float64) * denominator
        except Exception as error:  # refusing some rows tells that they are there, as plainly as a NaN would
            broken.append(type(error).__name__)
            return torch.full((1,), math.nan)

    for size in sizes:
        batch = pick(rows, slice(0, size))
        before = run(batch)
        for name, adversary in adversaries.items():
            z = adversary(batch)
            middle = size // 2
            moves = {"add or remove": join(pick(batch, slice(0, middle)), z, pick(batch, slice(middle, size)))}
            if size:
                moves["replace"] = join(z, pick(batch, slice(1, size)))
            for kind, neighbour in moves.items():
                after = run(neighbour)
                if not bool(after.isfinite().all()) or not bool(before.isfinite().all()):
                    broken.append(f"{name}, batch of {size}")
                    continue
                # Sums of float32 round at the size of the sum, not of the row.
                rounding = 1e-6 * float(before.norm() + after.norm())
                share = max(float((after - before).norm()) - rounding, 0.0) / (bound * (2 if kind == "replace" else 1))
                if share > worst[kind][0]:
                    worst[kind] = (share, f"{share:.6f} of the bound {bound:g} ({name}, batch of {size})")
    results = [
        CheckResult(f"sensitivity: {kind}", share <= 1 + SLACK, f"at most {detail}")
        for kind, (share, detail) in worst.items()
    ]
    finite = f"not finite: {'; '.join(broken[:3])}" if broken else "finite for every adversary"
    return [*results, CheckResult("sensitivity: finite", not broken, finite)]


def check_independence(step: Step, *, denominator: float, rows: Rows, tolerance: float = 1e-4) -> CheckResult:
    """A row's contribution must not depend on its batch: contributions alone add up to the contribution together."""

    def run(batch: Rows) -> Tensor:
        return step(batch, Silence()).to(torch.float64) * denominator

    count = len(rows[0])
    together = run(rows)
    alone = torch.stack([run(pick(rows, slice(i, i + 1))) for i in range(count)]).sum(dim=0)
    error = float((together - alone).norm() / together.norm().clamp(min=1e-30))
    return CheckResult(
        "rows are independent",
        error <= tolerance,
        f"{count} rows together and alone differ by {error:.2g} of their sum",
    )
