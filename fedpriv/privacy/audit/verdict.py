"""From the scores of one canary run to a verdict on a claimed epsilon.

fail: some valid lower bound at 99.9 % exceeds the claim; the program leaks more than it says.
weak: the bound at 95 % stays below 0.6 of the claim; the audit shows too little to vouch for the program, because
something hides the canaries (too much noise, windows not drawn, reused noise) or because there are too few of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from fedpriv.privacy.audit import bounds
from fedpriv.privacy.audit.bounds import Parameters, Rates
from fedpriv.privacy.audit.canary import CanaryScores
from fedpriv.privacy.audit.plan import Plan, make_plan
from fedpriv.privacy.audit.tables import Claim

REPORTED: Final = 0.05  # significance of the numbers that are shown
FAILING: Final = 1e-3  # chance that a sound program fails
WEAK: Final = 0.6  # share of the claim that an audit must reach
ENOUGH: Final = 0.85  # share that T3 is expected to reach if it is to judge; below, the tighter T2 does


@dataclass(frozen=True)
class SuiteResult:
    """Outcome of one suite of the audit.

    Attributes:
        name: D1 to D5 and what was run.
        passed: whether all of it held.
        detail: the reason, in one line; made of canaries or made-up rows only, so free to show.
        numbers: the figures behind it.
    """

    name: str
    passed: bool
    detail: str
    numbers: Mapping[str, float | str] = field(default_factory=dict[str, float | str])

    def to_json(self) -> dict[str, object]:
        """Plain fields; numbers that are not finite, which JSON has not, as text."""
        numbers = {k: v if isinstance(v, str) or math.isfinite(v) else str(v) for k, v in self.numbers.items()}
        return {"name": self.name, "passed": self.passed, "detail": self.detail, "numbers": numbers}


@dataclass(frozen=True)
class Bounds:
    """Lower bounds on epsilon at one significance each (module `bounds`); `gdp` is a diagnostic, not a bound."""

    t3: float
    t2: float
    fdp: float
    steinke: float
    clopper_pearson: float
    gdp: float

    def valid(self) -> dict[str, float]:
        """All but the diagnostic, by name."""
        return {name: value for name, value in self.numbers().items() if name != "gdp"}

    def numbers(self) -> dict[str, float]:
        """By name."""
        return {
            "t3": self.t3,
            "t2": self.t2,
            "fdp": self.fdp,
            "steinke": self.steinke,
            "clopper_pearson": self.clopper_pearson,
            "gdp": self.gdp,
        }


def all_bounds(claim: Claim, scores: CanaryScores, plan: Plan, significance: float) -> Bounds:
    """Every bound, each at `significance` of its own."""
    canaries = len(scores.scores)
    seen = bounds.rates(scores.scores, scores.inserted, plan.t3_threshold)
    other = bounds.rates(scores.scores, scores.inserted, plan.cp_threshold)
    steinke, fdp = (_guessed(scores, guesses) for guesses in (plan.steinke_guesses, plan.fdp_guesses))
    return Bounds(
        t3=bounds.t3_bound(claim, seen, significance, lowest=plan.lowest),
        t2=bounds.t2_bound(claim, parameters(claim, scores, significance), lowest=plan.lowest),
        fdp=bounds.fdp_bound(claim, canaries, *fdp, significance=significance, lowest=plan.lowest),
        steinke=bounds.steinke_bound(canaries, *steinke, delta=claim.delta, significance=significance),
        clopper_pearson=bounds.clopper_pearson_bound(other, delta=claim.delta, significance=significance),
        gdp=bounds.gdp_fit(seen, delta=claim.delta, significance=significance),
    )


def parameters(claim: Claim, scores: CanaryScores, significance: float) -> Parameters:
    """Limits of scale and thin; see `bounds.fit`."""
    return bounds.fit(
        scores.inserted,
        scores.totals,
        scores.squares,
        steps=scores.steps,
        expected=scores.expected,
        expected_square=scores.expected_square,
        relation=claim.relation,
        significance=significance,
    )


def _guessed(scores: CanaryScores, guesses: tuple[int, int]) -> tuple[int, int]:
    """(guesses, how many were right) of calling the highest scores "in" and the lowest "out"."""
    top, bottom = guesses
    order = np.argsort(scores.scores, kind="stable")
    right = int(scores.inserted[order[len(order) - top :]].sum()) + int((~scores.inserted[order[:bottom]]).sum())
    return top + bottom, right


def judge(claim: Claim, scores: CanaryScores, *, epsilon: float, name: str, failing: float = FAILING) -> SuiteResult:
    """The verdict on the claim of `epsilon`, which may differ from what the accountant says of the events.

    Filters and zCDP report more than their events cost exactly; no attacker reaches that, so "weak" is measured
    against the smaller of the two.

    The failing gate shares its significance out to all tests it makes: five bounds on all canaries, and T2 on each
    stratum, because a fault in one layer of four drowns in the pool.
    """
    canaries = len(scores.scores)
    plan = make_plan(claim, canaries, REPORTED)
    shown = all_bounds(claim, scores, plan, REPORTED)
    strata = [str(s) for s in np.unique(scores.strata)]
    share = failing / (len(shown.valid()) + (len(strata) if len(strata) > 1 else 0))
    strict = all_bounds(claim, scores, plan, share).valid()
    if len(strata) > 1:
        for stratum in strata:
            found = parameters(claim, scores.stratum(stratum), share)
            strict[f"t2 of {stratum}"] = bounds.t2_bound(claim, found, lowest=plan.lowest)
    worst = max(strict, key=lambda k: strict[k])
    reachable = min(epsilon, claim.epsilon())
    strong = plan.expected_t3 >= ENOUGH * reachable
    judged, value = ("T3", shown.t3) if strong else ("T2", shown.t2)
    status = "fail" if strict[worst] > epsilon else "weak" if value < WEAK * reachable else "ok"
    seen: Rates = bounds.rates(scores.scores, scores.inserted, plan.t3_threshold)
    estimate = parameters(claim, scores, 0.5)
    detail = {
        "fail": f"at least epsilon {strict[worst]:.3g} by {worst} with 99.9 % confidence, {epsilon:.4g} claimed",
        "weak": f"{judged} shows only {value:.3g} of {epsilon:.4g} claimed (95 %); {_why_weak(plan, strong)}",
        "ok": f"{judged} shows {value:.3g} of {epsilon:.4g} claimed (95 %), nothing above it (99.9 %)",
    }[status]
    numbers: dict[str, float | str] = {
        "status": status,
        "epsilon": epsilon,
        "epsilon_of_events": claim.epsilon(),
        **shown.numbers(),
        "t3_expected": plan.expected_t3,
        "worst_999": strict[worst],
        "worst_999_by": worst,
        "noise_over_claimed": estimate.scale,
        "contribution_over_claimed": estimate.thin,
        "false_positives": seen.false_positives,
        "false_negatives": seen.false_negatives,
        "canaries": float(canaries),
        "inserted": seen.present,
        "steps": float(scores.steps),
        "seconds": round(scores.seconds, 3),
    }
    return SuiteResult(name, status == "ok", detail, numbers)


def _why_weak(plan: Plan, strong: bool) -> str:
    if strong:
        return f"{plan.expected_t3:.3g} was to be expected, so something hides the canaries"
    return f"T3 could show {plan.expected_t3:.3g} at best, so take more canaries (10000 or more for epsilon <= 1)"
