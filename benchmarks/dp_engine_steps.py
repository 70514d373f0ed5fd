"""The steps that `dp_engine.py` times: one model and batch, and every way to a clipped gradient sum."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from dp_accounting import dp_event
from torch import Tensor, nn

from fedpriv.config import OptimizerConfig, Scenario
from fedpriv.diffusion.loss import make_loss
from fedpriv.examples import Draws, Examples
from fedpriv.models.denoiser import build_denoiser
from fedpriv.privacy.audit.probe import made_up, randomised
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.optimizers import make_optimizer
from fedpriv.products import matrix_products
from fedpriv.seeding import keyed_stream

CHANNELS, FEATURES, WINDOW = 7, 7, 96
OWN = ("ghost", "native", "compiled", "functional", "single")
OPACUS = ("opacus-hooks", "opacus-functorch", "opacus-ghost", "opacus-fast")
WHOLE = ("whole-ghost", "whole-native")  # with noise and optimiser
ONEDNN = ("onednn-non-private", "onednn-ghost", "onednn-native")  # with run.products=onednn
ENGINES = (*OWN, *ONEDNN, *OPACUS, *WHOLE)
BASE, WHOLE_BASE = "non-private", "whole-non-private"
Step = Callable[[], object]


@dataclass(frozen=True)
class Cell:
    """One setting. `draws` diffusion times per window; patch 1, 4, 8: 96, 24, 12 tokens."""

    patch: int
    width: int = 64
    batch: int = 64
    draws: int = 1
    threads: int = 1
    microbatch: int = 0


@dataclass(frozen=True)
class Task:
    """Model, loss and one batch of a cell."""

    model: nn.Module
    loss: Callable[[nn.Module, Examples, Draws], Tensor]
    examples: Examples
    draws: Draws


def make_task(cell: Cell, *, rows: int = 0) -> Task:
    """The transformer of the cell with all its layers awake, and made-up windows (`rows` of them, or the batch)."""
    scenario = Scenario().override(
        {
            "task.context": 72,
            "task.horizon": 24,
            "model.patch": cell.patch,
            "model.width": cell.width,
            "model.trainable": "all",
            "diffusion.multiplicity": cell.draws,
        }
    )
    generator = torch.Generator().manual_seed(0)
    model = build_denoiser(scenario, channels=CHANNELS, calendar_features=FEATURES, generator=generator)
    randomised(model, generator, 0.02)
    shapes = {"length": WINDOW, "channels": CHANNELS, "features": FEATURES}
    examples, draws = made_up(rows or cell.batch, generator, draws=cell.draws, times=scenario.diffusion.steps, **shapes)
    return Task(model, make_loss(scenario.diffusion), examples, draws)


def make_step(name: str, cell: Cell, task: Task) -> Step:
    """The named step as a function without arguments."""
    if name == BASE:
        return _non_private(task)
    if name in ONEDNN:
        return _onednn(make_step(name.removeprefix("onednn-"), cell, task))
    if name.startswith("whole-"):
        return _whole(name.removeprefix("whole-"), cell, task)
    if name.startswith("opacus-"):
        return _opacus(name.removeprefix("opacus-"), task)
    return _private(name, cell, task)


def steps(names: Sequence[str], cell: Cell) -> dict[str, Step]:
    """The yardsticks that the names need, then the names."""
    task = make_task(cell)
    bases = [BASE] + [WHOLE_BASE] * any(name.startswith("whole-") for name in names)
    # Opacus' hooks stay on a model, so it gets one of its own.
    return {name: make_step(name, cell, make_task(cell) if name in OPACUS else task) for name in (*bases, *names)}


def _non_private(task: Task) -> Step:
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(task.loss(task.model, task.examples, task.draws).mean(), parameters)


def _onednn(step: Step) -> Step:
    def run() -> object:
        with matrix_products("onednn"):
            return step()

    return run


def _private(name: str, cell: Cell, task: Task) -> Step:
    options: dict[str, bool] = {"native": True} if name == "native" else {"compile": True} if name == "compiled" else {}
    kind = "ghost" if options else name
    rows = cell.microbatch or (cell.batch if name == "compiled" else 0)  # no filling up
    engine = make_engine(kind, task.model, task.loss, microbatch=rows, **options)
    clipper = make_clipper("flat", bound=1.0)
    return lambda: engine.clipped_sum(task.examples, task.draws, clipper)


class _Sampler:
    def amplify(self, inner: object, unit: object, relation: object) -> object:
        """Poisson sampling, for the event only."""
        return dp_event.PoissonSampledDpEvent(0.1, inner)


def _whole(name: str, cell: Cell, task: Task) -> Step:
    """Gradient, noise and the flat optimiser, which is the same for both."""
    flat = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    optimizer = make_optimizer(OptimizerConfig(name="adam", learning_rate=1e-9), unit=1.0)
    if name == "non-private":
        plain = _non_private(task)

        def non_private() -> object:
            grads = plain()
            assert isinstance(grads, tuple)
            return optimizer.step(flat, torch.cat([g.flatten() for g in grads]))

        return non_private
    clipper = make_clipper("flat", bound=1.0)
    mechanism = Mechanism(sampler=_Sampler(), clipper=clipper, noise_multiplier=1.0, unit="reading", relation="")
    engine = make_engine("ghost", task.model, task.loss, microbatch=cell.microbatch, native=name == "native")
    rng = keyed_stream(0, "noise", fast=name == "native")

    def private() -> object:
        clipped = engine.clipped_sum(task.examples, task.draws, clipper)
        return optimizer.step(flat, mechanism.release(clipped, denominator=float(cell.batch), rng=rng).grad)

    return private


def _opacus(mode: str, task: Task) -> Step:
    """Opacus with its hooks left in place, and the clipping that its optimisers do."""
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    options = {"loss_reduction": "sum", "strict": False}
    if mode in ("hooks", "functorch"):
        module = GradSampleModule(task.model, force_functorch=mode == "functorch", **options)
        return lambda: _stored(module, task)
    fast = GradSampleModuleFastGradientClipping(
        task.model, max_grad_norm=1.0, use_ghost_clipping=mode == "ghost", **options
    )
    return lambda: _twice(fast, task)


def _stored(module: nn.Module, task: Task) -> list[Tensor]:
    """`DPOptimizer.clip_and_accumulate`."""
    task.loss(module, task.examples, task.draws).sum().backward()
    samples = [p.grad_sample for p in task.model.parameters() if p.requires_grad]  # pyright: ignore
    norms = torch.stack([g.reshape(len(g), -1).norm(2, dim=-1) for g in samples], dim=1).norm(2, dim=1)
    factors = (1.0 / (norms + 1e-6)).clamp(max=1.0)
    total = [torch.einsum("i,i...", factors, g) for g in samples]
    for p in task.model.parameters():
        p.grad_sample, p.grad = None, None  # pyright: ignore
    return total


def _twice(module: nn.Module, task: Task) -> list[Tensor | None]:
    """`DPTensorFastGradientClipping.backward`: norms in a first backward pass, the weighted loss in a second."""
    losses = task.loss(module, task.examples, task.draws)
    losses.sum().backward(retain_graph=True)
    factors = module.get_clipping_coef()  # pyright: ignore
    for p in task.model.parameters():
        p.grad = None
    module.disable_hooks()  # pyright: ignore
    (factors * losses).sum().backward()
    module.enable_hooks()  # pyright: ignore
    total = [p.grad for p in task.model.parameters()]
    for p in task.model.parameters():
        p.grad, p.grad_sample, p._norm_sample = None, None, None  # pyright: ignore
    return total
