"""What stands under the pictures of a sweep's page; only what each of them shows."""

from __future__ import annotations

from fedpriv.reports.comparison.analysis import Analysis, place_word
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.comparison.naming import WORDS
from fedpriv.reports.comparison.phrases import equal_in_practice
from fedpriv.reports.verdicts import MARGIN

_CHOICE = "Bold with ◆: the least error of its column, which need not be more than chance."
_REFERENCE = " The trusted curator is a reference, not an option for who does not hand over readings."


def captions(found: Analysis, value: Collaboration | None) -> dict[str, str]:
    """Picture -> caption."""
    parts = [
        *([f"{place_word(found)}s"] if len(found.wheres) > 1 else []),
        *(["epsilons"] if len(found.epsilons) > 1 else []),
    ]
    over = f"averaged over {' and '.join(parts)}" if parts else "mean over seeds and clients"
    out = {
        "differences": f"Dots: how much more error each one has than the one with the least, {over}. Lines: 95 % "
        "interval over seeds and clients. Filled orange: more error than chance explains, adjusted for the number of "
        "comparisons. Hollow grey: the data do not tell it from the best.",
        "cost": "How much more error the private model has than the same one without noise. Band: 95 % interval of the "
        "first line, over seeds and clients. Below the dotted line it is within 10 % of no noise.",
        "curve": "Error of the model against the seasonal naive forecast (0: as good as repeating the last day; below: "
        "better), geometric mean. Band: 95 % interval of the best, over seeds and clients. A line inside the band can "
        "still differ from the best beyond chance: the comparison pairs seeds and clients, the band does not.",
        "heat": "Error against seasonal naive; blue: less, orange: more; grey: the interval holds 0. " + _CHOICE,
        "ranks": "Mean rank over clients. A bar joins those that this test does not tell apart. It takes the seeds "
        "that were run as given, so it is a description; the answer above counts seeds as chance.",
        "clients": "Each client's error against its own seasonal naive forecast, geometric mean over seeds. Every "
        "picture has its own axis" + ("." if len(found.epsilons) > 1 else ", which does not begin at 0."),
    }
    if found.overall is not None and equal_in_practice(found.overall):
        out["differences"] += f" Shaded: less than {MARGIN * 100:g} % more, too little to choose by."
    if found.sweep.question == "collaboration":
        out["differences"] += _REFERENCE
        out["heat"] = out["heat"].replace(
            _CHOICE,
            "Bold with ◆: the least error of its column among what a client can "
            "choose (the trusted curator is a reference), which need not be more than chance.",
        )
    return out if value is None else out | _joining(value)


def _joining(value: Collaboration) -> dict[str, str]:
    last, name = value.joining[-1].epsilon, WORDS[value.alternative]
    ring = value.overall is not None and value.overall.within
    return {
        "joining": f"Change of error by joining, against “{name}”: left of 0 a client has less error in the "
        "federation. Lines: 95 % interval over seeds (of the mean: over seeds and clients); an arrow with a number "
        "goes on beyond the picture. Hollow grey: cannot be told from 0 once the number of clients is allowed for.",
        "joining-epsilon": f"Change of error by joining over epsilon. Below the line of “{name}” a client is "
        "better off in the federation. Grey lines may be chance."
        + (" The ring marks where the mean crosses it." if ring else ""),
        "settings": "Error in every setting against seasonal naive, geometric mean over seeds and clients.",
        "left-out": f"Leave-one-out at epsilon {last:g}: how the error of the others changes because this client takes "
        "part. Grey: the interval holds 0. It asks what a client adds when it joins last, the Shapley value what it "
        "adds on average over all orders of joining, so the two can differ: of two clients with the same to give, each "
        "alone can be spared.",
        "shapley": f"Shapley values at epsilon {last:g}: each client's share of the change of error of all clients; "
        "the shares add up to the whole. Grey: the interval holds 0.",
    }
