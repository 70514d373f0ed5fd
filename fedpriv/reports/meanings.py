"""The glossary at the end of the page: only terms that the page uses."""

from __future__ import annotations

from fedpriv.reports.tables import RunView

_PRIVATE = (
    (
        "Epsilon and delta",
        "Whatever an observer believed about one unit before, seeing everything the client sent multiplies the odds by "
        "at most e^epsilon, except with probability delta. Epsilon 1 is strong; epsilon 8 for one reading is moderate; "
        "above about 20 the promise says little. An epsilon means nothing without its unit.",
    ),
    (
        "Unit: reading, day, week, meter",
        "What is hidden. A reading is one value of one meter; a day or week is that many consecutive values. Load is "
        "correlated in time: who knows the neighbours of a reading can guess it, so look at the day and week as well.",
    ),
    (
        "Committed and nominal",
        "Committed is booked for the whole contract before training and is the claim. Nominal is what the steps so far "
        "cost. If a run stops early the claim stays the committed one.",
    ),
    (
        "Noise multiplier, clipping rule, bound",
        "Each window's gradient is scaled to at most the bound; Gaussian noise of standard deviation noise multiplier "
        "x bound is added to the sum. The bound of PSASC-like rules is larger than C, and the noise follows it.",
    ),
    (
        "Random-phase tiling",
        "Each step draws an offset at random, cuts the calendar into disjoint windows there, and takes each with the "
        "sampling rate. A reading is in at most one window per step, which is what the accountant assumes.",
    ),
)
_ERRORS = (
    (
        "MSE, MAE, RMSE, CRPS",
        "Of scaled values: errors are divided by the standard deviation of the client's own training part, so that a "
        "large and a small utility count the same. CRPS judges the whole forecast distribution; for a single line it "
        "is the MAE. The scaling is used for scoring only, never for training.",
    ),
    ("nMAE", "The sum of absolute errors over the sum of absolute readings, in the unit of the data."),
    ("Coverage 90 %", "Share of held-out readings between the 5 % and 95 % quantiles of the forecast. 90 % is right."),
    (
        "Seasonal naive and last value",
        "Seasonal naive repeats what was read at the same time one season (one day, unless set otherwise) earlier; "
        "last value repeats the newest reading. A model that cannot beat them is not worth its privacy cost.",
    ),
    (
        "Linear interpolation",
        "For gaps only: the line between the readings before and after, with the band of a Brownian bridge.",
    ),
    (
        "Climatology",
        "The mean, and the spread, of the client's own training readings at the same time of day on working days or at "
        "weekends. Its table is made of private readings without noise: it exists inside the simulation only, as a "
        "yardstick, and no promise covers it.",
    ),
    (
        "Held-out part",
        "The calendar is cut into training, validation and test, in this order, with a gap of one window between them. "
        "Scores are computed in simulation only; a deployment would have to pay for publishing them.",
    ),
)


def meanings(view: RunView) -> list[tuple[str, str]]:
    """(term, text), privacy first when the run was private."""
    return [*(_PRIVATE if view.private else ()), *_ERRORS]
