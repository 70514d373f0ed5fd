"""How learning rates were chosen: in words, and as a table of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedpriv.reports.cells import Cell, Grid, Head
from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.cells import Titled
from fedpriv.reports.comparison.sweep import axis_words, value_words
from fedpriv.reports.numbers import at_most, number
from fedpriv.reports.tables import METRICS


def tuning_words(found: Analysis) -> str:
    """On what, with how many trials, and what it would have cost on the clients' own readings."""
    tuning = found.sweep.tuning
    if not tuning:
        return (
            f"Nothing was tuned in this sweep: every {found.sweep.thing} ran with the learning rate of the settings or "
            "with the public rule of the library, which knows noise, batch and model size and no data. One that wants "
            "another rate is at a disadvantage here."
        )
    where = _of_tuning(found, "scenario") or "data other than the clients' own"
    public = {"synthetic": "generated utilities", "": "other data"}
    source = str(_of_tuning(found, "source") or "")
    on = f"{public.get(source, f'public data ({source})')} (scenario {value_words(where)})"
    trials = _of_tuning(found, "trials_per_rule")
    many = f" by {trials} trials each" if trials not in (None, "", 0) else " by the same number of trials for each"
    return (
        f"Chosen for every {found.sweep.thing} on {on}{many}, never on readings of the clients here, so it costs them "
        f"no privacy. {_price(tuning.get('private_cost'), found.sweep.thing)}"
    )


def _price(cost: object, thing: str) -> str:
    """What the trials would have cost on the clients' own readings; composed exactly where the sweep did so."""
    paid = "Tuning on the clients' own readings would have to be paid for:"
    found = cost if isinstance(cost, Mapping) else {}
    one, total, run = (found.get(f"epsilon_{of}") for of in ("one_rule", "all_rules", "of_a_run"))
    if not (isinstance(one, float) and isinstance(total, float) and isinstance(run, float)):
        return f"{paid} k tries at epsilon e cost up to k times e by plain composition."
    return (
        f"{paid} epsilon {at_most(one)} for the trials of one {thing} and {at_most(total)} for all of them, for one "
        f"{found.get('unit', 'unit')}, where a run costs {at_most(run)}. Choosing by scores on "
        "those readings would come on top."
    )


def _of_tuning(found: Analysis, key: str) -> Any:
    for source in (found.sweep.tuning, found.sweep.settings.get("tuning")):
        if isinstance(source, Mapping) and source.get(key) not in (None, ""):
            return source[key]
    return None


def tuning_tables(found: Analysis) -> list[Titled]:
    """Every contender with the score of each of its trials, and what was chosen."""
    tuning = found.sweep.tuning
    rows = [row for row in tuning.get("rules") or [] if isinstance(row, Mapping)] if isinstance(tuning, Mapping) else []
    if not rows:
        return []
    tried = list(dict.fromkeys(_setting(t.get("settings")) for row in rows for t in row.get("trials") or []))
    metric = METRICS.get(str(_of_tuning(found, "metric")), "error")
    arms, plain = any(row.get("arm") for row in rows), any(row.get("private") is False for row in rows)
    heads = [
        *([Head("arm")] if arms else []),
        Head(found.sweep.thing.capitalize()),
        *([Head("privacy")] if plain else []),
        *(Head(text, f"{metric} of this trial") for text in tried),
        Head("chosen"),
        Head("at the edge", "whether the best trial was the first or the last: a wider range might do better"),
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        scores = {_setting(t.get("settings")): t.get("score") for t in row.get("trials") or []}
        chosen = _setting(row.get("chosen"))
        cells.append(
            [
                *([Cell(str(row.get("arm") or "–"))] if arms else []),
                Cell(" · ".join(axis_words(k, v) for k, v in (row.get("axes") or {}).items()) or "all"),
                *([Cell("yes" if row.get("private", True) else "no")] if plain else []),
                *(_score(scores.get(text), text == chosen) for text in tried),
                Cell(chosen or "–"),
                Cell("yes" if row.get("at_edge") else "no", None, "bad" if row.get("at_edge") else ""),
            ]
        )
    text = f"{metric} of each trial there; learning rates are in units of the bound, as factors of the library's rule."
    return [Titled("", Grid(heads, cells), text)]


def _setting(found: object) -> str:
    """`factor 2` of {"optimizer.learning_rate_factor": 2.0}."""
    if not isinstance(found, Mapping):
        return ""
    names = {"optimizer.learning_rate_factor": "factor", "optimizer.learning_rate": "rate"}
    return ", ".join(f"{names.get(str(k), str(k))} {value_words(v)}" for k, v in found.items())


def _score(value: object, chosen: bool) -> Cell:
    if not isinstance(value, int | float):
        return Cell("–")
    return Cell(number(float(value)), float(value), "good" if chosen else "")
