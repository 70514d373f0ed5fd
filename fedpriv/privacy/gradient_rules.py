"""Rules around the per-row gradient: what is computed of a row before (or while) it is clipped.

Common to all: unit, one row of a step's batch; relation, any; a row's contribution is a function of that row and of
public numbers (parameters, past iterates, masks from a public seed) alone and has norm at most `clipper.bound`, so
the event of a step is the Gaussian event of the total sigma, amplified by the sampler. Where a rule asks a second
question (error feedback) it shares that sigma (`fedpriv.privacy.joint`). Rows that are not finite contribute zero.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal

import torch
from torch import Tensor

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.clippers import FlatClipper, Rule
from fedpriv.privacy.controllers import StepFacts
from fedpriv.privacy.engines.base import ClippedSum, chunks, row_factors, row_norms, weighted_rows
from fedpriv.privacy.joint import Query
from fedpriv.privacy.options import in_range
from fedpriv.privacy.rule_state import State
from fedpriv.seeding import stream

ROW_ENGINES: Final = ("functional", "single")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a rule is applied to: private rows, and public numbers beside them.

    Attributes:
        engine: the gradient engine, of the kind that the rule needs.
        examples, draws: the rows of this step.
        params: [P] current parameters, as they are in the engine's model.
        clipper: the rule of norms in force.
        state: the rule's own public state.
        facts: public facts of the step.
        names: of the trained parameters, in the order of the flat vector.
    """

    engine: Any
    examples: Examples
    draws: Draws
    params: Tensor
    clipper: Rule
    state: State
    facts: StepFacts
    names: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """Sensitive: the clipped sum of a step, and further queries about the same rows."""

    clipped: ClippedSum
    extra: tuple[Query, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GradientRule:
    """Base: no rule, the engine's own clipped sum.

    `NEEDS` is the kind of engine: "sum", any; "groups", norms of layers; "rows", per-row gradients.
    """

    steps_total: int = dataclasses.field(default=1, metadata={"fixed": True})  # private steps of the run: public
    KEY: ClassVar[str] = ""
    NEEDS: ClassVar[Literal["sum", "groups", "rows"]] = "sum"

    @property
    def name(self) -> str:
        """Its key in the registry."""
        return self.KEY

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """Public state before the first step."""
        del num_parameters
        return {}

    def ask(self, batch: Batch) -> Asked:
        """What is computed of the private rows. Sensitive."""
        return Asked(batch.engine.clipped_sum(batch.examples, batch.draws, batch.clipper))

    def extra_noise(self, sigma: float) -> tuple[float, ...]:
        """Noise over sensitivity of each further query, for the total multiplier `sigma`."""
        del sigma
        return ()

    def after(
        self, grad: Tensor, answers: Sequence[Tensor], params: Tensor, clipper: Rule, state: State, facts: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Released gradient [P] and answers -> what is applied [P], next state: post-processing."""
        del answers, params, clipper, facts
        return grad, dict(state)

    def check(self, clipper: Rule) -> None:
        """Refuses clippers that do not go with it.

        Raises:
            InputError: naming the reason; nothing was started.
        """
        del clipper


def clip_rows(batch: Batch, rows_of: Callable[[Examples, Draws], Tensor]) -> ClippedSum:
    """Clips and sums the vectors that `rows_of` makes of each microbatch, [R, P]."""
    total = torch.zeros_like(batch.params)
    norms = torch.zeros(len(batch.examples), dtype=torch.float64, device=total.device)
    for part in chunks(len(batch.examples), batch.engine.microbatch):
        rows = rows_of(batch.examples.rows(part), batch.draws.rows(part))
        norms[part] = row_norms(rows)
        weighted_rows(rows, norms[part], row_factors(batch.clipper, norms[part]), total)
    return ClippedSum(total, batch.clipper.bound, norms)


# ---- group-wise -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GroupWiseRule(GradientRule):
    """Clips every layer (or group of layers) of a row on its own, at C / sqrt(G). arXiv:1710.06963, arXiv:2212.01539.

    Proof note: group k of a row has norm at most bound / sqrt(G) after clipping, so the row's whole contribution has
    norm at most sqrt(G bound^2 / G) = bound, whatever the rule of norms: sensitivity and noise are those of the rule
    without groups (NOT the C per layer with noise for one C that is sometimes seen). Groups are runs of whole layers
    chosen by their sizes, which are public. With one group it is the rule itself.

    Attributes:
        groups: number of groups, of about equal numbers of parameters; 0: every layer is its own.
    """

    groups: int = 0
    KEY: ClassVar[str] = "group-wise"
    NEEDS: ClassVar[Literal["sum", "groups", "rows"]] = "groups"

    def __post_init__(self) -> None:
        in_range(self.name, "groups", self.groups, low=0, high=100_000, closed="low,high")

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""
        cuts = layer_cuts(batch.names, batch.facts.sizes, self.groups)
        return Asked(batch.engine.clipped_groups(batch.examples, batch.draws, batch.clipper, cuts))


@lru_cache(maxsize=16)
def layer_cuts(names: tuple[str, ...], sizes: tuple[int, ...], groups: int = 0) -> tuple[int, ...]:
    """0 = first < ... < last = P: where groups of whole layers begin and end in the flat vector.

    A layer is the module that owns a parameter; `groups` = 0 makes each its own group.
    """
    ends: list[int] = []
    total, before = 0, None
    for name, size in zip(names, sizes, strict=True):
        layer = name.rpartition(".")[0]
        if ends and layer == before:
            ends.pop()
        total, before = total + size, layer
        ends.append(total)
    if not ends:
        return (0, 0)
    if 0 < groups < len(ends):
        ideal = [total * k / groups for k in range(1, groups)]
        ends = sorted({min(ends, key=lambda end, at=at: abs(end - at)) for at in ideal} | {total})
    return (0, *ends)


# ---- sparsification -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SparsifyRule(GradientRule):
    """Keeps a random subset of coordinates, drawn without looking at data, BEFORE clipping. arXiv:2112.00845.

    Proof note: the mask is a function of a public seed and the step. A row's gradient is masked, then clipped, so
    its contribution keeps norm <= bound; what is released on the coordinates left out is exactly 0, which is the
    same for all data. Norms are spent on the kept coordinates only, and only they get noise.

    Attributes:
        final_rate: share of coordinates left out at the end; it rises linearly from 0.
        rise: share of the run over which it rises; 0: at once.
        every: steps between two draws of the mask.
        seed: public seed of the masks.
    """

    final_rate: float = 0.9
    rise: float = 1.0
    every: int = 10
    seed: int = 0
    KEY: ClassVar[str] = "sparsify"
    NEEDS: ClassVar[Literal["sum", "groups", "rows"]] = "rows"

    def __post_init__(self) -> None:
        in_range(self.name, "final_rate", self.final_rate, low=0.0, high=1.0, closed="low")
        in_range(self.name, "rise", self.rise, low=0.0, high=1.0, closed="low,high")
        in_range(self.name, "every", self.every, low=1, high=1e9, closed="low,high")
        in_range(self.name, "seed", self.seed, low=0, high=2**62, closed="low")

    def mask(self, step: int, num_parameters: int) -> Tensor:
        """[P] bool: the coordinates kept at a step; at least one."""
        draw = step // self.every
        climb = self.rise * self.steps_total
        rate = self.final_rate * (min(1.0, draw * self.every / climb) if climb > 0 else 1.0)
        return _mask(self.seed, draw, num_parameters, max(1, num_parameters - round(rate * num_parameters)))

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""
        kept = self.mask(batch.facts.step, batch.params.numel()).to(batch.params.device)
        return Asked(clip_rows(batch, lambda e, d: torch.where(kept, batch.engine.per_row(e, d), 0.0)))

    def after(
        self, grad: Tensor, answers: Sequence[Tensor], params: Tensor, clipper: Rule, state: State, facts: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes the noise off the coordinates that were left out."""
        kept = self.mask(facts.step, grad.numel()).to(grad.device)
        return torch.where(kept, grad, 0.0), dict(state)


@lru_cache(maxsize=2)
def _mask(seed: int, draw: int, size: int, kept: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.from_numpy(stream(seed, "sparsify", draw).permutation(size)[:kept])] = True
    return mask


# ---- error feedback -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResidualClipper(Rule):
    """min(1, outer C / x) - min(1, C / x): what flat clipping at C cuts off, up to outer C.

    Proof note: x times the factor is min(x, outer C) - min(x, C), between 0 and (outer - 1) C.
    """

    outer: float = 10.0
    KEY: ClassVar[str] = "residual"

    @property
    def bound(self) -> float:
        """(outer - 1) C."""
        return (self.outer - 1.0) * self.l2_clip_norm

    def _factors(self, x: Tensor) -> Tensor:
        return (self.outer * self.l2_clip_norm / x).clamp(max=1.0) - (self.l2_clip_norm / x).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class ErrorFeedbackRule(GradientRule):
    """Error feedback as in DiceSGD (arXiv:2311.14632), with an error that is paid for.

    The paper keeps e, the sum of all that clipping cut off, exact and private: it then carries a row into every later
    step, sampled or not, so its amplification by sampling does not hold. Here e is built from a second, NOISED query:

        v_t = (sum clip(g_i, C) + noise) / m + clip(e_t, ratio C)
        e_{t+1} = e_t + (sum [clip(g_i, outer C) - clip(g_i, C)] + noise) / m - clip(e_t, ratio C),   e_0 = 0.

    Proof note: the first query has sensitivity C, the second (outer - 1) C (`ResidualClipper`); with noise of
    error_noise * sigma times its sensitivity on the second, both are one Gaussian event of the total sigma, and
    sigma_gradient = sigma / sqrt(1 - error_noise^-2). e and v are post-processing, so e is public and may travel.
    Two passes over the rows; flat clipping only, for which the cut-off part is defined.

    Attributes:
        outer: clips the gradient of which the cut-off part is taken, times C.
        ratio: the paper's C2 / C1.
        error_noise: noise over sensitivity of the second query, in units of the total sigma; above 1.
    """

    outer: float = 10.0
    ratio: float = 1.0
    error_noise: float = 3.0
    KEY: ClassVar[str] = "error-feedback"

    def __post_init__(self) -> None:
        in_range(self.name, "outer", self.outer, low=1.0, high=1e6)
        in_range(self.name, "ratio", self.ratio, low=0.0, high=1e6, closed="low")
        in_range(self.name, "error_noise", self.error_noise, low=1.0, high=1e6)

    def start(self, num_parameters: int) -> dict[str, Tensor]:
        """error: [P], in units of the mean gradient."""
        return {"error": torch.zeros(num_parameters)}

    def extra_noise(self, sigma: float) -> tuple[float, ...]:
        """(error_noise * sigma,)."""
        return (self.error_noise * sigma,)

    def ask(self, batch: Batch) -> Asked:
        """See `GradientRule.ask`."""
        clipped = batch.engine.clipped_sum(batch.examples, batch.draws, batch.clipper)
        residual = ResidualClipper(l2_clip_norm=batch.clipper.l2_clip_norm, outer=self.outer)
        cut = batch.engine.clipped_sum(batch.examples, batch.draws, residual)
        stddev = self.extra_noise(batch.facts.sigma)[0] * cut.bound
        return Asked(clipped, (Query(cut.total.to(torch.float64), cut.bound, stddev),))

    def after(
        self, grad: Tensor, answers: Sequence[Tensor], params: Tensor, clipper: Rule, state: State, facts: StepFacts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the part of the error that is due and keeps the rest."""
        error = state["error"]
        most = self.ratio * clipper.l2_clip_norm
        due = error * min(1.0, most / max(float(error.norm()), 1e-30))
        left = error - due + (answers[-1] / facts.denominator).to(error.dtype)
        return grad + due, {"error": left}

    def check(self, clipper: Rule) -> None:
        """Refuses rules other than flat."""
        if not isinstance(clipper, FlatClipper):
            raise InputError(
                f"gradient rule {self.name!r} feeds back what clipping cuts off, which {clipper.name!r} does not "
                "define (it rescales every gradient); use privacy.clipper=flat with it. Nothing was started."
            )
