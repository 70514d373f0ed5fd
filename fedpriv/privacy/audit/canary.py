"""The canary experiment: thousands of planted units, one run of the production code, every release seen.

Each canary is a unit of its own meter on a small calendar. A fair coin decides whether its readings are there. The
production sampler draws windows, the production engine clips, the production mechanism adds noise; the gradients of
canaries are orthogonal, so that one run is m experiments side by side, and far above the clipping bound. An attacker
who knows everything but the coins reads each canary's coordinate in every noisy sum and adds up the exact
log-likelihood ratios: no test of this mechanism is stronger.

Directions: the model has `layers` linear layers. Half of the canaries fill one coordinate of one layer, the others are
spread over all layers (Hadamard rows), so that a fault of one layer or in the joint norm shows as well.
After Steinke et al. 2023 (arXiv:2305.08846) and Nasr et al. 2023 (arXiv:2302.07956).
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from dp_accounting import dp_event
from numpy.typing import NDArray
from scipy.linalg import hadamard
from torch import Tensor, nn

from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.privacy.audit.tables import StepLaw, step_law
from fedpriv.privacy.clippers import Clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import GradientEngine, LossFn
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.hardened import GridEngine, HardenedMechanism
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.samplers import Sampler, Tiles
from fedpriv.privacy.units import Relation, Unit
from fedpriv.seeding import PrivacyRng

Array = NDArray[np.float64]
Streams: TypeAlias = Callable[[str], PrivacyRng]
EngineFactory: TypeAlias = Callable[[nn.Module, LossFn], GradientEngine]

LAYERS = 4  # a power of two, for Hadamard rows
MICROBATCH = 2048  # canaries per physical batch
SPREAD = "spread"


class CanaryModel(nn.Module):
    """`layers` linear layers without bias; the gradient of canary i is its amplitude times its direction.

    Directions [m, P] are orthonormal: canary i = group * layers + slot lives on coordinate `group` of the weights of
    each layer, weighted by row `slot` of the group's basis (identity or Hadamard). A layer's weights are a square, so
    that one coordinate of it is an outer product of two short one-hot vectors and no row is ever m long.
    """

    def __init__(self, canaries: int, layers: int) -> None:
        super().__init__()
        self.canaries, self.groups = canaries, canaries // layers
        self.inputs = math.isqrt(max(self.groups - 1, 0)) + 1
        self.outputs = -(-self.groups // self.inputs)
        # No initialisation: it would draw from torch's global generator.
        made = [nn.utils.skip_init(nn.Linear, self.inputs, self.outputs, bias=False) for _ in range(layers)]
        for layer in made:
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]
        self.layers = nn.ModuleList(made)
        mixed = hadamard(layers) / np.sqrt(layers)
        self.basis = torch.tensor(np.stack([np.eye(layers), mixed]), dtype=torch.float32)  # [2, slot, layer]
        self.spread_groups = self.groups // 2 if layers > 1 else 0

    def forward(self, index: Tensor, amplitude: Tensor) -> Tensor:
        """Numbers [B] of the canaries and amplitudes [B] -> [B] amplitude * <weights, direction>."""
        group, slot = index // len(self.layers), index % len(self.layers)
        weight = amplitude[:, None] * self.basis[(group < self.spread_groups).long(), slot]  # [B, layer]
        row = _one_hot(group % self.inputs, self.inputs)  # [B, inputs]
        pick = _one_hot(group // self.inputs, self.outputs)  # [B, outputs]
        parts = [(layer(row) * pick).sum(dim=1) * weight[:, i] for i, layer in enumerate(self.layers)]
        return torch.stack(parts).sum(dim=0)

    def project(self, vector: Tensor) -> Array:
        """[P] flat parameter vector -> [m] float64 inner products with the directions."""
        by_group = vector.to(torch.float64).view(len(self.layers), -1).T[: self.groups]  # [group, layer]
        one, spread = self.basis.to(torch.float64)
        cut = self.spread_groups
        return torch.cat([by_group[:cut] @ spread.T, by_group[cut:] @ one.T]).flatten().numpy()

    def strata(self) -> list[str]:
        """[m] where each canary lives: `spread` or `layer i`."""
        layers = len(self.layers)
        cut = self.spread_groups * layers
        return [SPREAD if i < cut else f"layer {i % layers}" for i in range(self.canaries)]


def _one_hot(index: Tensor, size: int) -> Tensor:
    # Not torch's one_hot: that looks at the values, which vmap does not allow.
    return (torch.arange(size, device=index.device) == index[:, None]).to(torch.float32)


def canary_loss(model: nn.Module, examples: Examples, draws: Draws) -> Tensor:
    """[B] the model's output; the canary's number is the public feature, its amplitude the sum of its readings."""
    del draws
    assert isinstance(model, CanaryModel)
    index = examples.calendar[:, 0, 0].round().long().remainder(model.canaries)
    return model(index, examples.values.sum(dim=(1, 2)))


@dataclass(frozen=True)
class CanaryScores:
    """What the attacker has at the end, and the truth.

    Attributes:
        inserted: [m] bool, the coins.
        scores: [m] sum over steps of the log-likelihood ratio; higher means "in".
        totals: [m] sum over steps of the projected release over the clipping bound.
        squares: [m] sum over steps of the same over its claimed standard deviation, squared.
        expected: sum over steps of E[J], what `totals` gains from an inserted unit.
        expected_square: sum over steps of E[J^2] / sigma^2.
        steps: releases seen.
        strata: [m] where each canary lives.
        seconds: time of the run.
    """

    inserted: NDArray[np.bool_]
    scores: Array
    totals: Array
    squares: Array
    expected: float
    expected_square: float
    steps: int
    strata: NDArray[np.str_]
    seconds: float

    def stratum(self, name: str) -> CanaryScores:
        """The canaries of one stratum."""
        keep = self.strata == name
        return CanaryScores(
            self.inserted[keep],
            self.scores[keep],
            self.totals[keep],
            self.squares[keep],
            self.expected,
            self.expected_square,
            self.steps,
            self.strata[keep],
            self.seconds,
        )


def run_canaries(
    parts: Sequence[tuple[Mechanism, int]],
    *,
    canaries: int,
    streams: Streams,
    engine: str | EngineFactory = "ghost",
    layers: int = LAYERS,
    progress: Callable[[float], None] | None = None,
) -> CanaryScores:
    """Runs each mechanism for its number of steps on the same canaries.

    Args:
        parts: (mechanism, steps); all of one unit and relation.
        canaries: m; rounded up to a multiple of `layers`.
        streams: purpose -> source of randomness ("insert", "sampling", "noise").
        engine: name of a production engine, or a factory for tests.
        layers: linear layers of the probe, a power of two; 1 for the plain one-hot probe.
        progress: told the share of the steps that is done.

    Raises:
        InputError: nothing to run, mixed units or relations, or canaries below `layers`.
    """
    if not parts or any(steps < 1 for _, steps in parts) or canaries < layers:
        raise InputError(f"{len(parts)} mechanisms and {canaries} canaries leave nothing to audit.")
    first = parts[0][0]
    relation = Relation.parse(first.relation)
    if any(p.unit != first.unit or Relation.parse(p.relation) is not relation for p, _ in parts):
        raise InputError("the mechanisms of one audit must share unit and relation; nothing was run.")
    started = time.perf_counter()
    canaries = -(-canaries // layers) * layers
    model = CanaryModel(canaries, layers)
    if isinstance(engine, str):
        worker = make_engine(engine, model, canary_loss, microbatch=MICROBATCH)
    else:
        worker = engine(model, canary_loss)
    grid: GradientEngine | None = None
    if any(isinstance(mechanism, HardenedMechanism) for mechanism, _ in parts):
        grid = GridEngine(FunctionalEngine(model, canary_loss))
    inserted = np.asarray(streams("insert").random(canaries)) < 0.5
    sampling, noise = streams("sampling"), streams("noise")
    scores, totals, squares = (np.zeros(canaries) for _ in range(3))
    expected, expected_square, done, everything = 0.0, 0.0, 0, sum(steps for _, steps in parts)
    for mechanism, steps in parts:
        law = attackers_law(mechanism)
        expected += law.mean * steps
        expected_square += law.square * steps / law.sigma**2
        own = grid if grid is not None and isinstance(mechanism, HardenedMechanism) else worker
        for released in releases(mechanism, own, inserted, relation, steps, sampling=sampling, noise=noise):
            y = model.project(released)
            scores += law.log_ratio(y, relation)
            totals += y
            squares += (y / law.sigma) ** 2
            done += 1
            if progress is not None:
                progress(done / everything)
    strata = np.array(model.strata())
    seconds = time.perf_counter() - started
    return CanaryScores(inserted, scores, totals, squares, expected, expected_square, done, strata, seconds)


def attackers_law(mechanism: Mechanism) -> StepLaw:
    """One step as an attacker models it: what the sampler draws, and Gaussian noise of the stated size.

    Discrete noise on a grid of 2^20 cells per bound is Gaussian to any attacker of this kind, and is not amplified in
    its claim; so the law is made from the sampler, not from the event that is charged.
    """
    gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
    return step_law(mechanism.sampler.amplify(gaussian, mechanism.unit, mechanism.relation))


def releases(
    mechanism: Mechanism,
    engine: GradientEngine,
    inserted: NDArray[np.bool_],
    relation: Relation,
    steps: int,
    *,
    sampling: PrivacyRng,
    noise: PrivacyRng,
):
    """Yields every released sum over the clipping bound, [P]: the walk of `training`, with canaries for data."""
    sampler = mechanism.sampler
    assert isinstance(sampler, Sampler)
    readings = planted(inserted, relation, sampler.window, mechanism.unit, worst_norm(mechanism.clipper_at(0)))
    span = {"num_meters": len(inserted), "start": 0, "stop": readings.shape[1]}
    denominator = sampler.expected_batch_size(**span)
    for step, tiles in enumerate(sampler.batches(**span, steps=steps, rng=sampling)):
        examples, draws = windows(readings, tiles, sampler.window)
        clipped = engine.clipped_sum(examples, draws, mechanism.clipper_at(step))
        released = mechanism.release(clipped, denominator=denominator, rng=noise)
        yield released.grad.to(torch.float64) * (denominator / mechanism.clipper.bound)


def planted(
    inserted: NDArray[np.bool_], relation: Relation, window: int, unit: Unit, amplitude: float
) -> NDArray[np.float32]:
    """[m, n] readings: one meter per canary, `amplitude` in its unit, 0 ("no reading", no gradient) elsewhere.

    The unit lies so far from both ends that the windows which touch it follow the sampler's law exactly; the
    calendar is the shortest for which that is so. Under replace-one an absent canary has the opposite content.
    """
    length = unit.steps if unit.kind == "event" else 4 * window
    margin = window - 1 if unit.kind == "event" else 0
    steps = max(length + 2 * margin, window)
    readings = np.zeros((len(inserted), steps), dtype=np.float32)
    absent = -amplitude if relation is Relation.REPLACE_ONE else 0.0
    readings[:, margin : margin + length] = np.where(inserted, amplitude, absent)[:, None]
    return readings


def windows(readings: NDArray[np.float32], tiles: Tiles, window: int) -> tuple[Examples, Draws]:
    """The rows of one step; windows of a group become one row with their mean (clipped once)."""
    steps = np.arange(window)
    cut = readings[tiles.meter[:, None], tiles.start[:, None] + steps]  # [rows, L]
    groups = int(tiles.group[-1]) + 1 if len(tiles) else 0
    size = np.bincount(tiles.group, minlength=groups)
    values = np.zeros((groups, window), dtype=np.float32)
    np.add.at(values, tiles.group, cut)
    values /= np.maximum(size, 1)[:, None]
    meter = np.zeros(groups, dtype=np.int64)
    meter[tiles.group] = tiles.meter
    x = torch.from_numpy(values)[:, :, None]  # [B, L, 1]
    number = torch.from_numpy(meter).to(torch.float32)[:, None, None].expand(-1, window, 1)
    zero, one = torch.zeros(groups, 1, 1), torch.ones(groups, 1, 1)
    seen = x != 0
    examples = Examples(x, ~seen, seen, number.contiguous(), torch.zeros_like(x), zero, one)
    return examples, Draws(torch.zeros(groups, 1, dtype=torch.int64), torch.zeros(groups, 1, window, 1))


def worst_norm(clipper: Clipper) -> float:
    """A norm at which `clipper` lets most through: large for most rules, but some are not monotone."""
    norms = clipper.bound * torch.logspace(-4, 4, 8001, dtype=torch.float64)
    through = norms * clipper.factors(norms)
    return float(norms[through >= through.max() * (1 - 1e-6)].max())
