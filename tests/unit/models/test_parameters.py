"""Which parameters are trained, their flat vector, and weights on disk."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedpriv.diffusion import draw, make_loss, make_schedule
from fedpriv.errors import InputError
from fedpriv.models import (
    build_denoiser,
    load_trainable,
    load_weights,
    save_weights,
    trainable_names,
    trainable_vector,
)
from fedpriv.models.parameters import is_conditioning


def _build(scenario, seed=1):
    return build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(seed))


def test_the_skip_is_small(small):
    model = _build(small.override({"model.trainable": "skip"}))
    assert trainable_names(model) == [
        ("skip.linear.weight", (8, 24)),
        ("skip.linear.bias", (8,)),
        ("log_scale.raw", (8,)),
    ]
    assert trainable_vector(model).shape == (8 * 24 + 8 + 8,)


@pytest.mark.parametrize("which", ["all", "skip", "transformer", "modulation", "bias"])
def test_vector_round_trip(small, which):
    scenario = small.override({"model.trainable": which})
    model, other = _build(scenario), _build(scenario, seed=2)
    frozen = {n: p.clone() for n, p in other.named_parameters() if not p.requires_grad}
    vector = torch.randn(trainable_vector(model).numel())
    load_trainable(other, vector)
    assert torch.equal(trainable_vector(other), vector)
    assert all(torch.equal(dict(other.named_parameters())[n], p) for n, p in frozen.items())
    names = [n for n, _ in trainable_names(model)]
    assert names == [n for n, p in model.named_parameters() if p.requires_grad] != []


def test_groups_are_what_they_say(small):
    def names(which):
        return {n for n, _ in trainable_names(_build(small.override({"model.trainable": which})))}

    everything = names("all")
    assert names("skip") | names("transformer") == everything
    assert not names("skip") & names("transformer")
    assert all(n.endswith(".bias") for n in names("bias"))
    modulation = names("modulation")
    assert {n for n in modulation if ".blocks." in n} == {
        n for n in everything if ".blocks." in n and "modulation" in n
    }
    conditioning = {n for n in everything if is_conditioning(n)}
    assert {n for n in modulation if "modulation" in n} < conditioning < everything


@pytest.mark.parametrize("which", ["all", "skip", "transformer", "modulation", "bias"])
def test_no_group_is_dead_at_the_start(small, windows, which):
    scenario = small.override({"model.trainable": which})
    model, examples = _build(scenario), windows(8, scenario)
    draws = draw(examples, 4, make_schedule(scenario.diffusion), torch.Generator().manual_seed(0))
    make_loss(scenario.diffusion)(model, examples, draws).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("length", [0, 207, 209])
def test_a_vector_of_another_length_is_refused_and_changes_nothing(small, length):
    model = _build(small.override({"model.trainable": "skip"}))
    before = trainable_vector(model)
    with pytest.raises(InputError, match=f"{length}.* trains 208 parameters"):
        load_trainable(model, torch.ones(length))
    assert torch.equal(trainable_vector(model), before)


def test_warm_start_round_trip(small, tmp_path):
    path = tmp_path / "start.safetensors"
    model = _build(small)
    load_trainable(model, torch.randn(trainable_vector(model).numel()))
    save_weights(model, path)
    warm = _build(small.override({"model.warm_start": str(path), "model.trainable": "skip"}), seed=3)
    assert warm.run_transformer  # its output is no longer known to be zero
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), warm.parameters(), strict=True))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda w: w.pop("skip.linear.bias"), "skip.linear.bias is missing"),
        (lambda w: w.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda w: w.update({"skip.linear.bias": torch.ones(3)}), r"shape \(3,\), not \(8,\)"),
        (lambda w: w["skip.linear.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused(small, tmp_path, damage, words):
    path = tmp_path / "start.safetensors"
    save_weights(_build(small), path)
    weights = load_file(path)
    damage(weights)
    save_file(weights, path)
    with pytest.raises(InputError, match=words):
        load_weights(_build(small), path)


def test_a_missing_or_foreign_warm_start_is_refused(small, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        _build(small.override({"model.warm_start": str(tmp_path / "none.safetensors")}))
    (tmp_path / "text").write_text("not weights, but long enough to hold a header")
    with pytest.raises(InputError, match="cannot be read"):
        _build(small.override({"model.warm_start": str(tmp_path / "text")}))
