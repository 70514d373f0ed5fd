"""Planted defects: each must be caught by suite D1 (sensitivity) or D2 (noise), and the sound step by neither.

The list is that of privacy spec 6.4 and a few of our own. Sampler defects belong to suite D3.
"""

import numpy as np
import pytest
import torch
from dp_accounting import dp_event

from fedpriv.examples import Draws
from fedpriv.privacy.audit.noise import check_noise
from fedpriv.privacy.audit.probe import Probe, VectorProbe, made_up, probe_loss, randomised, vector_loss
from fedpriv.privacy.audit.result import production_step
from fedpriv.privacy.audit.sensitivity import (
    Silence,
    adversarial_vectors,
    check_independence,
    check_sensitivity,
    pick,
)
from fedpriv.privacy.clippers import FlatClipper, PsascClipper, make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import ClippedSum, layout
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.seeding import stream

DENOMINATOR = 16.0
LENGTH, CHANNELS, PARTS = 128, 4, 4  # 512 coordinates in 4 "layers": enough for the noise tests


class Sampler:
    def amplify(self, inner, unit, relation):
        return dp_event.PoissonSampledDpEvent(0.1, inner)


class Engine:
    """A functional engine with its arithmetic laid open, to be broken."""

    def __init__(self, model, loss):
        self.inner, self.model, self.loss = FunctionalEngine(model, loss), model, loss

    def gradients(self, examples, draws):
        return self.inner.per_row(examples, draws)  # [B, P]

    def total(self, rows, clipper):
        norms = rows.double().norm(dim=1)
        factors = clipper.factors(norms) * (1 - 1e-5)
        return (torch.where(factors[:, None] > 0, rows.double(), 0.0) * factors[:, None]).sum(dim=0).float()

    def clipped_sum(self, examples, draws, clipper):
        size = self.inner._layout.size
        rows = self.gradients(examples, draws) if len(examples) else torch.zeros(0, size)
        return ClippedSum(self.total(rows, clipper), clipper.bound)


class PerLayerClip(Engine):
    def total(self, rows, clipper):
        return torch.cat([super(PerLayerClip, self).total(part, clipper) for part in rows.chunk(PARTS, dim=1)])


class BatchMaximum(Engine):
    def total(self, rows, clipper):
        if not len(rows):
            return super().total(rows, clipper)
        return (rows / rows.norm(dim=1).max()).nan_to_num(0.0, 0.0, 0.0).sum(dim=0) * clipper.bound


class ClipAfterMean(Engine):
    def total(self, rows, clipper):
        if not len(rows):
            return super().total(rows, clipper)
        return super().total(rows.nan_to_num(0.0, 0.0, 0.0).mean(dim=0, keepdim=True), clipper) * len(rows)


class BatchMedianBound(Engine):
    def total(self, rows, clipper):
        if not len(rows):
            return super().total(rows, clipper)
        return super().total(
            rows, FlatClipper(l2_clip_norm=float(rows.norm(dim=1).nan_to_num(1.0, 1.0).median()) + 1.0)
        )


class Unguarded(Engine):
    def total(self, rows, clipper):
        norms = rows.norm(dim=1)  # float32 squares overflow
        return ((clipper.bound / norms).clamp(max=1.0)[:, None] * rows).sum(dim=0)


class MaxNorm(Engine):
    def total(self, rows, clipper):
        factors = clipper.factors(rows.abs().amax(dim=1)) if len(rows) else torch.zeros(0)
        return (torch.where(factors[:, None] > 0, rows.double(), 0.0) * factors[:, None]).sum(dim=0).float()


class Unclipped(Engine):
    def total(self, rows, clipper):
        return rows.nan_to_num(0.0, 0.0, 0.0).sum(dim=0)


class CentredOnBatch(Engine):
    def total(self, rows, clipper):
        clean = rows.nan_to_num(0.0, 0.0, 0.0)
        return (
            super().total(clean - clean.mean(dim=0, keepdim=True), clipper)
            if len(rows)
            else super().total(rows, clipper)
        )


class DrawsClippedApart(Engine):
    """Every diffusion draw clipped on its own: K times the sensitivity."""

    def gradients(self, examples, draws):
        count = draws.time.shape[1]
        return torch.cat(
            [
                self.inner.per_row(examples, Draws(draws.time[:, k : k + 1], draws.noise[:, k : k + 1]))
                for k in range(count)
            ]
        )


class GhostForgetsBias(Engine):
    """Norm without one of the parameters: as a ghost engine that does not know a layer."""

    def total(self, rows, clipper):
        factors = clipper.factors(rows[:, : rows.shape[1] // 2].double().norm(dim=1)) if len(rows) else torch.zeros(0)
        return (torch.where(factors[:, None] > 0, rows.double(), 0.0) * factors[:, None]).nan_to_num(0.0).sum(0).float()


def mechanism(name="psasc"):
    clipper = make_clipper(name, bound=0.6)
    return Mechanism(sampler=Sampler(), clipper=clipper, noise_multiplier=1.3, unit="reading", relation="zero-out")


def blocks(model):
    lay = layout(model)
    return {n: slice(a, a + s.numel()) for n, a, s in zip(lay.names, lay.starts, lay.shapes, strict=True)}


def caught(wrap=lambda step: step, engine=None, rng_for=None, clipper="psasc"):
    """Names of the checks that fail for a step; `wrap` changes the whole step, `engine` its gradients."""
    torch.set_num_threads(1)
    model = VectorProbe(length=LENGTH, channels=CHANNELS, parts=PARTS)
    made, rows = mechanism(clipper), made_up(6, torch.Generator().manual_seed(1), length=LENGTH, channels=CHANNELS)
    built = engine(model, vector_loss) if engine else make_engine("ghost", model, vector_loss)
    step = wrap(production_step(built, made, denominator=DENOMINATOR))
    quiet = pick(rows, slice(0, 2))
    quiet[0].values.zero_()
    results = check_noise(
        step, rng_for=rng_for or (lambda client, round_: stream(3, "noise", client, round_)),
        stddev=1.3 * (0.6 / (0.5 if clipper == "psasc" else 1.0)) / DENOMINATOR, blocks=blocks(model),
        silent=[pick(rows, slice(0, 0)), quiet],
    )  # fmt: skip
    rows = made_up(6, torch.Generator().manual_seed(1), length=LENGTH, channels=CHANNELS)
    adversaries = adversarial_vectors(pick(rows, slice(5, 6)))
    bound = 0.6 / (0.5 if clipper == "psasc" else 1.0)
    results += check_sensitivity(step, bound=bound, denominator=DENOMINATOR, rows=rows, adversaries=adversaries)
    results.append(check_independence(step, denominator=DENOMINATOR, rows=rows))
    return {r.name for r in results if not r.passed}


@pytest.mark.parametrize("engine", [None, Engine, FunctionalEngine])
@pytest.mark.parametrize("clipper", ["flat", "psasc"])
def test_the_sound_step_raises_no_alarm(engine, clipper):
    assert caught(engine=engine, clipper=clipper) == set()


ENGINE_MUTANTS = {
    PerLayerClip: "sensitivity: add or remove",
    BatchMaximum: "sensitivity: add or remove",
    ClipAfterMean: "rows are independent",
    BatchMedianBound: "sensitivity: add or remove",
    Unguarded: "sensitivity: finite",
    MaxNorm: "sensitivity: add or remove",
    Unclipped: "sensitivity: add or remove",
    CentredOnBatch: "rows are independent",
    GhostForgetsBias: "sensitivity: add or remove",
}


@pytest.mark.parametrize("mutant", list(ENGINE_MUTANTS), ids=lambda m: m.__name__)
def test_defects_of_clipping_are_caught(mutant):
    assert ENGINE_MUTANTS[mutant] in caught(engine=mutant)


def test_clip_after_mean_breaks_the_bound_too():
    assert "sensitivity: add or remove" in caught(engine=ClipAfterMean, clipper="flat")


def test_draws_clipped_apart_are_caught():
    torch.manual_seed(0)
    model, made = randomised(Probe(), torch.Generator().manual_seed(0)), mechanism("auto-v")
    rows = made_up(3, torch.Generator().manual_seed(1), draws=4)
    step = production_step(DrawsClippedApart(model, probe_loss), made, denominator=DENOMINATOR)
    results = check_sensitivity(
        step, bound=0.6, denominator=DENOMINATOR, rows=rows,
        adversaries={"row": lambda batch: pick(rows, slice(2, 3))}, sizes=(0, 2),
    )  # fmt: skip
    assert not results[0].passed


def test_realised_batch_size_as_divisor_is_caught():
    def wrap(step):
        return lambda rows, rng: step(rows, rng) * DENOMINATOR / max(len(rows[0]), 1)

    assert {"sensitivity: add or remove", "rows are independent", "noise: size"} <= caught(wrap)


def test_psasc_whose_bound_is_called_c_is_caught(monkeypatch):
    monkeypatch.setattr(PsascClipper, "bound", property(lambda self: self.l2_clip_norm))
    assert "noise: size" in caught()


@pytest.mark.parametrize(
    ("stddev", "what"),
    [
        (lambda self: self.noise_multiplier, "misses C"),
        (lambda self: self.noise_multiplier * self.clipper.bound / 2, "halved"),
        (lambda self: self.noise_multiplier * self.clipper.bound / DENOMINATOR, "divided twice"),
        (lambda self: self.noise_multiplier**2 * self.clipper.bound, "variance for deviation"),
        (lambda self: 0.0 * self.noise_multiplier, "none"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_noise_of_the_wrong_size_is_caught(monkeypatch, stddev, what):
    monkeypatch.setattr(Mechanism, "stddev", property(stddev))
    assert "noise: size" in caught()


class Through:
    """A source of noise that changes what passes."""

    def __init__(self, rng, change):
        self.rng, self.change = rng, change

    def standard_normal(self, size):
        return self.change(self.rng.standard_normal(size))


def changed(change):
    return lambda step: lambda rows, rng: step(rows, rng if isinstance(rng, Silence) else Through(rng, change))


def one_layer_silent(x):
    return np.where(np.arange(len(x)) < len(x) // PARTS, 0.0, x)


def one_small_layer_weak(x):
    return np.where(np.arange(len(x)) < len(x) // PARTS, 0.5 * x, x)


NOISE_MUTANTS = {
    "one layer gets none": (one_layer_silent, "noise: each parameter"),
    "one layer gets half": (one_small_layer_weak, "noise: each parameter"),
    "uniform of the right variance": (lambda x: (np.argsort(np.argsort(x)) / len(x) - 0.5) * 12**0.5, "noise: normal"),
    "Laplace of the right variance": (
        lambda x: np.sign(x) * np.abs(x) ** 2 / 3**0.5 * np.sqrt(len(x) / ((x**4).sum() / 3)),
        "noise: normal",
    ),
    "one number for all": (lambda x: np.full(len(x), x[0]), "noise: unrelated neighbouring coordinates"),
    "repeated in blocks": (lambda x: np.repeat(x[: len(x) // 2], 2), "noise: unrelated neighbouring coordinates"),
}


@pytest.mark.parametrize("name", list(NOISE_MUTANTS))
def test_noise_of_the_wrong_kind_is_caught(name):
    change, check = NOISE_MUTANTS[name]
    assert check in caught(changed(change))


def test_a_seed_used_again_in_every_round_is_caught():
    assert "noise: unrelated rounds" in caught(rng_for=lambda client, round_: stream(3, "noise", client))


def test_a_seed_shared_by_clients_is_caught():
    assert "noise: unrelated clients" in caught(rng_for=lambda client, round_: stream(3, "noise", round_))


def test_a_seed_used_again_in_every_step_is_caught():
    def wrap(step):
        return lambda rows, rng: step(rows, stream(5, "noise") if isinstance(rng, np.random.Generator) else rng)

    assert "noise: unrelated steps of one round" in caught(wrap)


def test_an_empty_batch_that_is_skipped_is_caught():
    def wrap(step):
        return lambda rows, rng: step(rows, rng) if len(rows[0]) else torch.zeros(LENGTH * CHANNELS)

    assert "noise: size" in caught(wrap)
