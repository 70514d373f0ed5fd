"""calibrate-bounds: bounds of the DP-aware modulation, from synthetic data."""

from __future__ import annotations

from typing import Annotated

import typer

from fedpriv.cli import state
from fedpriv.cli.options import Json, ScenarioArgument, Set

HELP = """Finds bounds for the DP-aware modulation on synthetic series.

Trains the scenario's transformer without bounds and without privacy on generated series, measures how large its
condition, scales, shifts and gates get, and prints the keys to set. Sources with real readings are refused: bounds
taken from them would be a release that no budget paid for.

\b
Examples:
  fedpriv calibrate-bounds
  fedpriv calibrate-bounds dp-aware-cpu --synthetic --steps 400
"""


def calibrate_bounds(
    scenario: ScenarioArgument = None,
    changes: Set = None,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps before the measurement.")] = 200,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Put generated series in the place of the scenario's own data.")
    ] = False,
    quantile: Annotated[float, typer.Option(min=0.5, max=1.0, help="Quantile of the sizes.")] = 0.99,
    as_json: Json = False,
) -> None:
    """Prints the reference bounds and what they project."""
    from fedpriv.calibration import calibrate_bounds as calibrate
    from fedpriv.config import Scenario, parse_assignments
    from fedpriv.models.modulation import TIGHTNESS
    from simulations.scenarios import load

    chosen = load(scenario).override(parse_assignments(changes or []))
    if synthetic:
        fresh = Scenario().nested()
        chosen = chosen.override({"data": fresh["data"], "partition": fresh["partition"]})
    found = calibrate(chosen, steps=steps, quantile=quantile)
    if as_json:
        state.emit({"keys": found.keys(), "projected": list(found.projected), "steps": found.steps})
        return
    from fedpriv.cli.text import table

    state.say(f"Sizes after {found.steps} steps on synthetic series, quantile {found.quantile:g}:\n")
    rows = [(key, *(f"{value * factor:.3g}" for factor in TIGHTNESS.values())) for key, value in found.keys().items()]
    state.say(table(("key", *TIGHTNESS), rows))
    shares = ", ".join(f"{share:.1%}" for share in found.projected)
    state.say(f"\nConditions longer than model.c_max, from clean to noisy diffusion times: {shares}.")
    words = " ".join(f"--set {key}={value:g}" for key, value in found.keys().items())
    state.say(f"To use them: --set model.modulation=dp-aware {words}")
