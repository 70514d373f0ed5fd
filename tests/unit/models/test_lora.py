"""Low-rank adapters: zero at the start, merged into what is saved, and refused where they would be dead."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fedpriv.diffusion import draw, make_loss, make_schedule
from fedpriv.errors import InputError
from fedpriv.models import build_denoiser, load_weights, save_weights, trainable_names, trainable_vector
from fedpriv.models.parameters import AdaptedLinear, load_trainable, merged_parameters


def _build(scenario, seed=1):
    return build_denoiser(scenario, channels=2, calendar_features=3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def warm(small, tmp_path):
    """A scenario that adapts a trained model, and that model."""
    path = tmp_path / "start.safetensors"
    model = _build(small)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    save_weights(model, path)
    return small.override({"model.warm_start": str(path), "model.trainable": "lora", "model.lora_rank": 2}), model


def _forward(model, examples):
    g = torch.Generator().manual_seed(0)
    x, time = torch.randn(examples.values.shape, generator=g), torch.full((len(examples),), 50)
    with torch.no_grad():
        return model(x, time, examples)


def test_adapters_start_as_the_model_they_adapt(warm, windows):
    scenario, model = warm
    adapted, examples = _build(scenario), windows(3, scenario)
    torch.testing.assert_close(_forward(adapted, examples), _forward(model, examples), rtol=1e-5, atol=1e-6)
    names = dict(trainable_names(adapted))
    assert names["transformer.blocks.0.attention.qkv.adapter.down.weight"] == (2, 16)
    assert names["transformer.blocks.1.mlp.second.adapter.up.weight"] == (16, 2)
    assert len([n for n in names if ".adapter." in n]) == 2 * 4 * 2  # blocks, layers, factors
    assert {n for n in names if ".adapter." not in n} == {"transformer.output.weight", "transformer.output.bias"}
    assert trainable_vector(adapted).numel() < trainable_vector(model).numel() / 5


def test_all_adapters_learn(warm, windows):
    scenario, _ = warm
    model, examples = _build(scenario), windows(8, scenario)
    draws = draw(examples, 4, make_schedule(scenario.diffusion), torch.Generator().manual_seed(0))
    make_loss(scenario.diffusion)(model, examples, draws).sum().backward()
    for name, p in model.named_parameters():
        if name.endswith(".adapter.up.weight"):
            assert p.grad is not None and p.grad.abs().max() > 0, name
        if not p.requires_grad:
            assert p.grad is None, name


def test_merged_weights_are_those_of_a_plain_model(warm, small, windows, tmp_path):
    scenario, _ = warm
    adapted, examples = _build(scenario), windows(3, scenario)
    load_trainable(adapted, 0.3 * torch.randn(trainable_vector(adapted).numel()))
    path = tmp_path / "merged.safetensors"
    save_weights(adapted, path)
    plain = _build(small, seed=9)
    assert load_file(path).keys() == dict(plain.named_parameters()).keys() == merged_parameters(adapted).keys()
    load_weights(plain, path)
    torch.testing.assert_close(_forward(plain, examples), _forward(adapted, examples), rtol=1e-4, atol=1e-4)


def test_adapters_on_a_new_transformer_are_refused(small):
    with pytest.raises(InputError, match=r"its gates are closed .* model\.warm_start\. The model was not built"):
        _build(small.override({"model.trainable": "lora"}))
    with pytest.raises(InputError, match="there is no transformer"):
        small.override({"model.trainable": "lora", "model.depth": 0})


def test_the_rank_is_at_most_that_of_the_layer():
    layer = torch.nn.Linear(3, 5)
    adapted = AdaptedLinear.of(layer, 64, torch.Generator().manual_seed(0))
    assert adapted.adapter.down.weight.shape == (3, 3) and adapted.weight is layer.weight
