"""The sections of a sweep file: [sweep], [[arms]], [tuning], [quick], and what a value of the grid becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Question = Literal["clippers", "collaboration", "curve", "components", "free"]


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


MODEL = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Part(BaseModel):
    """A section; unknown keys are refused."""

    model_config = MODEL


class Point(Part):
    """One value of an axis: what the tables call it, and the settings that it stands for."""

    label: str | float
    set: Settings


class Axis(Part):
    """One direction of the grid; `key` names its column in the tables."""

    key: str
    values: tuple[Point, ...]


class Arm(Part):
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


class Head(Part):
    """Section [sweep]."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    about: str = ""
    base: str = Field("", description="a scenario's name or file; empty: the default, or the section [base]")
    question: Question = "free"
    seeds: Seeds = (1,)
    sample: int = Field(0, ge=0, description="this many grid points drawn at random; 0: all")
    sample_seed: int = Field(0, ge=0, lt=2**62)
    page: bool = Field(False, description="also a page for each run; it costs seconds per run")


class Tuning(Part):
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


class Quick(Part):
    """Section [quick]: what `--quick` puts in the place of the rest."""

    seeds: Seeds | None = None
    sample: Annotated[int, Field(ge=0)] | None = None
    set: Settings = {}
    grid: dict[str, Any] = {}
    arms: Names | None = None  # only these
    tuning: dict[str, Any] | None = None  # changes of [tuning]; an empty one: no tuning
