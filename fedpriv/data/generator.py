"""Synthetic utilities: a weather, a mix of customers, what weather does to them, meters and outages.

Every utility is drawn from (seed, index) alone, so utility k is the same however many there are; its knobs are
the ground truth that experiments may compare against. Loads are hourly, MW, local time without daylight saving.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.signal import lfilter

from fedpriv.data.table import stamp
from fedpriv.seeding import stream

START = stamp("2021-01-01 00:00")
UNIT = "MW"

Array = NDArray[np.float64]

# zone: mean temperature, seasonal swing, daily swing, weather deviation (degC), weather memory (h), latitude
_CLIMATES: dict[str, tuple[float, float, float, float, float, float]] = {
    "cold": (5.0, 14.0, 4.5, 6.0, 52.0, 47.0),
    "continental": (11.0, 13.0, 5.0, 5.5, 46.0, 41.0),
    "marine": (10.0, 7.5, 4.0, 4.0, 56.0, 46.0),
    "mediterranean": (16.5, 8.0, 5.0, 4.0, 56.0, 36.0),
    "hot-dry": (21.0, 10.0, 6.5, 4.0, 56.0, 33.0),
    "hot-humid": (20.0, 8.5, 4.5, 4.5, 46.0, 30.0),
}
_HEAT_BELOW, _COOL_ABOVE = 15.0, 20.0  # degC


@dataclass(frozen=True)
class Utility:
    """Ground truth of one synthetic utility.

    Attributes:
        index: its number, from 0.
        climate: climate zone.
        latitude: degrees north.
        size: typical load, MW.
        residential, commercial, industrial: asset mix, shares of the base load.
        heating, cooling: extra load per degree, share of the typical load.
        pv: photovoltaic peak, share of the typical load.
        ev: charging peak of electric vehicles, share of the typical load.
        evening, morning: hours of the residential peaks.
        holiday_effect: how far holidays resemble Sundays.
        volatility: deviation of the unexplained load, share of the typical load.
        tail: degrees of freedom of its shocks (small: heavy tails).
        outages: expected outages of telemetry per meter and year.
    """

    index: int
    climate: str
    latitude: float
    size: float
    residential: float
    commercial: float
    industrial: float
    heating: float
    cooling: float
    pv: float
    ev: float
    evening: float
    morning: float
    holiday_effect: float
    volatility: float
    tail: float
    outages: float

    def knobs(self) -> dict[str, str | float | int]:
        """The same as a plain dictionary."""
        return asdict(self)


def draw_utility(seed: int, index: int) -> Utility:
    """The ground truth of utility `index`."""
    rng = stream(seed, "synthetic", "utility", index)
    climate = str(rng.choice(list(_CLIMATES)))
    warm = (_CLIMATES[climate][0] - 5.0) / 16.0  # 0 cold ... 1 hot
    residential, commercial, industrial = rng.dirichlet((5.0, 4.0, 2.5))
    return Utility(
        index=index,
        climate=climate,
        latitude=_CLIMATES[climate][5] + rng.uniform(-2, 2),
        size=float(np.exp(rng.uniform(np.log(80.0), np.log(15_000.0)))),
        residential=residential,
        commercial=commercial,
        industrial=industrial,
        heating=float(rng.uniform(0.012, 0.022) * (1.1 - 0.3 * warm)),
        cooling=float(rng.uniform(0.022, 0.042) * (0.8 + 0.4 * warm)),
        pv=float(0.25 * rng.beta(1.5, 3.0) * (0.5 + warm)),
        ev=float(0.12 * rng.beta(1.5, 3.0)),
        evening=float(rng.uniform(18.0, 20.5)),
        morning=float(rng.uniform(6.8, 8.5)),
        holiday_effect=float(rng.uniform(0.5, 1.0)),
        volatility=float(rng.uniform(0.018, 0.032)),
        tail=float(rng.uniform(3.5, 8.0)),
        outages=float(rng.uniform(2.0, 8.0)),
    )


@dataclass(frozen=True)
class Generated:
    """What `generate` returns: loads [M, T] in MW with NaN in outages, and the temperature [T] in degC."""

    load: Array
    temperature: Array


def generate(utility: Utility, *, days: int, meters: int, seed: int) -> Generated:
    """Hourly readings of one utility.

    Args:
        utility: its ground truth.
        days: length of the calendar, which begins at `START`.
        meters: number of meters, M; their sum has the utility's size. One meter: the utility as a whole.
        seed: the same as for `draw_utility`.
    """
    index = pd.date_range(START, periods=days * 24, freq="h")
    rng = stream(seed, "synthetic", "weather", utility.index)
    hour = index.hour.to_numpy()
    temperature, sky = _weather(utility, index, rng)
    parts = _components(utility, index, temperature, sky)
    shapes = np.stack(list(parts.values()))  # [P, T] shares of the typical load
    noise = _memory(_shocks(rng, utility.tail, len(index)), 12.0) + _memory(rng.standard_normal(len(index)), 96.0)
    meter_rng = stream(seed, "synthetic", "meters", utility.index)
    if meters == 1:
        load = (shapes.sum(axis=0) * (1 + utility.volatility * noise))[None]
    else:
        load = _metered(utility, list(parts), shapes, noise, hour, meters, meter_rng)
    load *= utility.size
    _outages(load, utility.outages, meter_rng)
    return Generated(load, temperature)


def _memory(shocks: Array, hours: float) -> Array:
    """Stationary first-order process of unit deviation with the given memory."""
    keep = np.exp(-1.0 / hours)
    scaled = shocks * np.sqrt(1 - keep**2)
    scaled[..., 0] = shocks[..., 0]
    return np.asarray(lfilter([1.0], [1.0, -keep], scaled, axis=-1))


def _shocks(rng: np.random.Generator, tail: float, size: int) -> Array:
    """Student shocks of unit variance."""
    return rng.standard_t(tail, size) * np.sqrt((tail - 2) / tail)


def _weather(utility: Utility, index: pd.DatetimeIndex, rng: np.random.Generator) -> tuple[Array, Array]:
    """Temperature [T] in degC and clearness of the sky [T] in 0..1."""
    mean, season, daily, deviation, memory, _ = _CLIMATES[utility.climate]
    size = len(index)
    hour, day = index.hour.to_numpy(), index.day_of_year.to_numpy()
    year = np.cos(2 * np.pi * (day - 202) / 365.25)
    cloud = _memory(rng.standard_normal(size), 20.0)
    sky = 0.25 + 0.75 / (1 + np.exp(1.5 * (cloud - 0.4)))
    # weather fronts pass within days: a second filter takes the hourly roughness away
    front = _memory(_memory(rng.standard_normal(size), memory), 10.0)
    front /= front.std()
    swing = daily * (0.5 + 0.7 * sky) * np.cos(2 * np.pi * (hour - 15.5) / 24)
    return mean + season * year + swing + deviation * (1.15 - 0.3 * year) * front, sky


def _components(utility: Utility, index: pd.DatetimeIndex, temperature: Array, sky: Array) -> dict[str, Array]:
    """Parts of the load [T] as shares of the typical load."""
    hour, weekday = index.hour.to_numpy(), index.day_of_week.to_numpy()
    day = index.day_of_year.to_numpy()
    holiday = np.where(_holidays(index), utility.holiday_effect, 0.0)
    rest = np.maximum(np.select([weekday == 6, weekday == 5], [1.0, 0.8], 0.0), holiday)  # 0 workday .. 1 Sunday
    clock = np.arange(24.0)

    home_work = 0.66 + 0.18 * _bump(clock, utility.morning, 1.8) + 0.38 * _bump(clock, utility.evening, 3.0)
    home_rest = 0.70 + 0.20 * _bump(clock, utility.morning + 2.0, 3.0) + 0.34 * _bump(clock, utility.evening, 3.2)
    office_work = 0.62 + 0.44 * _bump(clock, 13.0, 4.6)
    office_rest = 0.60 + 0.32 * _bump(clock, 14.0, 4.5)
    plant_work = 0.96 + 0.08 * _bump(clock, 11.0, 5.0)
    plant_rest = np.full(24, 0.93)

    def by_day(work: Array, off: Array) -> Array:
        return work[hour] * (1 - rest) + off[hour] * rest

    darkness = 1 + 0.06 * np.cos(2 * np.pi * (day + 10) / 365.25)
    # buildings answer to the temperature of the last hours, not of the minute
    felt = lfilter([1 - np.exp(-1 / 5)], [1, -np.exp(-1 / 5)], temperature, zi=[temperature[0] * np.exp(-1 / 5)])[0]
    awake = 0.75 + 0.35 * _bump(clock, 16.5, 5.0)[hour] + 0.1 * _bump(clock, 7.5, 2.0)[hour]
    people = utility.residential + utility.commercial
    return {
        "residential": utility.residential * by_day(home_work, home_rest) * darkness,
        "commercial": utility.commercial * by_day(office_work, office_rest),
        "industrial": utility.industrial * by_day(plant_work, plant_rest),
        "heating": people * utility.heating * _soft(_HEAT_BELOW - felt) * (0.9 + 0.2 * _bump(clock, 7.5, 3.0)[hour]),
        "cooling": people * utility.cooling * _soft(felt - _COOL_ABOVE) * awake,
        "ev": utility.ev * _bump(clock, 22.5, 3.2)[hour] * (1 - 0.25 * rest),
        "pv": -utility.pv * _sun(utility.latitude, day, hour) * sky,
    }


def _bump(hours: Array, centre: float, width: float) -> Array:
    """A bell on the clock, height 1."""
    away = (hours - centre + 12) % 24 - 12
    return np.exp(-0.5 * (away / width) ** 2)


def _soft(degrees: Array) -> Array:
    """Degrees above zero with a rounded corner: not every building starts at the same temperature."""
    return np.logaddexp(0.0, degrees / 2.0) * 2.0


def _sun(latitude: float, day: NDArray[np.int32], hour: NDArray[np.int32]) -> Array:
    """Sine of the sun's height above the horizon in the middle of the hour, 0 at night."""
    tilt = np.deg2rad(23.44) * np.sin(2 * np.pi * (day - 81) / 365.25)
    at = np.deg2rad(latitude)
    turn = np.deg2rad(15.0 * (hour + 0.5 - 12.5))
    return np.maximum(np.sin(at) * np.sin(tilt) + np.cos(at) * np.cos(tilt) * np.cos(turn), 0.0)


def _holidays(index: pd.DatetimeIndex) -> NDArray[np.bool_]:
    """Ten days a year on which offices rest (a North American calendar)."""
    month, day, weekday = index.month.to_numpy(), index.day.to_numpy(), index.day_of_week.to_numpy()
    fixed = [(1, 1), (7, 4), (12, 24), (12, 25), (12, 26), (12, 31)]
    free = np.zeros(len(index), dtype=bool)
    for m, d in fixed:
        free |= (month == m) & (day == d)
    free |= (month == 5) & (weekday == 0) & (day > 24)  # last Monday
    free |= (month == 9) & (weekday == 0) & (day <= 7)  # first Monday
    free |= (month == 11) & (weekday == 3) & (day > 21) & (day <= 28)  # fourth Thursday
    free |= (month == 11) & (weekday == 4) & (day > 22) & (day <= 29)  # and the day after
    return free


def _metered(
    utility: Utility,
    names: list[str],
    shapes: Array,
    noise: Array,
    hour: NDArray[np.int32],
    meters: int,
    rng: np.random.Generator,
) -> Array:
    """[M, T] shares of the typical load: heavy-tailed sizes, each meter with its own mix, habits and noise."""
    sizes = np.exp(1.1 * rng.standard_normal(meters))
    mix = rng.gamma(0.9, size=(meters, len(names)))  # few meters have a bit of everything
    mix[:, names.index("pv")] *= rng.random(meters) < 0.35
    mix[:, names.index("ev")] *= rng.random(meters) < 0.35
    weights = sizes[:, None] * mix
    weights /= np.maximum(weights.sum(axis=0), 1e-12)  # every part of the utility is spread over its meters
    load = weights @ shapes
    level = np.maximum(load.mean(axis=1, keepdims=True), 1e-9)
    habit = 1 + 0.25 * _memory(rng.standard_normal((meters, 24)), 3.0)[:, hour]
    spread = np.exp(0.25 * rng.standard_normal((meters, 1)))
    own = rng.standard_t(utility.tail, size=(meters, shapes.shape[1])) * np.sqrt((utility.tail - 2) / utility.tail)
    own = 0.16 * spread * (0.6 * own + 0.8 * _memory(own, 3.0))
    bursts = rng.standard_gamma(0.05, size=own.shape) - 0.05  # appliances: rarely, and then much
    load = load * habit * (1 + utility.volatility * noise) + level * (own + 0.5 * bursts)
    # meters without PV do not feed in
    floor = np.where(mix[:, [names.index("pv")]] > 0, -np.inf, 0.02 * level)
    return np.maximum(load, floor)


def _outages(load: Array, per_year: float, rng: np.random.Generator) -> None:
    """Telemetry outages as NaN, in place: most last hours, some days."""
    meters, size = load.shape
    counts = rng.poisson(per_year * size / 8760, meters)
    which = np.repeat(np.arange(meters), counts)
    begin = rng.integers(0, size, len(which))
    long = rng.random(len(which)) < 0.15
    length = rng.geometric(np.where(long, 1 / 40, 1 / 4))
    for row, first, span in zip(which, begin, length, strict=True):
        load[row, first : first + span] = np.nan
