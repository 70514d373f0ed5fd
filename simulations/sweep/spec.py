"""The sweep file: what is varied, what stays, which seeds; unknown keys are refused with the nearest known one.

```toml
[sweep]
name = "clippers"
base = "eia-8"                      # a scenario's name or file; or a whole scenario in [base]
seeds = 3                           # 1, 2, 3; or a list
question = "clippers"

[set]                               # the same for every run
"federation.rounds" = 150

[grid]                              # every combination is run
"privacy.clipper" = ["flat", "auto-s", "psac"]
"privacy.epsilon" = [1, 8, inf]     # inf: without privacy
"task.horizon" = [24, { label = "half a day", set = { "task.horizon" = 12, "task.context" = 180 } }]

[[arms]]                            # and every arm; each_client: one run per client, with its own data alone
name = "alone"
each_client = true                  # or leave_one_out = true; or coalitions = 20: orders of joining, for Shapley values

[quick]                             # what `--quick` changes
seeds = 1
set = { "federation.rounds" = 40 }
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from fedpriv.config import Scenario
from fedpriv.errors import InputError
from simulations import scenarios
from simulations.sweep.axes import axes_of, listed
from simulations.sweep.messages import problems, require_known
from simulations.sweep.sections import MODEL, Arm, Axis, Head, Quick, Settings, Tuning, dotted


class Spec(BaseModel):
    """A sweep file as it was read; `axes` is the grid with its values spelled out."""

    model_config = MODEL

    sweep: Head
    base: dict[str, Any] = {}
    set: Settings = {}
    grid: dict[str, Any] = {}
    arms: tuple[Arm, ...] = ()
    tuning: Tuning | None = None
    quick: Quick = Quick()
    directory: str = Field("", exclude=True, description="where relative paths of the file begin")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.base and self.sweep.base:
            raise ValueError(f"the base is named in [sweep] ({self.sweep.base}) and spelled out in [base]; keep one")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms have one name among {', '.join(names)}")
        if len(set(self.sweep.seeds)) < len(self.sweep.seeds):
            raise ValueError("a seed is named twice")
        return self

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The grid; an empty one has no axis and one point.

        Raises:
            InputError: a value of the grid that is not a setting.
        """
        return axes_of(self.grid)

    # ---- reading ------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, path: Path) -> Spec:
        """A sweep file.

        Raises:
            InputError: no such file, not TOML, an unknown key, or a value out of range.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"sweep file {path} cannot be read ({error}); nothing was started.") from None
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"sweep file {path} is not valid TOML: {error}. Nothing was started.") from None
        return cls.make(content, directory=path.resolve().parent)

    @classmethod
    def make(cls, content: Mapping[str, Any], *, directory: Path | None = None) -> Spec:
        """From nested plain values.

        Raises:
            InputError: an unknown key (the nearest is named), or a value out of range.
        """
        try:
            spec = cls.model_validate({**content, "directory": str(directory or "")})
        except ValidationError as error:
            said = "; ".join(problems(cls, error))
            raise InputError(f"the sweep is not valid: {said}; nothing was started.") from None
        spec.check()
        return spec

    def check(self) -> None:
        """Keys and conflicts.

        Raises:
            InputError: an unknown scenario key, one that the sweep sets itself, or one that is set twice.
        """
        named = {"set": dict(self.set), **{f"arm {arm.name}": dict(arm.set) for arm in self.arms}}
        axes = {axis.key: [setting for point in axis.values for setting in point.set] for axis in self.axes}
        for where, keys in {**{k: list(v) for k, v in named.items()}, **axes}.items():
            for key in keys:
                require_known(key, where)
        if self.tuning is not None:
            for key in [*self.tuning.set, *(k for sets in self.tuning.options.values() for one in sets for k in one)]:
                require_known(key, "tuning")
        varied = {setting: key for key, settings in axes.items() for setting in settings}
        for where, keys in named.items():
            for key in keys:
                if key in varied:
                    raise InputError(
                        f"{key} is set in {where} and varied by the axis {varied[key]}: one would silently replace the "
                        f"other. Change the axis instead (--set grid.{varied[key]}=...). Nothing was started."
                    )

    def override(self, changes: Mapping[str, Any]) -> Spec:
        """With changes: `sweep.KEY`, `grid.KEY` and `tuning.KEY` of the sweep, all others of the scenario ([set])."""
        content = self.nested()
        for key, value in changes.items():
            section, _, rest = key.partition(".")
            if section == "grid":
                content["grid"] = dotted(content["grid"]) | {rest: listed(value)}
            elif section in ("sweep", "tuning"):
                content[section] = {**(content.get(section) or {}), rest: value}
            else:
                content["set"] = {**content["set"], key: value}
        return Spec.make(content, directory=Path(self.directory) if self.directory else None)

    def quicker(self) -> Spec:
        """The version of [quick].

        Raises:
            InputError: the sweep has none.
        """
        quick = self.quick
        if quick == Quick():
            raise InputError(f"the sweep {self.sweep.name} has no section [quick]; nothing was started.")
        content = self.nested() | {"quick": {}}
        head = content["sweep"]
        head["name"] = f"{head['name']}-quick"
        if head["about"]:
            head["about"] = f"The short version of this study: {head['about'].strip()}"
        if quick.seeds is not None:
            head["seeds"] = list(quick.seeds)
        if quick.sample is not None:
            head["sample"] = quick.sample
        content["set"] = {**content["set"], **quick.set}
        content["grid"] = dotted(content["grid"]) | dotted(quick.grid)
        if quick.arms is not None:
            unknown = set(quick.arms) - {arm.name for arm in self.arms}
            if unknown:
                raise InputError(f"[quick] names arms that there are not: {', '.join(sorted(unknown))}.")
            content["arms"] = [arm for arm in content["arms"] if arm["name"] in quick.arms]
        if quick.tuning is not None:
            content["tuning"] = {**(content.get("tuning") or {}), **quick.tuning} if quick.tuning else None
        return Spec.make(content, directory=Path(self.directory) if self.directory else None)

    # ---- writing ------------------------------------------------------------------------------

    def scenario(self) -> Scenario:
        """The base scenario with what is set for all.

        Raises:
            InputError: no such scenario, or a value out of range.
        """
        return (Scenario().override(self.base) if self.base else self._named_base()).override(self.set)

    def _named_base(self) -> Scenario:
        name = self.sweep.base
        if not name:
            return Scenario()
        beside = Path(self.directory) / name
        if self.directory and name.endswith(".toml") and not Path(name).is_absolute() and beside.is_file():
            return scenarios.load(beside)
        return scenarios.load(name)

    def complete(self) -> Spec:
        """The same sweep without a reference to anything outside: the base spelled out, [set] in it, no [quick]."""
        nested = self.scenario().nested()
        base = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in nested.items()}
        content = self.nested() | {"base": base, "set": {}, "quick": {}}
        content["sweep"]["base"] = ""
        return Spec.make(content)

    def nested(self) -> dict[str, Any]:
        """Plain nested values; unset parts left out."""
        content = self.model_dump(mode="python", exclude={"tuning", "quick"})
        content["sweep"]["seeds"] = list(self.sweep.seeds)
        if self.tuning is not None:
            content["tuning"] = self.tuning.model_dump(mode="python")
        if self.quick != Quick():
            content["quick"] = {k: v for k, v in self.quick.model_dump(mode="python").items() if v is not None}
        return content

    def to_toml(self) -> str:
        """The sweep as TOML."""
        import tomli_w

        content = self.nested()
        return tomli_w.dumps({k: v for k, v in content.items() if v not in ({}, (), [])})
