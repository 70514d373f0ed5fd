"""fedpriv: federated, differentially private diffusion models for power time series.

    import fedpriv
    run = fedpriv.simulate("eia-8", {"privacy.epsilon": 8.0})
    run.metrics, run.label, run.forecast(table)

Importing this package is cheap; the heavy libraries load with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "Scenario", "__version__", "simulate"]

if TYPE_CHECKING:
    from fedpriv.config import Scenario
    from simulations.launch import Run, simulate


def __getattr__(name: str) -> Any:
    if name == "simulate":
        from simulations.launch import simulate

        return simulate
    if name == "Run":
        from simulations.launch import Run

        return Run
    if name == "Scenario":
        from fedpriv.config import Scenario

        return Scenario
    raise AttributeError(f"module 'fedpriv' has no attribute {name!r}")
