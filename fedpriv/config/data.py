"""Where the series come from, how they are divided among clients, and what is asked of a window."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from fedpriv.config.values import MaybeFloat, Names, Section


class DataConfig(Section):
    """Where the series come from and how they are cut in time."""

    source: Literal["synthetic", "eia930", "pjm", "ett", "sgsc", "csv", "nodes"] = "synthetic"
    dir: str = Field("", description="directory of the published files; empty: the FEDPRIV_DATA_DIR variable")
    path: str = Field("", description="the user's own CSV or Parquet file, or a directory of them (source = csv)")
    clients: Names = Field((), description="which clients of the source; empty: all, or the first partition.clients")
    channels: Names = Field((), description="which channels; empty: all")
    frequency: str = Field("", description="resample to this step by averaging, e.g. 1h; empty: as published")
    scaling: Literal["window", "bounds"] = Field("window", description="per-window, or by declared public bounds")
    low: float = Field(0.0, description="declared public lower bound (scaling = bounds), in the unit of the data")
    high: float = Field(1.0, description="declared public upper bound (scaling = bounds)")
    drop_flagged: bool = Field(True, description="treat cells that the publisher imputed as missing (eia930)")
    train_until: str = Field("", description="first stamp after training, ISO; empty: by train_fraction")
    validation_until: str = Field("", description="first stamp after validation, ISO; empty: by validation_fraction")
    train_fraction: float = Field(0.6, gt=0, lt=1)
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    time_column: str = Field("", description="csv: column with time stamps; empty: the first one")
    client_column: str = Field("", description="csv, long format: column naming the client or meter; empty: wide")
    value_column: str = Field("", description="csv, long format: column with the readings")
    group: str = Field("", description="csv: the whole file is one client of this name, its columns or ids are meters")
    unit: str = Field("", description="csv: physical unit of the readings, for labels")
    duplicates: Literal["refuse", "mean"] = Field("refuse", description="csv: one stamp with several values")
    days: int = Field(730, ge=14, le=36_525, description="synthetic, and declared for nodes: calendar length, days")
    meters: int = Field(1, ge=1, le=100_000, description="synthetic, and declared for nodes: meters per client")
    seed: int = Field(20, ge=0, description="synthetic: seed of the generated utilities (not of the run)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.train_fraction + self.validation_fraction >= 1:
            total = self.train_fraction + self.validation_fraction
            raise ValueError(f"train_fraction + validation_fraction = {total:g} leaves no test part; keep it below 1")
        if self.scaling == "bounds" and not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}")
        if self.source == "csv" and not self.path:
            raise ValueError("source = csv needs data.path")
        if self.group and self.source != "csv":
            raise ValueError(f"group={self.group!r} is for source = csv only; leave it empty")
        if self.source == "nodes" and not self.frequency:
            raise ValueError("source = nodes needs data.frequency, the step that all nodes agree on, such as 1h")
        return self


_BY = {
    "natural": ("", "parent", "region", "time-zone"),
    "dirichlet": ("", "profile", "season"),
    "temporal": ("", "year"),
    "feature": ("", "sampling", "channels", "covariates"),
    "missingness": ("", "flags", "outages"),
}
"""What `partition.by` may say for each kind; the others take none. Empty: the kind's default."""
_SKEW = {
    "quantity": (0.0, 10.0),
    "scale": (0.0, 6.0),
    "sampling": (1.0, 24.0),
    "channels": (0.0, 0.95),
    "covariates": (0.0, 1.0),
    "outages": (0.001, 0.6),
}
"""Range of `partition.skew` by kind, or by `partition.by` where that decides what it means."""


class PartitionConfig(Section):
    """How the series are divided among clients."""

    kind: Literal[
        "natural", "pooled", "iid", "dirichlet", "quantity", "temporal", "feature", "scale", "missingness", "clusters"
    ] = "natural"
    clients: int = Field(
        4, ge=0, le=10_000, description="how many; 0: all that the source has (so of a csv unless given)"
    )
    series: int = Field(
        0,
        ge=0,
        le=100_000,
        description="series of the source that are divided; 0: all (synthetic: four per client; natural, pooled, "
        "feature and missingness: one per client)",
    )
    unit: Literal["auto", "series", "meter", "block"] = Field(
        "auto",
        description="what one client gets whole; auto: series where there are two or more for each client, else "
        "calendar blocks",
    )
    block_days: int = Field(28, ge=1, le=3650, description="unit = block: days of one block")
    by: str = Field(
        "",
        description="natural: parent, region, time-zone; dirichlet: profile, season; temporal: year; feature: "
        "sampling, channels, covariates; missingness: flags, outages; empty: the kind's default",
    )
    alpha: float = Field(0.5, ge=1e-3, le=1e6, description="dirichlet: concentration; small is uneven")
    clusters: int = Field(4, ge=2, le=1000, description="dirichlet by profile: number of classes")
    skew: MaybeFloat = Field(
        None,
        description="strength; quantity: exponent; scale: decades; sampling: longest interval in steps; channels, "
        "covariates: share hidden; outages: share missing at the worst client; empty: the kind's default",
    )
    seed: int = Field(0, ge=0, lt=2**62, description="seed of the partition (not of the run)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        allowed = _BY.get(self.kind, ("",))
        if self.by not in allowed:
            shown = ", ".join(repr(by) for by in allowed)
            raise ValueError(f"by={self.by!r} does not fit kind={self.kind}; allowed are {shown}")
        if self.by == "season" and self.unit in ("series", "meter"):
            raise ValueError(f"by=season needs calendar blocks; unit={self.unit} has no season (allowed: auto, block)")
        if self.unit != "auto" and self.kind in ("natural", "pooled", "temporal", "feature", "scale", "missingness"):
            raise ValueError(f"unit={self.unit} does not apply to kind={self.kind}, whose units are fixed; leave auto")
        if self.skew is not None:
            meaning = self.by or {"feature": "sampling", "missingness": "outages"}.get(self.kind, self.kind)
            if meaning not in _SKEW:
                named = f"kind={self.kind}" + (f", by={self.by}" if self.by else "")
                raise ValueError(f"skew={self.skew:g} has no meaning for {named}; leave it empty")
            low, high = _SKEW[meaning]
            if not low <= self.skew <= high:
                raise ValueError(f"skew={self.skew:g} is outside {low:g} to {high:g} ({meaning})")
        return self


class TaskConfig(Section):
    """What is given of a window and what must be generated."""

    kind: Literal["forecast", "imputation", "mixed"] = "forecast"
    context: int = Field(168, ge=2, le=10_000, description="steps before the horizon")
    horizon: int = Field(24, ge=1, le=10_000, description="steps to forecast")
    mask: Literal["random", "block", "stride", "gap", "any"] = Field(
        "any",
        description="imputation: which whole steps are hidden: single ones at random, a block at the end, blocks at a "
        "stride, a gap with readings on both sides, or any of the first three",
    )
    ratio_low: float = Field(0.1, gt=0, lt=1, description="random, gap: least share of hidden steps")
    ratio_high: float = Field(0.5, gt=0, lt=1, description="random, gap: largest share of hidden steps")
    period: int = Field(0, ge=0, description="season of the naive baseline, steps; 0: one day")

    @property
    def window(self) -> int:
        """Steps in one window, L."""
        return self.context + self.horizon

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ratio_low > self.ratio_high:
            raise ValueError(f"ratio_low={self.ratio_low:g} exceeds ratio_high={self.ratio_high:g}")
        return self
