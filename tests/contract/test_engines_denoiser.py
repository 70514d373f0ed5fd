"""The gradient engines on the real model and loss, in every variant of what is trained."""

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.diffusion.schedule import make_schedule
from fedpriv.models.denoiser import build_denoiser
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine

FEATURES, CHANNELS = 5, 2
SMALL = {
    "task.context": 12, "task.horizon": 4, "model.width": 16, "model.depth": 2, "model.heads": 2, "model.patch": 2,
    "diffusion.multiplicity": 4,
}  # fmt: skip
VARIANTS = {
    "skip": {"model.trainable": "skip"},
    "all": {"model.trainable": "all"},
    "transformer": {"model.trainable": "transformer"},
    "modulation": {"model.trainable": "modulation"},
    "bias": {"model.trainable": "bias"},
    "depth 0": {"model.trainable": "all", "model.depth": 0},
    "dp-aware": {"model.trainable": "all", "model.modulation": "dp-aware"},
    "multiplicative": {"model.trainable": "all", "model.modulation": "dp-aware", "model.gamma_mode": "multiplicative"},
    "epsilon": {"model.trainable": "all", "diffusion.prediction": "epsilon"},
    "v": {"model.trainable": "all", "diffusion.prediction": "v"},
    "imputation": {"model.trainable": "all", "task.kind": "imputation"},
}


def setup(changes, noise=0.2):
    scenario = Scenario().override(SMALL | changes)
    model = build_denoiser(
        scenario, channels=CHANNELS, calendar_features=FEATURES, generator=torch.Generator().manual_seed(0)
    )
    model.run_transformer = scenario.model.depth > 0
    randomised(model, torch.Generator().manual_seed(1), noise)
    generator = torch.Generator().manual_seed(2)
    examples, _ = made_up(5, generator, length=16, channels=CHANNELS, features=FEATURES)
    draws = draw(examples, 4, make_schedule(scenario.diffusion), generator)
    return model, make_loss(scenario.diffusion), examples, draws


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_engines_agree_on_the_denoiser(variant, noise):
    torch.set_num_threads(1)
    model, loss, examples, draws = setup(VARIANTS[variant], noise)
    for name in ("flat", "auto-s", "psac", "psasc"):
        clipper = make_clipper(name, bound=0.3)
        want = make_engine("single", model, loss).clipped_sum(examples, draws, clipper)
        for engine in ("functional", "opacus", "ghost"):
            got = make_engine(engine, model, loss).clipped_sum(examples, draws, clipper)
            assert (got.total - want.total).norm() <= 1e-5 * want.total.norm(), (engine, name)
            assert torch.allclose(got.norms, want.norms, rtol=1e-5), (engine, name)


def test_auto_uses_the_fast_engine_for_the_denoiser():
    model, loss, _, _ = setup({"model.trainable": "all"})
    assert type(make_engine("auto", model, loss)).__name__ == "GhostEngine"
