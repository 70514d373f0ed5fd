"""A sweep with a planted winner."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpriv.reports.comparison import write_comparison
from tests.unit.comparison.simulated import UTILITIES, clippers, with_examples


@pytest.fixture(scope="module")
def clipper_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """psac is planted as the winner, nsgd as bad; one run failed and one was refused. Written up."""
    made = clippers(gains={"flat": 0.0, "auto-s": -0.02, "psac": -0.15, "nsgd": 0.2})
    naive = dict.fromkeys(UTILITIES, 0.2)
    axes = {"privacy.clipper": "nsgd", "privacy.epsilon": 1.0, "partition.kind": "natural"}
    made.run({}, naive=naive, axes=axes, seed=4, status="failed", error="the model is not finite after round 7")
    made.run({}, naive=naive, axes=axes, seed=5, status="refused", error="the budget is spent")
    path = with_examples(made.write(tmp_path_factory.mktemp("clippers") / "sweep"))
    write_comparison(path)
    return path
