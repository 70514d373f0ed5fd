"""What resolving and checking a combination gave, remembered beside the sweep: a resumed one plans in a moment.

Filling in noise and learning rates needs accountants, data sizes and a model; the answer is the same as long as the
code, the libraries and the data files are. What is kept are the settings that were filled in, by scenario and by what
tuning chose; a scenario that is not found is resolved and checked as if there were no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpriv.config import Scenario
from fedpriv.data.clients import files, load_client, roster
from fedpriv.errors import InputError
from fedpriv.provenance import source_digest
from fedpriv.reports.atomic import read_json, write_json
from fedpriv.reports.folder import versions
from fedpriv.training import LocalWorker
from simulations.launch import prepare
from strategies.aggregation import make_strategy

FACTOR = "optimizer.learning_rate_factor"
"""Not a scenario key: among tuned settings, what the public rule's learning rate is multiplied by."""
_PROMISE = (
    "unit",
    "relation",
    "epsilon",
    "delta",
    "noise_multiplier",
    "accountant",
    "noise",
    "clipper",
    "clipper_options",
    "controller",
    "controller_options",
    "gradient_rule",
    "gradient_rule_options",
    "filter",
    "filter_options",
    "normalize_by_bound",
    "release_count",
    "release_metrics",
    "metrics_cap",
)
"""Keys of `privacy` that a run without privacy never reads."""
_UNUSED = {"run.out": "unused"}


class Resolver:
    """Resolves and checks combinations; use one for all plans of a sweep.

    Args:
        path: file to remember in (`save`), read now if it is there and of this very code; None: only in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._loaded: set[str] = set()  # data that were loaded before
        self._stamps: dict[str, str] = {}
        self._context = {"source": source_digest(), "versions": versions()}
        self.answered = self.worked_out = 0
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            found = read_json(path)
        except InputError:  # damaged: worked out again
            return
        known = found.get("resolved")
        if found.get("context") == self._context and isinstance(known, dict):
            self._known = {str(key): dict(value) for key, value in known.items() if isinstance(value, dict)}

    def save(self, path: Path) -> None:
        """Writes what is known, if that has grown."""
        if not self.worked_out and path.is_file():
            return
        write_json(path, {"format": 1, "context": self._context, "resolved": self._known})

    def __call__(self, scenario: Scenario, chosen: Mapping[str, Any]) -> Scenario:
        """The scenario with noise, learning rate and what tuning chose; checked as far as that goes without training.

        Raises:
            InputError: it cannot be run.
        """
        key = self._key(scenario, chosen)
        known = self._known.get(key)
        if known is not None:
            self.answered += 1
            return scenario.override(known)
        self.worked_out += 1
        ready = resolved(scenario, chosen)
        self._check(ready)
        before = scenario.flat()
        changes = {k: v for k, v in ready.flat().items() if k != "run.out" and before.get(k) != v}
        if scenario.override(changes).digest() == ready.digest():  # all that a digest holds is in the changes
            self._known[key] = changes
        return ready

    def _key(self, scenario: Scenario, chosen: Mapping[str, Any]) -> str:
        data = hashlib.sha256(_parts(scenario, "data", "partition").encode())
        stamp = self._stamps.setdefault(data.hexdigest(), _stamp(scenario))
        said = [scenario.digest(), scenario.run.device, scenario.run.tracking, stamp, dict(chosen)]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def _check(self, scenario: Scenario) -> None:
        """Builds model, rules and strategy, and loads the data."""
        make_strategy(scenario.strategy)
        key = _parts(scenario, "data", "partition", "task")
        if key not in self._loaded:
            for name in roster(scenario).names:
                load_client(scenario, name)
            self._loaded.add(key)
        LocalWorker(scenario)


def canonical(scenario: Scenario) -> Scenario:
    """A run without privacy with the defaults of all that only a private one reads: the same result, one digest."""
    if scenario.privacy.enabled:
        return scenario
    default = Scenario().privacy.model_dump(mode="json")
    return scenario.override({f"privacy.{key}": default[key] for key in _PROMISE})


def resolved(scenario: Scenario, chosen: Mapping[str, Any]) -> Scenario:
    """Noise multiplier and learning rate filled in (they depend on no seed), with what tuning chose."""
    factor = float(chosen.get(FACTOR, 1.0))
    stated = scenario.optimizer.learning_rate is not None
    scenario = canonical(scenario.override({key: value for key, value in chosen.items() if key != FACTOR}))
    scenario = prepare(scenario, _UNUSED)
    rate = scenario.optimizer.learning_rate
    if rate is not None and factor != 1.0 and not stated:
        scenario = scenario.override({"optimizer.learning_rate": float(f"{rate * factor:.6g}")})
    return scenario


def _parts(scenario: Scenario, *names: str) -> str:
    return json.dumps([getattr(scenario, name).model_dump(mode="json") for name in names], sort_keys=True)


def _stamp(scenario: Scenario) -> str:
    """Sizes and times of the data files."""
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files(scenario)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
