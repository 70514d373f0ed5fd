"""A sweep folder as tables: which runs there are, what is compared, where, and at which epsilon.

Every axis of a grid has a role on the page. `privacy.epsilon` is what errors are drawn against; axes of the data
(`partition.*`, `data.*`, `task.*`, and the promise other than its size) say *where* something holds; arms and all other
axes are what is *compared* (the contenders): clipping rules, parts of the model, strategies.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpriv.data.table import Frame
from fedpriv.errors import InputError
from fedpriv.reports.atomic import read_json
from fedpriv.reports.comparison.naming import WORDS, setting_of_arm
from fedpriv.reports.comparison.sweep_runs import DONE, EPSILON, SweepRun, read_results, read_runs

FEDERATED, NAIVE = "federated", "seasonal-naive"
QUESTIONS = ("clippers", "collaboration", "curve", "components", "free")
_WHERE = ("partition.", "data.", "task.")
_PROMISE = ("privacy.unit", "privacy.relation", "privacy.delta")
_SHORT = {
    "privacy.clipper": "", "model.kind": "", "partition.kind": "", "privacy.unit": "unit ", "partition.by": "by ",
    "optimizer.learning_rate": "lr ", "strategy.name": "", "model.modulation": "",
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A sweep folder, read once. Rows of runs that are not done are not used."""

    path: Path
    settings: Mapping[str, Any]
    runs: tuple[SweepRun, ...]
    frame: Frame = field(repr=False)
    tuning: Any = None

    @classmethod
    def open(cls, path: Path | str) -> Sweep:
        """Reads sweep.toml, runs.json, results.parquet and tuning.json.

        Raises:
            InputError: no sweep folder, or a damaged file in it.
        """
        path = Path(path)
        if not (path / "sweep.toml").is_file():
            kind = "is not a sweep folder (no sweep.toml in it)" if path.exists() else "does not exist"
            raise InputError(f"{path} {kind}; sweeps are written by `fedpriv compare`. Nothing was changed.")
        try:
            settings = tomllib.loads((path / "sweep.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path / 'sweep.toml'} cannot be read ({error}); nothing was changed.") from None
        runs = read_runs(path / "runs.json", settings)
        tuning = read_json(path / "tuning.json") or None
        return cls(path, settings, runs, read_results(path / "results.parquet", runs), tuning)

    @property
    def table(self) -> Mapping[str, Any]:
        """The [sweep] table of sweep.toml."""
        found = self.settings.get("sweep", {})
        return found if isinstance(found, Mapping) else {}

    @property
    def name(self) -> str:
        """What the sweep is called."""
        return str(self.table.get("name") or self.path.resolve().name)

    @property
    def question(self) -> str:
        """One of QUESTIONS."""
        found = str(self.table.get("question") or "free")
        return found if found in QUESTIONS else "free"

    @cached_property
    def metric(self) -> str:
        """The error that decides: what sweep.toml names, else mse, else the first there is."""
        known = list(dict.fromkeys(self.frame["metric"].astype(str)))
        wanted = str(self.table.get("metric") or "mse")
        return wanted if wanted in known or not known else "mse" if "mse" in known else known[0]

    @property
    def done(self) -> tuple[SweepRun, ...]:
        """Runs that came to their end."""
        return tuple(run for run in self.runs if run.status == DONE)

    @property
    def others(self) -> tuple[SweepRun, ...]:
        """Runs that failed, were refused or are not finished."""
        return tuple(run for run in self.runs if run.status != DONE)

    @cached_property
    def varying(self) -> tuple[str, ...]:
        """Axes with more than one value."""
        keys = dict.fromkeys(key for run in self.runs for key in run.axes)
        return tuple(key for key in keys if len({_key(run.axes.get(key)) for run in self.runs}) > 1)

    @property
    def where_axes(self) -> tuple[str, ...]:
        """Axes that say where something holds; an arm that sets them itself is a contender, not a place."""
        return tuple(key for key in self.varying if key.startswith(_WHERE) or key in _PROMISE)

    @property
    def contender_axes(self) -> tuple[str, ...]:
        """Axes whose values are compared."""
        skip = (EPSILON, *self.where_axes)
        return tuple(key for key in self.varying if key not in skip)

    @cached_property
    def _several_arms(self) -> bool:
        return len({run.arm for run in self.runs}) > 1

    def contender(self, run: SweepRun) -> str:
        """What is compared, as a name. Without privacy its rules mean nothing and are not in the name."""
        axes = [key for key in self.contender_axes if run.private or not key.startswith("privacy.")]
        parts = [self.arm_words(run)] if self._several_arms and run.arm else []
        parts += [axis_words(key, run.axes[key]) for key in axes if key in run.axes]
        if parts:
            return " · ".join(parts)
        return str(run.settings.get("privacy.clipper", FEDERATED)) if run.private else "no privacy"

    def arm_words(self, run: SweepRun) -> str:
        """What an arm is called: in a collaboration the setting that it stands for, else its own name."""
        known = self._arm_settings.get((run.arm, run.private)) if self.question == "collaboration" else None
        if known is None:
            return run.arm
        twins = {arm for (arm, _), name in self._arm_settings.items() if name == known}
        return known if len(twins) == 1 else f"{known} ({run.arm})"

    @cached_property
    def _arm_settings(self) -> dict[tuple[str, bool], str]:
        arms = {str(arm.get("name", "")): arm for arm in self.settings.get("arms") or []}
        found: dict[tuple[str, bool], str] = {}
        for run in self.runs:
            setting = setting_of_arm(arms.get(run.arm, {}), run.settings, private=run.private)
            if run.arm in arms and setting is not None:
                found[run.arm, run.private] = WORDS[setting]
        return found

    @property
    def thing(self) -> str:
        """What one of the compared is called in a sentence."""
        plain = "model" if self.contender_axes == ("model.kind",) and not self._several_arms else "contender"
        return {"clippers": "rule", "collaboration": "setting"}.get(self.question, plain)

    def where(self, run: SweepRun) -> str:
        """Under which partition (and task, unit ...), as a name; empty where there is only one."""
        return " · ".join(axis_words(key, run.axes[key]) for key in self.where_axes if key in run.axes)

    @cached_property
    def _dealings(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for run in self.done:
            settings = {k: v for k, v in run.settings.items() if k.startswith(("partition.", "data."))}
            found.setdefault(self.where(run), json.dumps(settings, sort_keys=True, default=str))
        return found

    def dealing(self, where: str) -> str:
        """How data were dealt out to clients at a place: the same text where clients of one name are the same."""
        return self._dealings.get(where, where)

    @cached_property
    def errors(self) -> Frame:
        """Rows of the deciding metric on the held-out part: run, arm, seed, client, model, value, where, contender,
        epsilon (NaN without privacy)."""
        return self.scores(self.metric)

    def scores(self, metric: str) -> Frame:
        """The same of any metric."""
        import numpy as np
        import pandas as pd

        frame = self.frame
        split = "test" if (frame["split"] == "test").any() or frame.empty else str(frame["split"].iloc[-1])
        chosen = frame[(frame["metric"] == metric) & (frame["split"] == split) & (frame["client"] != "")]
        chosen = chosen.drop_duplicates(["run", "client", "model"])[["run", "client", "model", "value"]]
        lines = pd.DataFrame(
            [
                (run.run, run.arm, run.seed, self.where(run), self.contender(run), np.nan if budget is None else budget)
                for run, budget in ((run, run.budget) for run in self.done)
            ],
            columns=["run", "arm", "seed", "where", "contender", "epsilon"],
        ).drop_duplicates()
        return lines.merge(chosen, on="run", how="inner")

    @cached_property
    def coalitions(self) -> frozenset[str]:
        """Runs in which some clients took part, but neither one alone nor all (leave-one-out, Shapley)."""
        model = self.errors[self.errors["model"] == FEDERATED]
        members = model.groupby("run", sort=False)["client"].nunique()
        most = int(members.max()) if len(members) else 0
        if self.question != "collaboration":
            return frozenset()
        return frozenset(str(run) for run, count in members.items() if 1 < count < most)

    @cached_property
    def unscored(self) -> dict[str, list[str]]:
        """Place -> clients that took part in runs but have no score of the model: no usable window is held out."""
        done = {run.run: self.where(run) for run in self.done if run.settings.get("partition.kind") != "pooled"}
        everyone = self.frame[self.frame["run"].isin(list(done)) & (self.frame["client"] != "")]
        scored = set(zip(self.errors["where"], self.errors["client"], strict=True))
        found: dict[str, list[str]] = {}
        for run, client in everyone[["run", "client"]].drop_duplicates().itertuples(index=False):
            names = found.setdefault(done[run], [])
            if (done[run], client) not in scored and client not in names:
                names.append(client)
        return {where: sorted(names) for where, names in found.items() if names}

    @property
    def partial_arms(self) -> tuple[str, ...]:
        """Arms of leave-one-out and of coalitions: they serve the contributions and are compared with nothing."""
        arms = self.settings.get("arms") or []
        return tuple(str(arm.get("name")) for arm in arms if arm.get("leave_one_out") or arm.get("coalitions"))

    @cached_property
    def labels(self) -> dict[str, dict[str, Any]]:
        """label.json of every finished private run that has one."""
        private = {run.run: run for run in self.done if run.private}
        found = {name: read_json(self.folder(run) / "label.json") for name, run in private.items()}
        return {name: label for name, label in found.items() if label}

    def folder(self, run: SweepRun) -> Path:
        """Its run folder."""
        return self.path / "runs" / run.run


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def axis_words(key: str, value: object) -> str:
    """An axis value as a person says it: `psac`, `alpha 0.1`."""
    shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value_words(value)
    return f"{_SHORT.get(key, key.rpartition('.')[2].replace('_', ' ') + ' ')}{shown}"


def value_words(value: object) -> str:
    """A setting's value as text."""
    if value is None or value == "" or value == {}:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
