"""What a worker computes with: its device, the model with its start values, and the engine of per-row gradients."""

from __future__ import annotations

import torch

from fedpriv.config import Scenario
from fedpriv.data.roster import roster
from fedpriv.data.windows import CALENDAR_FEATURES, day_steps
from fedpriv.errors import InputError
from fedpriv.mechanisms import make_recipe
from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import trainable_vector
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import GradientEngine, LossFn
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.hardened import GridEngine, check_rules, check_size
from fedpriv.privacy.recipe import Recipe
from fedpriv.seeding import stream, torch_generator


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU if there is one, else the CPU.

    Raises:
        InputError: a GPU was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"run.device={name!r} but this machine has no usable GPU; nothing was started.")
    return torch.device(name)


def build_model(scenario: Scenario, device: torch.device) -> Denoiser:
    """The denoiser with its start values, equal in every process of the same seed."""
    people = roster(scenario)
    return build_denoiser(
        scenario,
        channels=len(people.channels),
        calendar_features=CALENDAR_FEATURES,
        generator=torch_generator(stream(scenario.run.seed, "model")),
        period=day_steps(people.step),
    ).to(device)


def build_recipe(scenario: Scenario) -> Recipe | None:
    """The private step; None without privacy.

    Raises:
        InputError: a scenario whose noise was not resolved.
    """
    privacy = scenario.privacy
    if not privacy.enabled:
        return None
    if privacy.noise_multiplier is None and scenario.steps_total:
        raise InputError("privacy.noise_multiplier is not set; resolve the scenario first. Nothing was trained.")
    return make_recipe(scenario, privacy.noise_multiplier or 1.0)


def build_engine(
    scenario: Scenario, model: Denoiser, loss: LossFn, recipe: Recipe | None
) -> GradientEngine | GridEngine:
    """The engine of per-row gradients; with discrete noise one that rounds to its grid.

    Raises:
        InputError: discrete noise with rules or a number of parameters that it does not take.
    """
    privacy = scenario.privacy
    name = privacy.engine if recipe is None else recipe.rules.engine_name(privacy.engine)
    hardened = recipe is not None and privacy.noise == "discrete-gaussian"
    if hardened:
        check_rules(privacy.rules())
        check_size(len(trainable_vector(model)))
        name = "functional"
    engine = make_engine(
        name,
        model,
        loss,
        microbatch=privacy.microbatch,
        native=privacy.native,
        compile=privacy.compile,
        bf16=privacy.bf16,
    )
    if hardened:
        assert isinstance(engine, FunctionalEngine)
        return GridEngine(engine)
    return engine
