"""Engine agreement: fast engines against plain autograd, one row at a time, for every rule on every kind of model.

A clipped sum is only as good as the norms behind it. An engine that forgets a layer, mixes rows of a batch or loses
the last rows of a micro-batch keeps running, and its bound is false. So what each rule asks of the private rows
(`Recipe.release` with the noise held still: sum and statistics) is computed by the engine, whole and in micro-batches,
and once more from gradients of single rows by plain autograd, clipped in float64 by nothing but the rule's factors. The
loss is scaled to put half of the rows beyond the bound.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from fedpriv.examples import Draws, Examples
from fedpriv.privacy.audit.result import CheckResult
from fedpriv.privacy.audit.sensitivity import Silence
from fedpriv.privacy.audit.whole_step import BOUND, Settings, Subject, WholeStep, every_rule, make_recipe
from fedpriv.privacy.clippers import Clipper, Rule
from fedpriv.privacy.engines import GradientEngine, make_engine
from fedpriv.privacy.engines.base import ClippedSum, LossFn, row_factors, weighted_groups
from fedpriv.privacy.engines.single import SingleRowEngine
from fedpriv.privacy.recipe import Recipe

TOLERANCE = 1e-5  # of the sum's norm, and of the statistics'
MICROBATCHES = (0, 1, 2)  # rows per physical batch; 0: all at once
OFF = 1.07  # no norm lies on the bound, or on a bin of a histogram, where rounding would decide

Build = Callable[[str, nn.Module, LossFn, int], GradientEngine]
"""(name, model, loss, rows per physical batch) -> the engine under test."""


class Yardstick(SingleRowEngine):
    """One row at a time, its gradient at the model's own parameters computed once however many rules ask for it."""

    def __init__(self, model: nn.Module, loss: LossFn) -> None:
        super().__init__(model, loss)
        self._known: dict[bytes, Tensor] = {}

    def per_row(self, examples: Examples, draws: Draws, parameters: Tensor | None = None) -> Tensor:
        """See `RowEngine.per_row`."""
        if parameters is not None or len(examples) == 0:
            return super().per_row(examples, draws, parameters)
        found: list[Tensor] = []
        for i in range(len(examples)):
            row = examples.rows(slice(i, i + 1)), draws.rows(slice(i, i + 1))
            parts = [getattr(row[0], f.name) for f in fields(Examples)] + [row[1].time, row[1].noise]
            key = b"".join(part.cpu().numpy().tobytes() for part in parts)
            if key not in self._known:
                self._known[key] = super().per_row(*row)[0]
            found.append(self._known[key])
        return torch.stack(found)

    def clipped_sum(self, examples: Examples, draws: Draws, clipper: Clipper) -> ClippedSum:
        """See `GradientEngine.clipped_sum`; summed in float64."""
        rows = self.per_row(examples, draws).to(torch.float64)
        norms = rows.norm(dim=1)
        return ClippedSum((row_factors(clipper, norms) @ rows).to(torch.float32), clipper.bound, norms)

    def clipped_groups(self, examples: Examples, draws: Draws, clipper: Rule, cuts: Sequence[int]) -> ClippedSum:
        """See `GroupEngine.clipped_groups`; summed in float64."""
        rows = self.per_row(examples, draws).to(torch.float64)
        total = torch.zeros(self._layout.size, dtype=torch.float64)
        norms = weighted_groups(rows, clipper, cuts, total)
        return ClippedSum(total.to(torch.float32), clipper.bound, norms)


def build(name: str, model: nn.Module, loss: LossFn, microbatch: int) -> GradientEngine:
    """As training makes it."""
    return make_engine(name, model, loss, microbatch=microbatch)


def check_agreement(
    subject: Subject,
    *,
    engine: str = "auto",
    cases: Mapping[str, Settings] | None = None,
    turn: int = 0,
    build: Build = build,
) -> CheckResult:
    """The worst disagreement of `engine` with the yardstick over all rules and micro-batches, on one model.

    Args:
        engine: as in scenarios; rules that need every row's gradient get the engine that they are given in training.
        cases: rules to run; every one whose release is not that of another (filters look at releases only).
        turn: where to begin with the sizes of micro-batches: the first rule runs with all of them, others take turns.
        build: makes the engine under test; for planted defects.
    """
    subject = half_clipped(subject)
    yardstick = Yardstick(subject.model, subject.loss)
    worst, where = 0.0, "nothing was run"
    made: dict[tuple[str, int], GradientEngine] = {}
    for place, (name, recipe) in enumerate(_recipes(every_rule() if cases is None else cases)):
        whole = WholeStep(recipe, subject, engine=yardstick)
        expected = _released(whole)
        for rows in MICROBATCHES if place == 0 else (MICROBATCHES[(place + turn) % len(MICROBATCHES)],):
            key = (_engine_of(recipe, engine), rows)
            try:
                if key not in made:
                    made[key] = build(key[0], subject.model, subject.loss, rows)
                error = _difference(_released(whole, made[key]), expected)
            except Exception as problem:  # an engine that cannot run a rule does not agree on it
                why = f"{name}: {type(problem).__name__}: {problem}"
                return CheckResult(f"{subject.name}: engines agree", False, why)
            if not error <= worst:
                worst, where = error, f"{name}, {key[0]}, {f'micro-batches of {rows}' if rows else 'one batch'}"
    detail = f"differ by {worst:.2g} of their size at most ({where}), {TOLERANCE:g} allowed"
    return CheckResult(f"{subject.name}: engines agree", worst <= TOLERANCE, detail)


def check_agreements(
    subjects: Sequence[Subject], *, engine: str = "auto", tell: Callable[[float], None] = lambda share: None
) -> list[CheckResult]:
    """`check_agreement` on each subject; every rule meets every size of micro-batches on some of them."""
    results: list[CheckResult] = []
    for turn, subject in enumerate(subjects):
        results.append(check_agreement(subject, engine=engine, turn=turn))
        tell((turn + 1) / len(subjects))
    return results


def _recipes(cases: Mapping[str, Settings]) -> Iterator[tuple[str, Recipe]]:
    for name, settings in cases.items():
        recipe = make_recipe(settings)
        if recipe.rules.filter is None or recipe.rules.rule.name:
            yield name, recipe


def half_clipped(subject: Subject) -> Subject:
    """The subject with its loss scaled so that about half of the rows have a gradient beyond the bound."""
    norms = SingleRowEngine(subject.model, subject.loss).per_row(*subject.rows).to(torch.float64).norm(dim=1)
    share, inner = OFF * BOUND / max(float(norms.median()), 1e-30), subject.loss

    def scaled(model: nn.Module, examples: Examples, draws: Draws) -> Tensor:
        return share * inner(model, examples, draws)

    return replace(subject, loss=scaled)


def _engine_of(recipe: Recipe, asked: str) -> str:
    return recipe.rules.engine_name("auto" if recipe.rules.rule.NEEDS == "rows" else asked)


def _released(whole: WholeStep, engine: GradientEngine | None = None) -> list[Tensor]:
    """Sum and statistics without noise."""
    used = whole.engine if engine is None else engine
    released = whole.recipe.release(whole.point, used, *whole.subject.rows, rng=Silence())
    return [released.grad, *released.answers]


def _difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(got) != len(expected):
        return float("inf")
    found: list[float] = []
    for x, y in zip(got, expected, strict=True):
        if x.shape != y.shape or not bool(x.isfinite().all() and y.isfinite().all()):
            return float("inf")
        found.append(float((x.double() - y.double()).norm()) / max(float(y.double().norm()), 1e-30))
    return max(found)
