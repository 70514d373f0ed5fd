"""Synthetic utilities as a source: nothing to download, public by construction, the same on every machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fedpriv.config import DataConfig
from fedpriv.data.generator import START, UNIT, draw_utility, generate
from fedpriv.data.sources.base import HOUR, Facts, Parts, Series
from fedpriv.errors import InputError

_NAME = re.compile(r"utility-(\d{3,})")


def client_name(index: int) -> str:
    """`utility-000`, `utility-001`, ..."""
    return f"utility-{index:03d}"


class SyntheticSource:
    """Clients are `utility-000`, `utility-001`, ...; `data.meters` meters with one channel each."""

    def facts(self, config: DataConfig) -> Facts:
        """Licence, citation, unit."""
        return Facts("made by fedpriv; free of rights", "fedpriv synthetic utilities", UNIT)

    def known(self, config: DataConfig) -> Sequence[str]:
        """Any `utility-NNN`; the check is on the form of the names.

        Raises:
            InputError: a name of another form.
        """
        for name in config.clients:
            if not _NAME.fullmatch(name) or client_name(_index(name)) != name:
                raise InputError(
                    f"unknown client {name!r} of source synthetic; names are {client_name(0)}, {client_name(1)}, ... "
                    "Nothing was started."
                )
        return ()

    def default(self, config: DataConfig, count: int) -> Sequence[str]:
        """The first `count` utilities.

        Raises:
            InputError: all of them are wanted, but there is no last one.
        """
        if count == 0:
            raise InputError(
                "partition.clients=0 means all clients of the source, but synthetic utilities have no end; give a "
                "number. Nothing was started."
            )
        return [client_name(k) for k in range(count)]

    def step(self, config: DataConfig) -> pd.Timedelta:
        """One hour."""
        return HOUR

    def channels(self, config: DataConfig) -> tuple[str, ...]:
        """Load."""
        return ("load",)

    def parts(self, config: DataConfig) -> Parts | None:
        """None: by fractions."""
        return None

    def disclosed(self, config: DataConfig) -> Sequence[str]:
        """Nothing: all of it is public."""
        return ()

    def files(self, config: DataConfig, name: str) -> Sequence[Path]:
        """None."""
        return ()

    def read(self, config: DataConfig, name: str) -> Series:
        """[M, 24 days, 1] MW."""
        utility = draw_utility(config.seed, _index(name))
        load = generate(utility, days=config.days, meters=config.meters, seed=config.seed).load
        return Series(
            values=load[:, :, None],
            start=START,
            step=HOUR,
            meters=(name,) if config.meters == 1 else tuple(f"meter-{m:05d}" for m in range(config.meters)),
            channels=("load",),
            unit=UNIT,
            timezone="local",
        )


def _index(name: str) -> int:
    return int(name.removeprefix("utility-"))


def write_csv(directory: Path, *, clients: int, days: int, meters: int = 1, seed: int) -> list[Path]:
    """Writes synthetic utilities as wide CSV that the csv source reads, and their ground truth as JSON.

    One meter each: `utilities.csv` with a column per utility (`data.path=DIR/utilities.csv`). Several: a
    directory `utilities/` with a file per utility and a column per meter (`data.path=DIR/utilities`).
    `utilities.json` holds every utility's knobs.

    Args:
        directory: made if need be; existing files of these names are replaced.
        clients, days, meters, seed: as the keys of a scenario.

    Returns:
        The paths written.

    Raises:
        InputError: a number below 1, or the directory cannot be written.
    """
    for key, number in (("clients", clients), ("days", days), ("meters", meters)):
        if number < 1:
            raise InputError(f"{key}={number} is below 1; nothing was written.")
    index = pd.date_range(START, periods=days * 24, freq="h").strftime("%Y-%m-%d %H:%M")
    truth = [draw_utility(seed, k) for k in range(clients)]
    loads = (generate(u, days=days, meters=meters, seed=seed).load for u in truth)
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if meters == 1:
            columns = {client_name(k): load[0] for k, load in enumerate(loads)}
            written.append(_write(directory / "utilities.csv", pd.DataFrame(columns, index=index)))
        else:
            folder = directory / "utilities"
            folder.mkdir(exist_ok=True)
            for k, load in enumerate(loads):
                names = [f"meter-{m:05d}" for m in range(meters)]
                frame = pd.DataFrame(load.T, index=index, columns=names)
                written.append(_write(folder / f"{client_name(k)}.csv", frame))
        about = {
            "unit": UNIT,
            "step": "1h",
            "start": str(START),
            "days": days,
            "meters": meters,
            "seed": seed,
            "utilities": {client_name(k): u.knobs() for k, u in enumerate(truth)},
        }
        path = directory / "utilities.json"
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}).") from None
    return [*written, path]


def _write(path: Path, frame: pd.DataFrame) -> Path:
    # seven digits, as meters report; a gap is an empty cell
    frame.map(lambda value: "" if np.isnan(value) else f"{value:.7g}").to_csv(path, index_label="time")
    return path
