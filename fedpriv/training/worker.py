"""The worker of a scenario: trains and evaluates any of its clients, and makes their releases.

`LocalWorker` holds what does not change during a run (model, gradient engine, mechanism), so that a process
builds it once and trains any number of clients with it. Nothing in it survives a round: the same parameters,
client and round give the same result in every process.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedpriv import evaluation
from fedpriv.coherence import Coherence
from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.clients import held_of, load_client, owners
from fedpriv.data.roster import roster
from fedpriv.data.tasks import drop_context, make_examples, task_masks
from fedpriv.data.windows import cut, day_steps
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.models.parameters import (
    is_conditioning,
    load_trainable,
    trainable_vector,
)
from fedpriv.models.reference import OneRound, make_one_round
from fedpriv.privacy.clippers import FlatClipper
from fedpriv.privacy.diagnostics import GradientProbe, Snapshot
from fedpriv.privacy.engines.base import layout
from fedpriv.privacy.engines.plain import plain_mean
from fedpriv.privacy.optimizers import make_optimizer
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.products import matrix_products
from fedpriv.releases import (
    make_count,
    make_metrics,
    make_statistics,
    statistics_mechanism,
)
from fedpriv.schedule import make_schedule
from fedpriv.seeding import PrivacyRng, stream, torch_generator
from fedpriv.training.commitments import Commitments
from fedpriv.training.learning_rate import LearningRate
from fedpriv.training.machinery import build_engine, build_model, build_recipe, pick_device
from fedpriv.training.streams import Mode, Streams

Vector = NDArray[np.float32]
P = ParamSpec("P")
R = TypeVar("R")

_workers: OrderedDict[str, LocalWorker] = OrderedDict()
_MAX_WORKERS = 4


@dataclass(frozen=True)
class Trained:
    """What a client's steps lead to: releases, and functions of releases.

    Attributes:
        parameters: [P] float32.
        rule_state: what the privacy rules remember, float32; None when they keep nothing.
    """

    parameters: Vector
    rule_state: Vector | None = None


def _products(method: Callable[Concatenate[LocalWorker, P], R]) -> Callable[Concatenate[LocalWorker, P], R]:
    """Runs a method with the scenario's library of matrix products."""

    @wraps(method)
    def run(self: LocalWorker, *args: P.args, **kwargs: P.kwargs) -> R:
        with matrix_products(self.scenario.run.products, self.device):
            return method(self, *args, **kwargs)

    return run


class LocalWorker:
    """Trains and evaluates any client of one scenario in this process."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.device = pick_device(scenario.run.device)
        self.model = build_model(scenario, self.device)
        self._initial = trainable_vector(self.model).numpy().copy()
        period = scenario.task.period or day_steps(roster(scenario).step)
        kind = scenario.model.statistics
        self.one_round: OneRound | None = make_one_round(scenario, kind, period=period) if kind else None
        self._loss = make_loss(scenario.diffusion)
        self._schedule = make_schedule(scenario.diffusion)
        self._layout = layout(self.model)
        self._recipe = build_recipe(scenario)
        self._engine = build_engine(scenario, self.model, self._loss, self._recipe)
        self.commitments = Commitments(scenario, self._recipe)
        self._rate = LearningRate(scenario, self._recipe)
        self._sampler = RandomPhaseTiling(scenario.task.window, scenario.privacy.sampling_prob)
        self._probe: GradientProbe | None = None

    @classmethod
    def for_scenario(cls, scenario: Scenario) -> LocalWorker:
        """The worker of this scenario, built once per process."""
        key = f"{scenario.digest()}|{scenario.data.dir}|{scenario.run.device}"
        found = _workers.get(key)
        if found is None:
            found = _workers[key] = cls(scenario)
            if len(_workers) > _MAX_WORKERS:
                _workers.popitem(last=False)
        return found

    @property
    def num_parameters(self) -> int:
        """Length of the vector that is trained and sent, P."""
        return len(self._initial)

    def initial_parameters(self) -> Vector:
        """[P] start values, equal in every process of the same seed."""
        return self._initial.copy()

    # ---- the one-round model ------------------------------------------------------------------

    def release_statistics(self, client: str, *, mode: Mode) -> Vector:
        """[n] float32: the noised sum over a client's windows; paid for before. Reads private rows."""
        assert self.one_round is not None
        data = self._private_rows(client, mode)
        streams = Streams(mode, self.scenario.run.seed, client, 0)
        noise, masks = streams("statistics"), streams("statistics-masks")
        return make_statistics(self.one_round, data, self.scenario, rng=noise, masks=masks).numpy()

    def fit_reference(self, released: Sequence[Vector]) -> Vector:
        """[n] float32 state of the one-round model, from what the clients released, in a fixed order.

        Raises:
            InputError: vectors that do not fit, or a fit that is none.
        """
        assert self.one_round is not None
        total = self.one_round.baseline.aggregate([torch.from_numpy(v.copy()).double() for v in released])
        stddev = statistics_mechanism(self.scenario).stddev * math.sqrt(len(released))
        return self.one_round.fit(total, stddev=stddev).numpy()

    def set_reference(self, state: Vector | None) -> None:
        """Makes the model one of the residual to this fitted one-round model; None where the scenario has none.

        Raises:
            InputError: a state that is missing, not wanted, or of no model.
        """
        if (state is None) != (self.one_round is None):
            raise InputError(
                f"the scenario {'fits no' if self.one_round is None else 'needs a'} one-round model, and "
                f"{'none' if state is None else 'one'} came; nothing was computed."
            )
        if state is None or self.one_round is None:
            return
        current = self.model.reference
        if current is None or not np.array_equal(current.state.numpy(), state):
            self.model.reference = self.one_round.restore(torch.from_numpy(state.copy()))

    def initial_rule_state(self) -> Vector | None:
        """What the privacy rules remember before the first step: public. None when they keep nothing."""
        state = self._recipe.initial_state(self.num_parameters) if self._recipe else None
        return None if state is None else state.numpy().copy()

    @property
    def rule_state_size(self) -> int:
        """Numbers that the privacy rules remember from step to step."""
        kept = self._recipe.state_layout(self.num_parameters) if self._recipe else None
        return 0 if kept is None else kept.size

    @_products
    def train(
        self,
        client: str,
        parameters: Vector,
        *,
        round: int,
        steps: int,
        mode: Mode,
        rule_state: Vector | None = None,
        reference: Vector | None = None,
    ) -> Trained:
        """`steps` private steps on the client's training part, from `parameters` [P].

        The caller has reserved the steps in the client's ledger before: this reads private rows.

        Args:
            client: whose data.
            parameters: [P] where to begin.
            round: 1, 2, ...; with it the steps' place in the run.
            steps: to take.
            mode: simulation (seeded streams) or deployment.
            rule_state: what the privacy rules remember, as the server has it; None when they keep nothing.
            reference: the fitted one-round model, where the scenario has one.

        Raises:
            InputError: a rule state that is not of these rules, or a reference that is not the scenario's.
        """
        self.set_reference(reference)
        data = self._private_rows(client, mode)
        streams = Streams(mode, self.scenario.run.seed, client, round, fast=self.scenario.privacy.native)
        generator = torch_generator(streams("diffusion"))
        task_rng, noise_rng = streams("task"), streams("noise")
        span = {"num_meters": data.num_meters, "start": data.train.start, "stop": data.train.stop}
        denominator = self._sampler.expected_batch_size(**span)
        sizes = tuple(shape.numel() for shape in self._layout.shapes)
        optimizer = make_optimizer(self._rate.optimizer_config(round), unit=self._rate.unit, sizes=sizes)
        vector = torch.from_numpy(parameters.copy()).to(self.device)
        state = None if rule_state is None else torch.from_numpy(rule_state.copy()).to(self.device)
        first = (round - 1) * self.scenario.federation.local_steps
        batches = self._sampler.batches(**span, steps=steps, rng=streams("sampling"))
        for step, tiles in enumerate(batches, start=first):
            load_trainable(self.model, vector)
            examples, coherence = self._examples(data, tiles.meter, tiles.start, task_rng)
            draws = self._draws(examples, coherence, generator)
            if self._recipe is not None:
                done = self._recipe.run(
                    self._engine,
                    examples,
                    draws,
                    params=vector,
                    state=state,
                    step=step,
                    denominator=denominator,
                    layout=self._layout,
                    rng=noise_rng,
                )
                grad, state = self._rate.in_units(done.grad, done.bound), done.state
            else:
                grad = self._plain_gradient(examples, draws)
            stepped = optimizer.step(vector, grad)
            vector = vector.lerp(stepped, self._rate.warmth(step))  # every step is linear in its learning rate
        return Trained(vector.cpu().numpy(), None if state is None else state.cpu().numpy())

    def diagnostic_batch(self, client: str, *, round: int) -> tuple[Examples, Draws]:
        """One step's private rows, by random streams of their own: a run is the same with and without diagnostics."""
        data, seed = load_client(self.scenario, client), self.scenario.run.seed
        rng = [stream(seed, f"diagnostics-{what}", client, round) for what in ("sampling", "task", "diffusion")]
        span = {"num_meters": data.num_meters, "start": data.train.start, "stop": data.train.stop}
        (tiles,) = self._sampler.batches(**span, steps=1, rng=rng[0])
        examples, coherence = self._examples(data, tiles.meter, tiles.start, rng[1])
        return examples, self._draws(examples, coherence, torch_generator(rng[2]))

    @_products
    def diagnose(self, client: str, parameters: Vector, *, round: int) -> Snapshot:
        """Gradient diagnostics at `parameters`, of one step's rows. Raw, without noise: in simulation only."""
        if self._probe is None:
            engine = self.scenario.privacy.engine
            self._probe = GradientProbe(
                self.model,
                self._loss,
                conditioning=is_conditioning,
                engine=engine,
                microbatch=self.scenario.privacy.microbatch,
            )
        load_trainable(self.model, torch.from_numpy(parameters.copy()).to(self.device))
        examples, draws = self.diagnostic_batch(client, round=round)
        privacy = self.scenario.privacy
        clipper = self._recipe.rules.clipper if self._recipe else FlatClipper(l2_clip_norm=privacy.bound)
        return self._probe.snapshot(examples, draws, clipper, bound=privacy.bound)

    @_products
    def evaluate(
        self,
        client: str,
        parameters: Vector,
        *,
        part: Literal["validation", "test"],
        samples: int,
        reference: Vector | None = None,
    ) -> dict[str, float]:
        """Mergeable sums of the scores on held-out windows, keys `model/...`. Reads private rows; simulation only.

        Of a trusted curator: of each owner by itself, see `evaluation.by_owner`.
        """
        self.set_reference(reference)
        data = load_client(self.scenario, client)
        load_trainable(self.model, torch.from_numpy(parameters))

        def scores(one: ClientData) -> dict[str, float]:
            return evaluation.evaluate(self.model, one, self.scenario, part=part, samples=samples, device=self.device)

        if owners(self.scenario):
            return evaluation.join_owners(scores(one) for one in held_of(self.scenario, data).values())
        return scores(data)

    def release_count(self, client: str, *, mode: Mode) -> float:
        """A noisy count of the client's readings; paid for before. Reads private rows."""
        data = self._private_rows(client, mode)
        return make_count(data, self.scenario, Streams(mode, self.scenario.run.seed, client, 0)("count")).value

    @_products
    def release_metrics(
        self,
        client: str,
        parameters: Vector,
        *,
        part: Literal["validation", "test"],
        number: int,
        mode: Mode,
        reference: Vector | None = None,
    ) -> dict[str, float]:
        """Noisy held-out scores; release `number` of the run, paid for before. Reads private rows."""
        self.set_reference(reference)
        data = self._private_rows(client, mode)
        load_trainable(self.model, torch.from_numpy(parameters))
        rng = Streams(mode, self.scenario.run.seed, client, number)("metrics")
        return make_metrics(self.model, data, self.scenario, part=part, device=self.device, rng=rng)

    @_products
    def forecasts(
        self, client: str, parameters: Vector, *, count: int, samples: int, reference: Vector | None = None
    ) -> evaluation.Forecasts:
        """A few test windows with truth, point forecast and quantiles, for pictures. Simulation only."""
        self.set_reference(reference)
        data = load_client(self.scenario, client)
        load_trainable(self.model, torch.from_numpy(parameters))
        return evaluation.forecasts(self.model, data, self.scenario, count=count, samples=samples, device=self.device)

    def _private_rows(self, client: str, mode: Mode) -> ClientData:
        """What a release is made of. A deployed client answers whatever it has read: a refusal would tell of it."""
        if mode == "simulation":
            return load_client(self.scenario, client)
        return load_client(self.scenario, client, require_usable=False)

    def _examples(
        self, data: ClientData, meter: NDArray[np.int64], start: NDArray[np.int64], rng: PrivacyRng
    ) -> tuple[Examples, Coherence]:
        windows = cut(data, meter, start, self.scenario.task.window)
        target = task_masks(self.scenario.task, windows.observed, rng)
        period = self.scenario.task.period or day_steps(data.step)
        made = make_examples(windows, target, period=period, scaling=self.scenario.data)
        coherence = Coherence()
        if self.model.reference is not None:
            made, _, coherence = self.model.reference.prepare(made, self.scenario.diffusion.data_scale)
        return drop_context(made, self.scenario.diffusion.condition_dropout, rng).to(self.device), coherence

    def _draws(self, examples: Examples, coherence: Coherence, generator: torch.Generator) -> Draws:
        """Diffusion times and noise of each row, the noise correlated over a window as a warm start says."""
        draws = draw(examples, self.scenario.diffusion.multiplicity, self._schedule, generator)
        return Draws(draws.time, coherence.colour(draws.noise))

    def _plain_gradient(self, examples: Examples, draws: Draws) -> torch.Tensor:
        """The batch gradient without privacy, clipped as a whole to the bound: ordinary gradient clipping."""
        privacy = self.scenario.privacy
        grad = plain_mean(self.model, self._loss, examples, draws, microbatch=privacy.microbatch)
        return grad * (privacy.bound / grad.norm().clamp(min=privacy.bound))
