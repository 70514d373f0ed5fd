"""The glossary at the end of a sweep's page."""

from __future__ import annotations

from fedpriv.reports.comparison.analysis import Analysis
from fedpriv.reports.comparison.collaboration import Collaboration
from fedpriv.reports.tables import METRICS

PARTITIONS = {
    "natural": "every utility (or what the data call a client) is one client.",
    "iid": "the same data dealt out anew at random (in blocks of time, or series by series where there are two or more "
    "for each client), so that clients differ by chance only.",
    "dirichlet": "the same data dealt out anew and unevenly: shares of each kind of mean day (or season) are drawn "
    "from a Dirichlet distribution, so that a client may hold mostly one kind; the smaller alpha, the more.",
    "quantity": "the same data dealt out at random in very different amounts: a client's share follows a power law.",
    "temporal": "clients hold different years.",
}
RULES = {
    "flat": "a sample's gradient that is longer than a fixed bound is cut down to it.",
    "auto-s": "every sample's gradient is brought to nearly the bound, short ones too.",
    "psac": "like auto-s, but very short gradients are left shorter.",
    "nsgd": "every sample's gradient is divided by its length plus a constant.",
    "auto-v": "every sample's gradient is brought to exactly the bound, however short it was.",
    "psasc": "like psac, with a momentum of each sample's own.",
    "quantile": "like flat, with a bound that follows a quantile of the gradients' lengths, found privately.",
    "global-adapt-v2s": "all gradients are scaled down alike, and those still longer than the bound are cut.",
}
MODELS = {
    "ridge": "a linear forecast fitted in closed form from one round of noised sums.",
    "gaussian": "the conditional mean of a normal law fitted from one round of noised sums.",
    "diffusion": "the diffusion model: by default it starts from such a closed-form model and is trained in rounds.",
}
MEASURES = {
    "mse": "mean squared error in squared units of each client's own spread (standard deviation of its training part): "
    "about 1 for always forecasting the mean.",
    "mae": "mean absolute error, in the same units (not squared).",
    "rmse": "square root of the MSE.",
    "nmae": "sum of absolute errors / sum of the true load, in physical units.",
    "crps": "continuous ranked probability score: judges the whole forecast distribution; in the units of the MAE.",
    "coverage90": "share of what came true that lies in the 90 % band of the forecast; it should be 90 %.",
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
        "clients are crossed, so neither alone is taken for the number of repetitions: few seeds give wide "
        "intervals, and should.",
    ),
    (
        "p, adjusted (Holm)",
        "How often a difference this large would come up somewhere among all comparisons if nothing differed at all. "
        "Below 0.05 is called a difference. All pairs are counted (Holm's step-down correction), because the best is "
        "picked from the same data.",
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
        "Losers, largest error, largest loss, Gini",
        "A good mean can hide clients who lose. Losers: share of clients with more error than their own seasonal naive "
        "forecast. Gini: 0 where all clients have the same error, towards 1 where few have nearly all of it.",
    ),
    (
        "Reading, meter, budget, committed",
        "A reading is one value of one meter at one step; a meter is one series with all its readings, such as the "
        "load of a whole utility: then nothing is said of its customers. Budget is the epsilon that a run was given; "
        "committed is what its clients claim for the whole run, never above the budget. “No finite one”: for so large "
        "a unit nothing can be promised.",
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
        "Error by joining",
        "Error in the private federation / error when the client trains alone − 1; minus: joining helps. “Alone, no "
        "privacy” is what a client can do without publishing anything; “alone, private” is what it would have to do if "
        "it published its model.",
    ),
    (
        "Break-even epsilon",
        "From which epsilon on joining has no more error, interpolated between the epsilons that were run (linear in "
        "log epsilon); in brackets the same for both ends of the interval.",
    ),
    (
        "Trusted curator",
        "All readings in one place, noise added once: not an option for utilities that do not share readings, but the "
        "limit of what collaboration could give at this epsilon.",
    ),
    (
        "Contribution, Shapley value",
        "Leave-one-out: what the others lose without a client. Shapley: the mean of what a client adds, over the "
        "orders in which the clients could join; in log error in % (5 %: about 5 % error).",
    ),
)


def meanings(found: Analysis, value: Collaboration | None) -> list[tuple[str, str]]:
    """(term, text) of what the page uses."""
    kinds = {str(run.settings.get("partition.kind", "natural")) for run in found.sweep.done}
    metrics = set(found.sweep.frame["metric"])
    models = {str(run.settings.get("model.kind", "diffusion")) for run in found.sweep.done}
    rules = {str(run.settings["privacy.clipper"]) for run in found.sweep.done if "privacy.clipper" in run.settings}
    shares = value is not None and bool(value.left_out or value.shapley)
    joining = _JOINING if shares else _JOINING[:-1]
    return [
        *(joining if value is not None else ()),
        *_COMMON,
        *((f"Partition: {kind}", text) for kind, text in PARTITIONS.items() if kind in kinds and len(found.wheres) > 1),
        *((f"Model: {name}", text) for name, text in MODELS.items() if name in models and len(models) > 1),
        *((f"Clipping rule: {name}", text) for name, text in RULES.items() if name in rules),
        *((METRICS[name], text) for name, text in MEASURES.items() if name in metrics),
    ]
