"""The gradient engines on the real model and loss, in every variant of what is trained."""

import pytest
import torch

from fedpriv.config import Scenario
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.diffusion.schedule import make_schedule
from fedpriv.models.denoiser import build_denoiser
from fedpriv.models.parameters import save_weights
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.ghost import GhostEngine
from fedpriv.privacy.engines.recording import owners

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
    "full attention": {"model.trainable": "all", "model.attention": "full"},
    "lora": {"model.trainable": "lora", "model.lora_rank": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights to start from: adapters have no gradient on a new transformer."""
    scenario = Scenario().override(SMALL | {"model.trainable": "all"})
    model = build_denoiser(
        scenario, channels=CHANNELS, calendar_features=FEATURES, generator=torch.Generator().manual_seed(0)
    )
    path = tmp_path_factory.mktemp("trained") / "start.safetensors"
    save_weights(randomised(model, torch.Generator().manual_seed(1), 0.2), path)
    return {"model.warm_start": str(path)}


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
def test_engines_agree_on_the_denoiser(variant, noise, trained):
    torch.set_num_threads(1)
    start = trained if variant == "lora" else {}
    model, loss, examples, draws = setup(VARIANTS[variant] | start, noise)
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


@pytest.mark.parametrize("which", ["skip", "transformer", "modulation", "bias", "lora"])
def test_the_ghost_engine_computes_nothing_for_what_is_frozen(which, trained):
    """Owners are the trained layers alone, and what lies ahead of the first of them is outside the graph."""
    model, loss, examples, draws = setup({"model.trainable": which} | trained)
    engine = GhostEngine(model, loss, check=False)
    owned = {name for owner in owners(model) for name in owner.full_names}
    assert owned == {name for name, p in model.named_parameters() if p.requires_grad}
    graph: dict[str, bool] = {}
    watched = {"embed": model.transformer.embed, "first": model.transformer.blocks[0].attention.qkv}
    hooks = [
        m.register_forward_hook(lambda _, a, out, n=n: graph.update({n: out.requires_grad})) for n, m in watched.items()
    ]
    engine.clipped_sum(examples, draws, make_clipper("flat", bound=1.0))
    for hook in hooks:
        hook.remove()
    assert (
        graph
        == {
            "skip": {"embed": False, "first": False},
            "transformer": {"embed": True, "first": True},
            "modulation": {"embed": False, "first": True},
            "bias": {"embed": True, "first": True},
            "lora": {"embed": False, "first": True},
        }[which]
    )
    assert all(p.grad is None for p in model.parameters())
