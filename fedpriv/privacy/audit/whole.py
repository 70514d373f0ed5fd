"""Every rule of the registry through the whole private step: what is released, against the event that is charged.

`Recipe.release` is all of a step that sees private rows; its result is a gradient and the noisy answers of whatever
statistic a rule asks. Each case is taken apart without trusting its parts:

* the standard deviation of every released number is MEASURED, by a source of noise that returns ones;
* all numbers together, each over its own noise, must move by at most 1 / sigma when a row comes, goes or is zeroed
  out (which is to contribute nothing), and by at most 2 / sigma when one is replaced, by a row of gaps for example,
  sigma being read off the event that the step charges. That is the joint Gaussian mechanism
  (`fedpriv.privacy.joint`): a statistic that is not charged, a bound that is stated too small, or noise on a wrong
  scale breaks it; a row in which nothing was read adds no gradient at all;
* the event must be the one that the contract has for this step;
* the noise itself must have the measured size, block by block, and be normal;
* nothing may be remembered of rows: after a look at other rows, the same release and the same post-processing follow.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fedpriv.privacy.audit.result import CheckResult, Rows
from fedpriv.privacy.audit.sensitivity import SLACK, Silence, join, pick
from fedpriv.privacy.audit.steering import check_steering
from fedpriv.privacy.audit.whole_step import SIGMA, Settings, Subject, WholeStep, every_rule, make_recipe
from fedpriv.privacy.contract import noise_of
from fedpriv.privacy.events import ScheduledDpEvent, encode_event
from fedpriv.privacy.recipe import Recipe
from fedpriv.seeding import stream

_SHARES = (0.5, 0.999, 1.001)  # of the bound: norms on both sides of a threshold
_GAP = 5  # rows that a row of gaps joins
_NOISE_STEPS = 8  # releases per silent batch whose noise is looked at


def check_rule(name: str, recipe: Recipe, subject: Subject) -> list[CheckResult]:
    """All checks of one recipe on one subject; failures are results, not exceptions."""
    label = f"{name} on {subject.name}"
    try:
        whole = WholeStep(recipe, subject)
        return [
            _charged(label, whole),
            *_sensitivity(label, whole),
            _noise(label, whole),
            _memory(label, whole),
        ]
    except Exception as error:  # a rule that refuses some rows tells that they are there
        return [CheckResult(f"{label}: runs", False, f"{type(error).__name__}: {error}")]


def _charged(label: str, whole: WholeStep) -> CheckResult:
    """The event of the step is the one that the contract of the run has in this place."""
    charged, agreed = whole.release(whole.nothing(), Silence()).event, whole.recipe.event()
    step = whole.point.facts.step
    if isinstance(agreed, ScheduledDpEvent):
        ((agreed, _),) = agreed.part(step, step + 1)
    same = encode_event(charged) == encode_event(agreed)
    detail = f"noise multiplier {noise_of(charged):.5g} charged, {noise_of(agreed):.5g} agreed"
    return CheckResult(f"{label}: charged as agreed", same, detail)


def _sensitivity(label: str, whole: WholeStep) -> list[CheckResult]:
    scale, rows = whole.scale(), whole.subject.rows
    sigma = noise_of(whole.release(whole.nothing(), Silence()).event)
    still = Silence()
    worst = {"one row": (0.0, ""), "a row replaced": (0.0, "")}
    broken: list[str] = []
    bases = {
        size: whole.values(pick(rows, slice(0, size)), still) for size in {*(whole.subject.sizes or range(6)), _GAP}
    }
    adversaries = dict(whole.subject.adversaries)
    if whole.subject.of_norm is not None:
        for share in _SHARES:
            made = whole.subject.of_norm(share * whole.point.clipper.l2_clip_norm)
            adversaries[f"{share:g} of the bound"] = lambda _, made=made: made
    for turn, (who, adversary) in enumerate(adversaries.items()):
        for size in whole.subject.sizes or (0, 1 + turn % 4, 5):
            batch, base = pick(rows, slice(0, size)), bases[size]
            z = adversary(batch)
            joined = whole.values(join(batch, z), still)
            pairs = [("one row", base, joined)]
            if size:
                rest = pick(batch, slice(1, size))
                pairs.append(("a row replaced", base, whole.values(join(rest, z), still)))
            for kind, before, after in pairs:
                if not bool(before.isfinite().all() and after.isfinite().all()):
                    broken.append(f"{who}, batch of {size}")
                    continue
                share = _moved(before, after, scale) * sigma / (2 if kind == "a row replaced" else 1)
                if share > worst[kind][0]:
                    worst[kind] = (share, f"{who}, batch of {size}")
    found = [
        CheckResult(f"{label}: {kind}", share <= 1 + SLACK, f"at most {share:.6f} of what is charged ({where})")
        for kind, (share, where) in worst.items()
    ]
    if whole.subject.of_norm is not None:
        top = max(share for share, _ in worst.values())
        found.append(CheckResult(f"{label}: the bound is reached", top > 0.9, f"at most {top:.6f} of it"))
    gap = null_row(pick(rows, slice(5, 6)))
    with_gap, size = whole.values(join(pick(rows, slice(0, _GAP)), gap), still), whole.layout.size
    share = _moved(bases[_GAP], with_gap, scale) * sigma / 2
    none = _moved(bases[_GAP][:size], with_gap[:size], scale[:size]) == 0.0 and share <= 1
    found.append(CheckResult(f"{label}: a row of gaps", none, "no gradient" if none else f"moved by {2 * share:.3g}"))
    detail = f"not finite: {'; '.join(broken[:3])}" if broken else "finite for every adversary"
    return [*found, CheckResult(f"{label}: finite", not broken, detail)]


def _moved(before: Tensor, after: Tensor, scale: Tensor) -> float:
    """Norm of the change, each number over its noise; what has no noise may not move at all."""
    # A float32 sum rounds at its own size, not at that of the row.
    rounding = 1e-6 * (before.abs() + after.abs())
    change = ((after - before).abs() - rounding).clamp(min=0.0)
    return float(torch.where(change > 0, change / scale, 0.0).norm())


def null_row(row: Rows) -> Rows:
    """A row in which nothing was read: nothing given, nothing asked."""
    empty = torch.zeros_like(row[0].given)
    zero = torch.zeros_like(row[0].values)
    return replace(row[0], values=zero, baseline=zero, given=empty, target=empty), row[1]


def _noise(label: str, whole: WholeStep) -> CheckResult:
    """Empty batches, in units of the measured deviation: every block of the right size, all of it normal."""
    rng, quiet = stream(2, "audit", label), whole.nothing()
    still, scale = whole.values(quiet, Silence()), whole.scale()
    if not bool((scale > 0).all()):
        return CheckResult(f"{label}: noise", False, f"{int((scale <= 0).sum())} released numbers without noise")
    drawn = [((whole.values(quiet, rng) - still) / scale).numpy() for _ in range(_NOISE_STEPS)]
    together = np.concatenate(drawn)
    worst, where = float(stats.kstest(together, "norm").pvalue), "all of it"
    tests = 1
    for name, part in whole.blocks():
        x = np.concatenate([d[part] for d in drawn])
        total, tests = float((x * x).sum()), tests + 1
        p = min(1.0, 2 * min(float(stats.chi2.cdf(total, x.size)), float(stats.chi2.sf(total, x.size))))
        worst, where = min((worst, where), (p, name))
    square = np.stack(drawn)  # [steps, P + S]
    related = max(_correlation(square[1:], square[:-1]), _correlation(square[:, 1:], square[:, :-1]))
    limit = 6 / np.sqrt(square[1:].size)
    detail = f"least likely: {where} (p = {worst:.2g} of {tests}); largest correlation {related:.3f} ({limit:.3f})"
    return CheckResult(f"{label}: noise", worst * tests >= 1e-4 and related < limit, detail)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return abs(float((x * y).sum())) / size if size > 0 else 1.0


def _memory(label: str, whole: WholeStep) -> CheckResult:
    """Looks at other rows in between: neither the next release nor the post-processing may change."""
    rows, still = whole.subject.rows, Silence()
    common = pick(rows, slice(0, 3))
    frozen = whole.release(common, still)
    first = whole.values(common, still), whole.recipe.after(whole.point, frozen)
    for adversary in list(whole.subject.adversaries.values())[:4]:
        whole.recipe.after(whole.point, whole.release(join(common, adversary(common)), still))
    whole.release(pick(rows, slice(3, 6)), still)
    done = whole.recipe.after(whole.point, frozen)
    again = whole.values(common, still)
    same = torch.equal(first[0], again) and torch.equal(first[1].grad, done.grad)
    if first[1].state is not None and done.state is not None:
        same = same and torch.equal(first[1].state, done.state)
    detail = "the same after a look at other rows" if same else "a look at other rows changed what came after"
    return CheckResult(f"{label}: remembers no rows", same, detail)


def check_every_rule(
    subjects: Sequence[Subject],
    *,
    cases: Mapping[str, Settings] | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> list[CheckResult]:
    """`check_rule` for every case and subject, and `check_steering` for controllers that ask a statistic."""
    chosen = every_rule() if cases is None else cases
    results: list[CheckResult] = []
    for done, (name, settings) in enumerate(chosen.items()):
        recipe = make_recipe(settings)
        for i, subject in enumerate(subjects):
            if i == 0 or recipe.rules.filter is None or recipe.rules.rule.name:  # filters see releases only
                results += check_rule(name, recipe, subject)
        if recipe.rules.controller.statistic_noise(SIGMA) is not None:
            results.append(check_steering(name, recipe))
        tell((done + 1) / len(chosen))
    return results
