"""comparison.json: what the page says, for scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedpriv.reports.comparison.analysis import Analysis, Cell
from fedpriv.reports.comparison.collaboration import WORDS, AtEpsilon, Collaboration
from fedpriv.reports.comparison.cost import Cost, beats_naive_from, costs
from fedpriv.reports.comparison.curves import BreakEven
from fedpriv.reports.comparison.doubts import weak_references
from fedpriv.reports.comparison.phrases import equal_in_practice
from fedpriv.reports.comparison.promises import Promise
from fedpriv.reports.comparison.words import answer, headline
from fedpriv.reports.statistics import Paired


def summary(found: Analysis, value: Collaboration | None, promises: tuple[Promise, ...]) -> dict[str, Any]:
    """Plain values. Changes are relative (-0.04: 4 % less error), gains positive where joining helps."""
    sweep = found.sweep
    return {
        "format": 1,
        "name": sweep.name,
        "question": sweep.question,
        "metric": sweep.metric,
        "headline": headline(found, value),
        "answer": answer(found, value, promises),
        "outcome": found.overall.outcome if found.overall else None,
        "best": found.best,
        "equal_in_practice": list(equal_in_practice(found.overall)) if found.overall else [],
        "contenders": list(found.contenders),
        "partitions": list(found.wheres),
        "epsilons": list(found.epsilons),
        "runs": {"done": len({r.run for r in sweep.done}), "not_done": len({r.run for r in sweep.others})},
        "overall": found.overall.to_dict() if found.overall else None,
        "cells": [_cell(cell) for cell in found.cells.values()],
        "fairness": [{"epsilon": epsilon, **asdict(fair)} for (_, epsilon), fair in found.fairness.items()],
        "beats_naive_from": {
            where or "all": {rule: _even(beats_naive_from(found, where, rule)) for rule in found.contenders}
            for where in found.wheres
        },
        "cost_of_privacy": [_cost(cost) for cost in costs(found)],
        "collaboration": value and _joining(value),
        "promises": [asdict(promise) for promise in promises],
        "tuned": sweep.tuning is not None,
        "unscored": sweep.unscored,
        "weak_references": weak_references(found),
        "notes": [*found.notes, *(value.notes if value else ())],
        "not_done": [
            {"run": r.run, "arm": r.arm, "seed": r.seed, "axes": dict(r.axes), "status": r.status, "error": r.error}
            for r in sweep.others
        ],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "partition": cell.where,
        "epsilon": cell.epsilon,
        "best": cell.best,
        "seeds": list(cell.trials.seeds),
        "clients": list(cell.trials.clients),
        "verdict": cell.verdict.to_dict() if cell.verdict else None,
        "against_naive": {rule: _change(gain) for rule, gain in cell.gains.items()},
    }


def _change(pair: Paired) -> dict[str, float]:
    mean, low, high = pair.change
    return {"change": mean, "low": low, "high": high, "p": pair.p}


def _even(even: BreakEven | None) -> dict[str, Any] | None:
    if even is None:
        return None
    return {
        "epsilon": None if math.isinf(even.epsilon) else even.epsilon,
        "within_range": even.within,
        "none_in_range": math.isinf(even.epsilon),
        "low": even.least,
        "high": even.most,
        "words": even.words(),
    }


def _cost(cost: Cost) -> dict[str, Any]:
    return {
        "partition": cost.where,
        "contender": cost.contender,
        "against": cost.twin,
        "against_differs_in": list(cost.other),
        "epsilons": [{"epsilon": epsilon, **_change(pair)} for epsilon, pair in cost.points.items()],
        "near_from": _even(cost.near),
    }


def _joining(value: Collaboration) -> dict[str, Any]:
    return {
        "alternative": WORDS[value.alternative],
        "clients": list(value.clients),
        "gain": [_at(at) for at in value.joining],
        "gain_same_promise": [_at(at) for at in value.same_promise],
        "break_even": _even(value.overall),
        "break_even_by_client": {client: _even(even) for client, even in value.by_client.items()},
        "federation_against": [
            {"setting": WORDS[setting], "epsilon": epsilon, **_change(pair)}
            for (setting, epsilon), pair in value.price.items()
        ],
        "leave_one_out": _contributions(value.left_out),
        "shapley": _contributions(value.shapley),
    }


def _at(at: AtEpsilon) -> dict[str, Any]:
    mean, low, high = at.gain
    return {
        "epsilon": at.epsilon,
        "mean": mean,
        "low": low,
        "high": high,
        "p": at.mean.p,
        "clients": [asdict(gain) for gain in at.clients],
    }


def _contributions(by_epsilon: Mapping[float, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [{"epsilon": epsilon, "clients": [asdict(c) for c in found]} for epsilon, found in by_epsilon.items()]
