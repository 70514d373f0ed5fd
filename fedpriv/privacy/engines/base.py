"""What every gradient engine promises, and the helpers they share.

Shapes: B rows (units) in a batch, K diffusion draws per row, P trainable parameters.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import Clipper, Rule

LossFn: TypeAlias = Callable[[nn.Module, Examples, Draws], Tensor]
"""One loss per row [B]: row i is a function of row i alone, its K draws already averaged. The loss may flatten
draws into model rows, in the order b * K + k."""

ROUNDING_MARGIN: Final = 1e-5
"""Engines shrink every factor by this share: float32 products overshoot a bound by about 1.4e-6 of itself, so
the contributions really added stay within `bound`, and noise and accounting need no correction."""

PLAIN_NORMS: Final = (1e-12, 1e15)
"""Norms that float32 squares and products carry without loss; rows outside are treated apart, in float64."""


@dataclass(frozen=True)
class ClippedSum:
    """Sensitive: the sum of clipped per-row gradients. Only `Mechanism.release` may read it.

    Attributes:
        total: [P] float32. Its repr is hidden, and it refuses to be pickled: it must not leave the process.
        bound: L2 norm that any one row can add.
        norms: [B] float64 before clipping, for checks on public data; sensitive and hidden likewise.
    """

    total: Tensor = field(repr=False)
    bound: float
    norms: Tensor | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"ClippedSum(<{self.total.numel()} sensitive numbers>, bound={self.bound:g})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClippedSum is private and is not pickled; release it through a Mechanism first")


class GradientEngine(Protocol):
    """Computes sums of clipped per-row gradients of one model and loss."""

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """The sum over rows of factor * gradient; zeros for a batch without rows.

        Each row's contribution has norm <= clipper.bound and is a function of that row alone; rows whose
        gradient is not finite contribute exactly zero.
        """
        ...


class RowEngine(GradientEngine, Protocol):
    """An engine that has every row's gradient at hand, also at other parameters than the model's."""

    @property
    def microbatch(self) -> int:
        """Rows per physical batch; 0: all at once."""
        ...

    def per_row(self, examples: Examples, draws: Draws, parameters: Tensor | None = None) -> Tensor:
        """[B, P] float32 gradients; sensitive.

        Args:
            parameters: where they are taken: None, the model's own; [P], the same for all rows; [B, P], each its own.
        """
        ...


class GroupEngine(GradientEngine, Protocol):
    """An engine that clips groups of consecutive layers each on its own."""

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """As `clipped_sum`, with the entries [cuts[k], cuts[k + 1]) of a row clipped as one group.

        Each of the G groups is clipped by `clipper` at C / sqrt(G), so a row adds at most `clipper.bound` in all.
        A row with any entry that is not finite contributes exactly zero. `norms` are those of whole rows.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """Where each trainable parameter sits in the flat vector: `named_parameters()` order."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    starts: tuple[int, ...]
    size: int  # P

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """[P] -> {name: view of its parameter's shape}."""
        parts = vector.split([shape.numel() for shape in self.shapes])
        return {
            name: part if len(shape) == 1 else part.view(shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that take part, in `named_parameters()` order (a shared one counts once)."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def layout(model: nn.Module) -> Layout:
    """The layout of `model`'s trainable parameters.

    Raises:
        InputError: a trainable parameter that is not float32.
    """
    names: list[str] = []
    shapes: list[torch.Size] = []
    starts: list[int] = []
    size = 0
    for name, p in trainable(model):
        if p.dtype != torch.float32:
            raise InputError(f"parameter {name!r} is {p.dtype}, not float32; no gradient was computed.")
        names.append(name)
        shapes.append(p.shape)
        starts.append(size)
        size += p.numel()
    return Layout(tuple(names), tuple(shapes), tuple(starts), size)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are (cpu if it has none)."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def chunks(rows: int, microbatch: int) -> Iterator[slice]:
    """Consecutive slices of at most `microbatch` rows; one slice if microbatch is 0."""
    step = microbatch or max(rows, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def checked_microbatch(microbatch: int) -> int:
    """`microbatch`, refused if negative."""
    if microbatch < 0:
        raise InputError(f"microbatch={microbatch} is negative; 0 means the whole batch. Nothing was started.")
    return microbatch


def checked_losses(losses: Tensor, rows: int) -> Tensor:
    """`losses`, refused unless there is one per row: a batch mean has no per-row gradients."""
    if losses.shape != (rows,):
        raise InputError(
            f"the loss returned shape {tuple(losses.shape)} for {rows} rows; it must return one loss per row, "
            f"shape ({rows},). No gradient was computed."
        )
    return losses


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuses modules that mix rows or keep statistics of them.

    Raises:
        InputError: naming the module.
    """
    for name, module in model.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)  # pyright: ignore[reportPrivateUsage]
        if mixes or getattr(module, "track_running_stats", False):
            raise InputError(
                f"module {name!r} ({type(module).__name__}) computes statistics over the batch, so one row's "
                "gradient depends on the others; use LayerNorm or GroupNorm. No gradient was computed."
            )


def gradients(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of a scalar; None for inputs that it does not depend on."""
    if not inputs or not value.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(value, inputs, allow_unused=True))


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """[P] float32 gradient of a scalar, 0 for parameters that it does not depend on."""
    found = zip(parameters, gradients(value, parameters), strict=True)
    parts = [(torch.zeros_like(p) if g is None else g).flatten() for p, g in found]
    return torch.cat(parts) if parts else value.new_zeros(0)


def row_factors(clipper: Clipper, norms: Tensor) -> Tensor:
    """[B] norms -> [B] float64 factors as engines apply them: shrunk by the margin, 0 where not finite."""
    factors = clipper.factors(norms.to(torch.float64)) * (1.0 - ROUNDING_MARGIN)
    return torch.where(norms.isfinite() & factors.isfinite(), factors, 0.0)


def is_plain(norms: Tensor) -> Tensor:
    """[B] bool: norms that float32 arithmetic carries without overflow or loss (0 included)."""
    low, high = PLAIN_NORMS
    return (norms == 0) | ((norms >= low) & (norms <= high))


PART: Final = 4096  # entries whose squares float32 may add up: the sum is then good to about 1e-7


def row_norms(rows: Tensor) -> Tensor:
    """[B, P] float32 gradients -> [B] float64 norms, good to 1e-6 for every size that float32 can hold.

    Squares are added in float32 over short parts, in float64 over the parts; rows that float32 squares would overflow
    or lose are done wholly in float64, which takes five times as long.
    """
    whole = rows.shape[1] // PART * PART
    parts = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, PART)), dim=2).to(torch.float64)
    rest = torch.linalg.vector_norm(rows[:, whole:], dim=1).to(torch.float64)
    norms = torch.hypot(torch.linalg.vector_norm(parts, dim=1), rest)
    low, high = PLAIN_NORMS
    again = ~((norms >= low) & (norms <= high))
    if bool(again.any()):
        norms[again] = torch.linalg.vector_norm(rows[again], dim=1, dtype=torch.float64)
    return norms


def weighted_rows(rows: Tensor, norms: Tensor, factors: Tensor, out: Tensor) -> None:
    """Adds sum_b factors[b] * rows[b] to `out` [P]. `rows` [B, P] is used up: unusable rows are overwritten by 0.

    A row with factor 0 is skipped, not multiplied: 0 * NaN is NaN. Rows of extreme norm are scaled in float64.
    """
    plain = is_plain(norms) & (factors != 0)
    for i in torch.nonzero(~plain & (factors != 0)).flatten().tolist():
        out += (rows[i].to(torch.float64) * factors[i]).to(out.dtype)
    if not bool(plain.all()):
        rows[~plain] = 0.0
    out.addmv_(rows.t(), torch.where(plain, factors, 0.0).to(rows.dtype))


def group_clipper(clipper: Rule, count: int) -> Rule:
    """The rule of each of `count` groups: at C / sqrt(count), so that all of them together keep `clipper.bound`."""
    return replace(clipper, l2_clip_norm=clipper.l2_clip_norm / count**0.5) if count > 1 else clipper


def group_factors(clipper: Rule, norms: Tensor) -> tuple[Tensor, Tensor]:
    """[G, B] norms of groups -> ([G, B] factors, [B] norms of rows); all 0 for a row with a norm not finite."""
    inner = group_clipper(clipper, len(norms))
    factors = torch.stack([row_factors(inner, each) for each in norms])
    return torch.where(norms.isfinite().all(dim=0), factors, 0.0), torch.linalg.vector_norm(norms, dim=0)


def weighted_groups(rows: Tensor, clipper: Rule, cuts: Sequence[int], out: Tensor) -> Tensor:
    """Adds the group-wise clipped rows [B, P] to `out` [P]; returns their norms [B]. `rows` is used up."""
    parts = list(pairwise(cuts))
    norms = torch.stack([row_norms(rows[:, a:b]) for a, b in parts])
    factors, whole = group_factors(clipper, norms)
    for (a, b), norm, factor in zip(parts, norms, factors, strict=True):
        weighted_rows(rows[:, a:b], norm, factor, out[a:b])
    return whole
