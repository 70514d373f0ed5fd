"""Differential privacy: units, samplers, clippers, gradient engines, mechanism, accounting, ledger, audit.

    from fedpriv.privacy import make_clipper
    clipper = make_clipper("psasc", bound=1.0, r=0.1, s=0.5)

Names load with their first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpriv.privacy.clippers import CLIPPERS, Clipper, make_clipper
    from fedpriv.privacy.engines import make_engine
    from fedpriv.privacy.engines.base import ClippedSum, GradientEngine, LossFn
    from fedpriv.privacy.filters import FILTERS
    from fedpriv.privacy.iterate_rules import GRADIENT_RULES
    from fedpriv.privacy.mechanism import Mechanism, Released
    from fedpriv.privacy.optimizers import make_optimizer
    from fedpriv.privacy.recipe import CONTROLLERS, Recipe, make_rules

__all__ = [
    "CLIPPERS",
    "CONTROLLERS",
    "FILTERS",
    "GRADIENT_RULES",
    "ClippedSum",
    "Clipper",
    "GradientEngine",
    "LossFn",
    "Mechanism",
    "Recipe",
    "Released",
    "make_clipper",
    "make_engine",
    "make_optimizer",
    "make_rules",
]

_HOME = {
    "CLIPPERS": "clippers",
    "CONTROLLERS": "recipe",
    "FILTERS": "filters",
    "GRADIENT_RULES": "iterate_rules",
    "Clipper": "clippers",
    "make_clipper": "clippers",
    "ClippedSum": "engines.base",
    "GradientEngine": "engines.base",
    "LossFn": "engines.base",
    "make_engine": "engines",
    "Mechanism": "mechanism",
    "Released": "mechanism",
    "make_optimizer": "optimizers",
    "Recipe": "recipe",
    "make_rules": "recipe",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
