"""The linear skip: what it reads, and that its few parameters reach what they are meant to reach."""

from __future__ import annotations

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.models.denoiser import SEASON_WEIGHT, LinearSkip, build_denoiser, cosines
from fedpriv.models.parameters import trainable_names, trainable_vector


def skip(inputs: int = 72, outputs: int = 24, *, period: int = 24, rank: int = 0, memory: float = 0.0) -> LinearSkip:
    generator = torch.Generator().manual_seed(0)
    return LinearSkip(inputs, outputs, rank=rank, memory=memory, period=period, generator=generator)


def test_it_is_zero_at_the_start():
    assert not skip()(torch.randn(3, 2, 72)).any()


@pytest.mark.parametrize(("period", "outputs"), [(24, 24), (24, 30), (12, 24)])
def test_each_season_weight_reads_the_same_phase_that_many_seasons_ago(period, outputs):
    layer = skip(outputs=outputs, period=period)
    assert layer.seasons is not None and layer.seasons.in_features == 72 // period
    step = torch.arange(72.0).expand(1, 1, 72)
    for ago in range(72 // period):
        with torch.no_grad():
            layer.seasons.weight.zero_()
            layer.seasons.weight[0, ago] = 1.0
        read = layer(step)[0, 0] / SEASON_WEIGHT
        wanted = 72 + torch.arange(outputs) % period - period * (ago + 1)
        assert torch.equal(read, wanted.float())


def test_without_a_season_inside_the_context_there_are_no_season_weights():
    assert skip(inputs=12, period=24).seasons is None
    assert skip(period=0).seasons is None


def test_full_rank_without_memory_can_copy_any_step():
    layer = skip(rank=0, period=0)
    with torch.no_grad():
        layer.linear.weight.zero_()
        layer.linear.weight[:, 48:] = layer.basis  # basis is orthogonal: this is "copy yesterday"
    seen = torch.randn(2, 1, 72)
    assert torch.allclose(layer(seen), seen[..., 48:], atol=1e-5)


def test_cosines_are_orthonormal():
    table = cosines(24, 24)
    assert torch.allclose(table @ table.T, torch.eye(24), atol=1e-6)
    assert torch.allclose(cosines(24, 5), table[:5])


def test_a_day_of_the_data_is_the_season_of_the_model():
    def build(period: int, **changes: object):
        scenario = Scenario().override({"model.depth": 0, **changes})
        generator = torch.Generator().manual_seed(0)
        return build_denoiser(scenario, channels=1, calendar_features=3, generator=generator, period=period)

    names = dict(trainable_names(build(24)))
    assert names["skip.seasons.weight"] == (1, 7)
    assert trainable_vector(build(24)).numel() == 8 * 168 + 8 + 7 + 24
    assert "skip.seasons.weight" not in dict(trainable_names(build(0)))
    assert dict(trainable_names(build(24, **{"task.period": 84})))["skip.seasons.weight"] == (1, 2)
    assert "skip.seasons.weight" not in dict(trainable_names(build(24, **{"task.kind": "imputation"})))
