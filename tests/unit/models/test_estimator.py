"""Sampling with what samples share computed once gives the denoiser's own numbers; guidance and its identities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedpriv.diffusion import point_forecast, sample
from fedpriv.diffusion.loss import repeat_rows
from fedpriv.errors import InputError
from fedpriv.models import build_denoiser
from fedpriv.models.dit import Attention, attend
from fedpriv.models.estimator import Estimator, Guidance, normalized_attention, without_context

COUNT = 3
DROPOUT = {"diffusion.condition_dropout": 0.1}


def _build(scenario, *, shake=0.2):
    model = build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(shake * torch.randn(p.shape, generator=g))
    return model


def _estimate(model, examples, x, time, **guidance):
    with torch.no_grad():
        return Estimator(model, examples, COUNT, Guidance(**guidance))(x, time)


def _plain(model, examples, x, time):
    """The denoiser's own estimate for every sample as a row of its own: [B, S, H, C]."""
    rows = torch.nn.functional.pad(x.flatten(0, 1), (0, 0, model.span.start, 0))
    with torch.no_grad():
        found = model(rows, torch.full((len(rows),), time), repeat_rows(examples, COUNT))
    return found[:, model.span].unflatten(0, (len(examples), COUNT))


CASES = [
    {"task.kind": "forecast", "model.attention": "prefix"},
    {"task.kind": "forecast", "model.attention": "full"},
    {"task.kind": "forecast", "task.context": 21, "task.horizon": 11},  # the horizon begins inside a token
    {"task.kind": "imputation"},
    {"task.kind": "mixed", "diffusion.prediction": "v"},
    {"task.kind": "forecast", "model.modulation": "dp-aware", "diffusion.prediction": "epsilon"},
    {"task.kind": "forecast", "model.depth": 0},
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("time", [0, 40, 99])
def test_it_says_what_the_denoiser_says(small, windows, case, time):
    scenario = small.override(case)
    model, examples = _build(scenario), windows(4, scenario)
    x = torch.randn(4, COUNT, scenario.task.window - model.span.start, 2)
    got, want = _estimate(model, examples, x, time), _plain(model, examples, x, time)
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_tokens_ahead_of_the_horizon_see_no_noise():
    layer = Attention(8, 2, prefix=3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 8)
    other = x.clone()
    other[:, 3:] = torch.randn(2, 2, 8)
    assert torch.equal(layer(x)[:, :3], layer(other)[:, :3])
    assert not torch.allclose(layer(x)[:, 3:], layer(other)[:, 3:])
    whole = Attention(8, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x)[:, 3:], whole(x)[:, 3:])  # the others see all, as before


def test_attend_is_scaled_dot_product_attention():
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    torch.testing.assert_close(attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))


# ---- guidance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forecast", "imputation"])
@pytest.mark.parametrize(
    "neutral", [{"scale": 1.0}, {"nag_scale": 1.0, "nag_alpha": 1.0}, {"nag_scale": 5.0, "nag_alpha": 0.0}]
)
def test_neutral_guidance_is_the_identity(small, windows, kind, neutral):
    scenario = small.override({"task.kind": kind})
    model, examples = _build(scenario), windows(4, scenario)
    x = torch.randn(4, COUNT, 32 - model.span.start, 2)
    assert torch.equal(_estimate(model, examples, x, 50, **neutral), _estimate(model, examples, x, 50))


@pytest.mark.parametrize("attention", ["prefix", "full"])
def test_classifier_free_guidance_follows_its_formula(small, windows, attention):
    scenario = small.override({"model.attention": attention})
    model, examples = _build(scenario), windows(4, scenario)
    x = torch.randn(4, COUNT, 8, 2)
    given, nothing = _plain(model, examples, x, 50), _plain(model, without_context(examples), x, 50)
    assert (given - nothing).abs().max() > 0.1
    for scale in (0.0, 0.5, 1.0, 3.0):
        want = nothing + scale * (given - nothing)
        torch.testing.assert_close(_estimate(model, examples, x, 50, scale=scale), want, rtol=1e-4, atol=1e-4)


def test_scale_zero_knows_nothing_of_what_is_given(small, windows):
    model, examples = _build(small), windows(4, small)
    other = replace(examples, values=torch.where(examples.given, torch.randn(4, 32, 2), examples.values))
    x = torch.randn(4, COUNT, 8, 2)
    a, b = (_estimate(model, e, x, 50, scale=0.0, nag_scale=3.0) for e in (examples, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_attention_guidance_follows_its_formula(norm):
    g = Guidance(nag_scale=5.0, nag_tau=2.5, nag_alpha=0.25, nag_norm=norm)
    plus, minus = torch.randn(2, 3, 7, 16)
    order = 1 if norm == "l1" else 2
    for z, p, m in zip(
        normalized_attention(plus, minus, g).flatten(0, 1), plus.flatten(0, 1), minus.flatten(0, 1), strict=True
    ):
        tilde = p + 4.0 * (p - m)  # phi = s - 1
        ratio = tilde.norm(p=order) / p.norm(p=order)
        hat = min(float(ratio), 2.5) / ratio * tilde
        torch.testing.assert_close(z, 0.25 * hat + 0.75 * p)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_attention_guidance_is_bounded_and_has_its_identities(norm):
    plus, minus = torch.randn(2, 5, 16)
    order = 1 if norm == "l1" else 2
    strong = normalized_attention(plus, minus, Guidance(nag_scale=50.0, nag_alpha=1.0, nag_norm=norm))
    assert (strong.norm(p=order, dim=-1) <= 2.5 * plus.norm(p=order, dim=-1) * (1 + 1e-5)).all()
    for g in (Guidance(nag_scale=1.0, nag_norm=norm), Guidance(nag_scale=7.0, nag_norm=norm)):
        same = minus if g.nag_scale == 1.0 else plus  # s = 1 whatever Z- is; any s where Z- = Z+
        torch.testing.assert_close(normalized_attention(plus, same, g), plus)
    for p, m in ((torch.zeros(2, 4), torch.zeros(2, 4)), (torch.zeros(2, 4), torch.ones(2, 4))):
        assert torch.equal(normalized_attention(p, m, Guidance(nag_scale=5.0, nag_norm=norm)), p)


def test_attention_guidance_acts_and_is_off_where_both_views_agree(small, windows):
    model, examples = _build(small), windows(4, small)
    x = torch.randn(4, COUNT, 8, 2)
    plain = _estimate(model, examples, x, 50)
    assert (_estimate(model, examples, x, 50, nag_scale=5.0) - plain).abs().max() > 1e-3
    blind = without_context(examples)
    got = _estimate(model, blind, x, 50, nag_scale=5.0)
    torch.testing.assert_close(got, _estimate(model, blind, x, 50), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"diffusion.guidance": 2.0}, {"diffusion.nag_scale": 4.0}, {"diffusion.guidance": 0.0}]
)
@pytest.mark.parametrize("trainable", ["skip", "all"])
@pytest.mark.parametrize("kind", ["forecast", "imputation"])
def test_guided_samples_keep_what_is_given_and_their_seed(small, windows, changes, trainable, kind):
    scenario = small.override(changes | DROPOUT | {"model.trainable": trainable, "task.kind": kind})
    model, examples = _build(scenario), windows(3, scenario)

    def draw(diffusion):
        return sample(model, examples, count=4, diffusion=diffusion, generator=torch.Generator().manual_seed(5))

    drawn = draw(scenario.diffusion)
    read = (examples.values * examples.scale + examples.loc).expand(drawn.shape)
    given = examples.given.expand(drawn.shape)
    assert torch.isfinite(drawn).all() and torch.equal(drawn[given], read[given])
    assert torch.equal(drawn, draw(scenario.diffusion))
    plain = small.override({"task.kind": kind, "model.trainable": trainable}).diffusion
    differs = not torch.equal(drawn, draw(plain))
    assert differs == (trainable == "all" or "diffusion.guidance" in changes)  # no attention without a transformer
    # the point forecast is the conditional mean, guided or not
    assert torch.equal(point_forecast(model, examples, scenario.diffusion), point_forecast(model, examples, plain))


def test_guidance_needs_a_model_that_has_seen_nothing_given(small):
    for changes in ({"diffusion.guidance": 2.0}, {"diffusion.nag_scale": 5.0}, {"diffusion.guidance": 0.0}):
        with pytest.raises(InputError, match=r"train with diffusion\.condition_dropout"):
            small.override(changes)
        assert small.override(changes | DROPOUT)
