"""The glossary at the end of a sweep's page, and the captions of its pictures."""

from __future__ import annotations

from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.collaboration import Collaboration

CAPTIONS = {
    "differences": "Dots: how much more error each one has than the one with the least, averaged over everything. "
    "Lines: 95 % interval over seeds and clients. Filled orange: more error than "
    "chance explains, adjusted for the number of comparisons. Hollow grey: the data do not tell it from the best.",
    "curve": "Error of the model against the seasonal naive forecast (0: as good as repeating the last day; below: "
    "better). Band: 95 % interval of the best, over seeds and clients. A line inside the band can still differ from "
    "the best beyond chance: the comparison pairs seeds and clients, the band does not.",
    "heat": "Error against seasonal naive; blue: less, orange: more. Bold with ◆: the least error of its column, which "
    "need not be more than chance.",
    "ranks": "Mean rank over clients, errors averaged over seeds, partitions and epsilons. A bar joins those that this "
    "test does not tell apart. It takes the seeds that were run as given, so it is a description; the answer above "
    "counts seeds as chance.",
    "clients": "Each client's error against its own seasonal naive forecast, mean over seeds.",
    "joining": "Gain of joining for each client: dots right of 0 have less error in the federation than alone. Lines: "
    "95 % interval over seeds (of the mean: over seeds and clients). Hollow grey: cannot be "
    "told from 0 once the number of clients is allowed for.",
    "joining-epsilon": "Gain of joining over epsilon. Above the dashed line the client is better off in the "
    "federation. The ring marks where the mean crosses it.",
    "settings": "Mean error of all clients in every setting, against seasonal naive.",
    "left-out": "How much more error the other clients have when this one is left out; negative: they are better off.",
    "shapley": "Each client's share of the gain of all clients together; the shares add up to the whole gain.",
}

_COMMON = (
    (
        "Error against seasonal naive",
        "Every client's error is divided by the error of its own seasonal naive forecast (what was read at the same "
        "time of the last day), and averaged over clients as a geometric mean: every client counts the same, "
        "whatever its size. −10 % means a tenth less error than doing nothing clever.",
    ),
    (
        "95 % interval",
        "Where the number would lie with other seeds and other clients of the same kind, 19 times out of 20. Seeds and "
        "clients are crossed, so neither alone is taken for the number of repetitions: three seeds give wide "
        "intervals, and should.",
    ),
    (
        "p, adjusted (Holm)",
        "How often a difference this large would come up somewhere among all comparisons if nothing differed at all. "
        "Below 0.05 is called a difference. All pairs are counted, because the best is picked from the same data.",
    ),
    (
        "No evidence of a difference",
        "Not the same as equal: differences inside the interval would go unnoticed with so many seeds and clients.",
    ),
    (
        "Cliff's delta",
        "The difference against the spread between clients, from −1 (every client's error is below every client's of "
        "the other) to 1. Small differences can be certain, and certain differences small.",
    ),
    (
        "Friedman test, critical difference",
        "Ranks the contenders within each client and asks whether mean ranks differ more than chance would make them "
        "(Demsar 2006). Ranks ignore by how much.",
    ),
    (
        "Losers, worst client, Gini",
        "A good mean can hide clients who lose. Losers: share of clients with more error than their own seasonal naive "
        "forecast. Gini: 0 where all clients have the same error, towards 1 where few have nearly all of it.",
    ),
    (
        "Epsilon and its unit",
        "The promise to every client: seeing everything it sends changes the odds about one unit (a reading, a day) by "
        "a factor of e^epsilon at most, but for a chance of delta. Less is more private. An epsilon means nothing "
        "without its unit: see the ladder.",
    ),
)
_JOINING = (
    (
        "Gain of joining",
        "1 − error in the private federation / error when the client trains alone. Alone without privacy is what a "
        "client can do without publishing anything; alone under the same promise is what it would have to do if it "
        "published its model.",
    ),
    (
        "Break-even epsilon",
        "From which epsilon on the gain is not negative, interpolated between the epsilons that were run (linear in "
        "log epsilon); in brackets the same for both ends of the interval.",
    ),
    (
        "One trusted curator",
        "All readings in one place, noise added once: not an option for utilities that do not share readings, but the "
        "limit of what collaboration could give at this epsilon.",
    ),
    (
        "Contribution, Shapley value",
        "Leave-one-out: what the others lose without a client. Shapley: the mean of what a client adds, over the "
        "orders in which the clients could join; in log error (0.05: about 5 %).",
    ),
)


def meanings(found: Analysis, value: Collaboration | None) -> list[tuple[str, str]]:
    """(term, text) of what the page uses."""
    return [*(_JOINING if value is not None else ()), *_COMMON]
