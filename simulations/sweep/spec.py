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

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedpriv.config import Scalar, Scenario, known_keys
from fedpriv.errors import InputError
from simulations import scenarios

Question = Literal["clippers", "collaboration", "curve", "components", "free"]
EPSILON, ENABLED = "privacy.epsilon", "privacy.enabled"
_FREE = frozenset({"run.seed", "run.out", "run.name", "run.engine"})  # the sweep sets these itself


def dotted(content: Mapping[str, Any]) -> dict[str, Any]:
    """Nested or dotted settings as dotted ones: `{"privacy": {"epsilon": 4}}` -> `{"privacy.epsilon": 4}`."""
    return dict(_dotted(content))


def _dotted(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and "." not in key:
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in cast("Mapping[str, Any]", value).items())
        else:
            yield key, value


def _settings(value: object) -> object:
    return dotted(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value


def _seeds(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 10_000:
            raise ValueError(f"{value} is not a number of seeds from 1 to 10000")
        return list(range(1, value + 1))
    if isinstance(value, str):
        return [part.strip() for part in value.strip("[] ").split(",") if part.strip()]
    return value


def _names(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Settings = Annotated[dict[str, Any], BeforeValidator(_settings)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Point(_Part):
    """One value of an axis: what the tables call it, and the settings that it stands for."""

    label: str | float
    set: Settings


class Axis(_Part):
    """One direction of the grid; `key` names its column in the tables."""

    key: str
    values: tuple[Point, ...]


class Arm(_Part):
    """A named set of changes."""

    name: str = Field(pattern=r"^[^/\x00-\x1f]{1,64}$")
    set: Settings = {}
    each_client: bool = False  # one run per client of the base scenario, with its own data alone
    leave_one_out: bool = False  # one run per client, of all the others
    coalitions: Annotated[int, Field(ge=0, le=10_000)] = 0  # runs for Shapley values, from this many orders of joining

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.each_client + self.leave_one_out + bool(self.coalitions) > 1:
            raise ValueError(f"arm {self.name}: each_client, leave_one_out and coalitions exclude each other; keep one")
        return self


class Head(_Part):
    """Section [sweep]."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    about: str = ""
    base: str = Field("", description="a scenario's name or file; empty: the default, or the section [base]")
    question: Question = "free"
    seeds: Seeds = (1,)
    sample: int = Field(0, ge=0, description="this many grid points drawn at random; 0: all")
    sample_seed: int = Field(0, ge=0, lt=2**62)
    page: bool = Field(False, description="also a page for each run; it costs seconds per run")


class Tuning(_Part):
    """Section [tuning]: learning rates (and options) chosen per rule on public data, the same budget for each."""

    scenario: str = Field("synthetic-4", description="a scenario of synthetic or public data; never the private test")
    set: Settings = {}
    by: Names = Field(("privacy.clipper",), description="axes that make a rule; arms always do")
    factors: tuple[float, ...] = Field(
        (0.5, 1.0, 2.0), description="candidates, times the public rule for the learning rate (units of the bound)"
    )
    options: dict[str, list[Settings]] = Field(
        {}, description="label of a rule -> settings to try; a rule without takes more factors in between instead"
    )
    trials: int = Field(0, ge=0, le=1000, description="trials of every rule; 0: as many as the largest list needs")
    seeds: Seeds = (101,)
    metric: str = "mse"


class Quick(_Part):
    """Section [quick]: what `--quick` puts in the place of the rest."""

    seeds: Seeds | None = None
    sample: Annotated[int, Field(ge=0)] | None = None
    set: Settings = {}
    grid: dict[str, Any] = {}
    arms: Names | None = None  # only these
    tuning: dict[str, Any] | None = None  # changes of [tuning]; an empty one: no tuning


class Spec(_Part):
    """A sweep file as it was read; `axes` is the grid with its values spelled out."""

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
        return tuple(_axis(key, values) for key, values in _grid_items(self.grid))

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
            problems = "; ".join(_problems(cls, error))
            raise InputError(f"the sweep is not valid: {problems}; nothing was started.") from None
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
                _require_known(key, where)
        if self.tuning is not None:
            for key in [*self.tuning.set, *(k for sets in self.tuning.options.values() for one in sets for k in one)]:
                _require_known(key, "tuning")
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
                content["grid"] = dotted(content["grid"]) | {rest: _listed(value)}
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


def _axis(key: str, values: object) -> Axis:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"grid.{key}={values!r} is not a list of values; nothing was started.")
    points = [_point(key, value) for value in values]
    labels = [point.label for point in points]
    if len(set(labels)) < len(labels):
        raise InputError(f"grid.{key} names a value twice ({', '.join(map(str, labels))}); nothing was started.")
    return Axis(key=key, values=tuple(points))


def _point(key: str, value: object) -> Point:
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        if set(table) != {"label", "set"} or not isinstance(table["set"], Mapping):
            raise InputError(
                f"grid.{key}: {dict(table)!r} is neither a plain value nor {{ label = ..., set = {{ ... }} }}; nothing "
                "was started."
            )
        return Point(label=table["label"], set=dotted(table["set"]))
    if key == EPSILON and isinstance(value, float) and math.isinf(value):
        return Point(label=math.inf, set={ENABLED: False})
    label = value if isinstance(value, str | int | float) and not isinstance(value, bool) else str(value).lower()
    return Point(label=label, set={key: value})


def _grid_items(grid: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(dotted(grid).items())


def _listed(value: object) -> list[Any]:
    """`a,b` of the command line as a list."""
    if not isinstance(value, str):
        return [value]
    from fedpriv.config import parse_assignments

    return [parse_assignments([f"x={part.strip()}"])["x"] for part in value.strip("[] ").split(",") if part.strip()]


def _require_known(key: str, where: str) -> None:
    known = known_keys()
    head = ".".join(key.split(".")[:2])
    if key in _FREE:
        extra = "seeds are in [sweep]" if key == "run.seed" else "the sweep gives it to every run itself"
        raise InputError(f"{key} cannot be set in {where}: {extra}. Nothing was started.")
    if key not in known and not (head in known and key.count(".") == 2):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"unknown scenario key {key!r} in {where}; the nearest known key is {near!r}. Nothing was started."
        )


def _problems(kind: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for e in error.errors():
        place = [str(part) for part in e["loc"]]
        where = ".".join(place)
        if e["type"] == "extra_forbidden":
            known = _fields(kind, place[:-1])
            near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.0)
            yield f"unknown key {where!r}" + (f", the nearest known one is {near[0]!r}" if near else "")
            continue
        shown = f"={e['input']!r}" if isinstance(e["input"], Scalar) else ""
        yield f"{where}{shown}: {e['msg'].removeprefix('Value error, ')}"


_PARTS: Mapping[str, type[BaseModel]] = {"sweep": Head, "tuning": Tuning, "quick": Quick, "arms": Arm}


def _fields(kind: type[BaseModel], place: list[str]) -> list[str]:
    found = _PARTS.get(place[0], kind) if place else kind
    return [name for name in found.model_fields if name != "directory"]
