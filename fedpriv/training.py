"""One client's local work: the only place where data, model, diffusion and privacy meet.

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
from dp_accounting import DpEvent, dp_event
from numpy.typing import NDArray

from fedpriv import evaluation
from fedpriv.config import OptimizerConfig, Scenario
from fedpriv.data.clients import ClientData, held_of, load_client, owners, roster
from fedpriv.data.tasks import drop_context, make_examples, task_masks
from fedpriv.data.windows import CALENDAR_FEATURES, cut, day_steps
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.mechanisms import make_recipe
from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import (
    REFERENCE,
    is_conditioning,
    load_trainable,
    merged_parameters,
    trainable_vector,
)
from fedpriv.models.reference import OneRound, make_one_round
from fedpriv.personal import PERSONAL, personal_parts, personal_scenario
from fedpriv.privacy.accounting import epsilon_of, filter_epsilon
from fedpriv.privacy.clippers import FlatClipper
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.diagnostics import GradientProbe, Snapshot
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import layout
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.engines.plain import plain_mean
from fedpriv.privacy.events import ScheduledDpEvent, encode_event
from fedpriv.privacy.hardened import GridEngine, check_rules, check_size
from fedpriv.privacy.optimizers import make_optimizer
from fedpriv.privacy.recipe import Recipe
from fedpriv.privacy.renyi_contract import AnyContract, RenyiContract, filter_left
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.products import matrix_products
from fedpriv.releases import (
    make_count,
    make_metrics,
    make_statistics,
    side_contracts,
    side_parts,
    statistics_mechanism,
    whole_event,
)
from fedpriv.schedule import make_schedule
from fedpriv.seeding import PrivacyRng, SystemRandom, keyed_stream, stream, torch_generator

Mode = Literal["simulation", "deployment"]
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


@dataclass(frozen=True)
class _Streams:
    """The named random streams of one client and round."""

    mode: Mode
    seed: int
    client: str
    round: int
    fast: bool = False  # normals by the C++ operator: the same bits

    def __call__(self, purpose: str) -> PrivacyRng:
        if self.mode == "deployment":
            return SystemRandom(fast=self.fast)
        if purpose == "noise":
            return keyed_stream(self.seed, purpose, self.client, self.round, fast=self.fast)
        return stream(self.seed, purpose, self.client, self.round)


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
        channels = len(roster(scenario).channels)
        generator = torch_generator(stream(scenario.run.seed, "model"))
        self.model: Denoiser = build_denoiser(
            scenario,
            channels=channels,
            calendar_features=CALENDAR_FEATURES,
            generator=generator,
            period=day_steps(roster(scenario).step),
        ).to(self.device)
        self._initial = trainable_vector(self.model).numpy().copy()
        period = scenario.task.period or day_steps(roster(scenario).step)
        kind = scenario.model.statistics
        self.one_round: OneRound | None = make_one_round(scenario, kind, period=period) if kind else None
        self._loss = make_loss(scenario.diffusion)
        self._schedule = make_schedule(scenario.diffusion)
        privacy = scenario.privacy
        self._layout = layout(self.model)
        self._recipe: Recipe | None = None
        engine = privacy.engine
        if privacy.enabled:
            if privacy.noise_multiplier is None and scenario.steps_total:
                raise InputError(
                    "privacy.noise_multiplier is not set; resolve the scenario first. Nothing was trained."
                )
            self._recipe = make_recipe(scenario, privacy.noise_multiplier or 1.0)
            engine = self._recipe.rules.engine_name(engine)
        hardened = privacy.enabled and privacy.noise == "discrete-gaussian"
        if hardened:
            check_rules(privacy.rules())
            check_size(len(self._initial))
            engine = "functional"
        self._engine = make_engine(
            engine,
            self.model,
            self._loss,
            microbatch=privacy.microbatch,
            native=privacy.native,
            compile=privacy.compile,
            bf16=privacy.bf16,
        )
        if hardened:
            assert isinstance(self._engine, FunctionalEngine)
            self._engine = GridEngine(self._engine)
        self._sampler = RandomPhaseTiling(scenario.task.window, privacy.sampling_prob)
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
        streams = _Streams(mode, self.scenario.run.seed, client, 0)
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

    def contract(self, run_id: str) -> AnyContract | None:
        """What every client commits to when it joins: the event of all steps of the run. None without privacy.

        With privacy.accountant=rdp it is a filter of the order at which the planned run is cheapest.
        """
        if self._recipe is None or self.scenario.steps_total == 0:
            return None
        privacy = self.scenario.privacy
        promise = {"unit": privacy.unit, "relation": privacy.relation, "delta": privacy.delta}
        if privacy.accountant == "rdp":
            whole = whole_event(self.scenario, self._recipe.event())
            _, order = filter_epsilon([(whole, 1)], privacy.delta, privacy.relation)
            beside = [*side_parts(self.scenario), *personal_parts(self.scenario)]
            left = filter_left(beside, order, epsilon=privacy.epsilon, **promise)
            return RenyiContract(run_id=run_id, order=order, epsilon=left, terms=canonical(self.terms()), **promise)
        return Contract(
            run_id=run_id,
            event=encode_event(self._recipe.event()),
            steps_total=self.scenario.steps_total,
            steps_per_round=self.scenario.federation.local_steps,
            epsilon=privacy.epsilon,
            terms=canonical(self.terms()),
            **promise,
        )

    def planned_epsilon(self) -> float:
        """What the whole run costs by its own settings, side releases included; 0 without privacy. Public."""
        if self._recipe is None or not (self.scenario.steps_total or self.scenario.model.statistics):
            return 0.0
        privacy, whole = self.scenario.privacy, [(whole_event(self.scenario, self._recipe.event()), 1)]
        if privacy.accountant == "rdp":
            return filter_epsilon(whole, privacy.delta, privacy.relation)[0]
        return epsilon_of(whole, privacy.delta, privacy.relation)

    def round_event(self, round: int, steps: int) -> DpEvent | None:
        """What a request says about its round under a filter: the events of its steps. None for a contract of steps."""
        if self._recipe is None or self.scenario.privacy.accountant != "rdp":
            return None
        event = self._recipe.event()
        if not isinstance(event, ScheduledDpEvent):
            return event
        first = (round - 1) * self.scenario.federation.local_steps
        parts = event.part(first, first + steps)
        return dp_event.ComposedDpEvent([dp_event.SelfComposedDpEvent(e, n) for e, n in parts])

    def side_contracts(self, run_id: str) -> list[Contract]:
        """What is enrolled beside it: the side releases and private fine-tuning that the scenario asks for."""
        return side_contracts(self.scenario, run_id) if self._recipe is not None else []

    def terms(self) -> dict[str, object]:
        """Public constants of every step, which a contract fixes and a request must repeat."""
        assert self._recipe is not None
        return {
            **self._sampler.terms(),
            **self._recipe.rules.describe(self._recipe.mechanism.noise_multiplier),
            "noise": self.scenario.privacy.noise,
            "steps_per_day": day_steps(roster(self.scenario).step),
        }

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
        streams = _Streams(mode, self.scenario.run.seed, client, round, fast=self.scenario.privacy.native)
        generator = torch_generator(streams("diffusion"))
        task_rng, noise_rng = streams("task"), streams("noise")
        span = {"num_meters": data.num_meters, "start": data.train.start, "stop": data.train.stop}
        denominator = self._sampler.expected_batch_size(**span)
        sizes = tuple(shape.numel() for shape in self._layout.shapes)
        optimizer = make_optimizer(self._optimizer_config(round), unit=self._gradient_unit(), sizes=sizes)
        vector = torch.from_numpy(parameters.copy()).to(self.device)
        state = None if rule_state is None else torch.from_numpy(rule_state.copy()).to(self.device)
        first = (round - 1) * self.scenario.federation.local_steps
        batches = self._sampler.batches(**span, steps=steps, rng=streams("sampling"))
        for step, tiles in enumerate(batches, start=first):
            load_trainable(self.model, vector)
            examples = self._examples(data, tiles.meter, tiles.start, task_rng)
            draws = draw(examples, self.scenario.diffusion.multiplicity, self._schedule, generator)
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
                grad, state = self._in_units(done.grad, done.bound), done.state
            else:
                grad = self._plain_gradient(examples, draws)
            stepped = optimizer.step(vector, grad)
            vector = vector.lerp(stepped, self._warmth(step))  # every step is linear in its learning rate
        return Trained(vector.cpu().numpy(), None if state is None else state.cpu().numpy())

    def diagnostic_batch(self, client: str, *, round: int) -> tuple[Examples, Draws]:
        """One step's private rows, by random streams of their own: a run is the same with and without diagnostics."""
        data, seed = load_client(self.scenario, client), self.scenario.run.seed
        rng = [stream(seed, f"diagnostics-{what}", client, round) for what in ("sampling", "task", "diffusion")]
        span = {"num_meters": data.num_meters, "start": data.train.start, "stop": data.train.stop}
        (tiles,) = self._sampler.batches(**span, steps=1, rng=rng[0])
        examples = self._examples(data, tiles.meter, tiles.start, rng[1])
        generator = torch_generator(rng[2])
        return examples, draw(examples, self.scenario.diffusion.multiplicity, self._schedule, generator)

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

    def personalise(self, client: str, parameters: Vector, *, mode: Mode) -> Vector:
        """The client's own model, fine-tuned from the global `parameters` [P] by `personal.steps` steps.

        Where these are private the caller has reserved them before. Reads private rows; the result is never sent.

        Returns:
            [P'] float32, `personal.parameters` of the model.

        Raises:
            InputError: the scenario asks for no personal models.
        """
        own = self._personal_worker(parameters)
        start = trainable_vector(own.model).numpy()
        rounds, steps = own.scenario.federation.rounds, own.scenario.federation.local_steps
        found = own.model.reference
        reference = None if found is None else found.state.numpy()
        return own.train(client, start, round=rounds, steps=steps, mode=mode, reference=reference).parameters

    def personal_weights(self, parameters: Vector, personal: Vector) -> dict[str, Vector]:
        """All parameters of a personal model by name: the file alone makes a forecast."""
        own = self._personal_worker(parameters)
        load_trainable(own.model, torch.from_numpy(personal.copy()))
        named = {name: value.cpu().numpy().copy() for name, value in merged_parameters(own.model).items()}
        if (found := own.model.reference) is not None:
            named[REFERENCE + found.kind] = found.state.numpy().copy()
        return named

    @_products
    def evaluate_personal(
        self, client: str, parameters: Vector, personal: Vector, *, part: Literal["validation", "test"], samples: int
    ) -> dict[str, float]:
        """Mergeable sums of a personal model's scores, keys `personal/...`. Reads private rows; simulation only."""
        own, data = self._personal_worker(parameters), load_client(self.scenario, client)
        load_trainable(own.model, torch.from_numpy(personal.copy()))
        return evaluation.evaluate_model(
            PERSONAL, own.model, data, self.scenario, part=part, samples=samples, device=self.device
        )

    def _personal_worker(self, parameters: Vector) -> LocalWorker:
        """The worker of the fine-tuning, its model set to the global one."""
        if self.scenario.personal.kind == "none":
            raise InputError("personal.kind=none: this scenario asks for no personal models. Nothing was trained.")
        own = LocalWorker.for_scenario(personal_scenario(self.scenario))
        load_trainable(self.model, torch.from_numpy(parameters.copy()))
        own.model.load_state_dict(self.model.state_dict())
        own.model.reference = self.model.reference
        inside = self.scenario.personal.parameters in ("all", "transformer", "modulation", "bias")
        own.model.run_transformer = self.model.run_transformer or (inside and own.model.transformer is not None)
        return own

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
        return make_count(data, self.scenario, _Streams(mode, self.scenario.run.seed, client, 0)("count")).value

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
        rng = _Streams(mode, self.scenario.run.seed, client, number)("metrics")
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
    ) -> Examples:
        windows = cut(data, meter, start, self.scenario.task.window)
        target = task_masks(self.scenario.task, windows.observed, rng)
        period = self.scenario.task.period or day_steps(data.step)
        made = make_examples(windows, target, period=period, scaling=self.scenario.data)
        if self.model.reference is not None:
            made, _ = self.model.reference.prepare(made, self.scenario.diffusion.data_scale)
        return drop_context(made, self.scenario.diffusion.condition_dropout, rng).to(self.device)

    def _plain_gradient(self, examples: Examples, draws: Draws) -> torch.Tensor:
        """The batch gradient without privacy, clipped as a whole to the bound: ordinary gradient clipping."""
        privacy = self.scenario.privacy
        grad = plain_mean(self.model, self._loss, examples, draws, microbatch=privacy.microbatch)
        return grad * (privacy.bound / grad.norm().clamp(min=privacy.bound))

    def _gradient_unit(self) -> float:
        """What the learning rate is measured in: the stated bound, so that rules are compared on equal terms."""
        privacy = self.scenario.privacy
        return self._recipe.rules.clipper.bound if self._recipe and privacy.normalize_by_bound else 1.0

    def _in_units(self, grad: torch.Tensor, bound: float) -> torch.Tensor:
        """Where a controller moves the bound, the learning rate is in units of the bound in force."""
        unit = self._gradient_unit()
        if not self.scenario.privacy.normalize_by_bound or bound == unit:
            return grad
        return grad * (unit / bound)

    def _warmth(self, step: int) -> float:
        """Share of the learning rate in force at this step of the run, 0 the first; public."""
        warmup = self.scenario.optimizer.warmup
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def _optimizer_config(self, round: int) -> OptimizerConfig:
        """The optimiser of this round, with the learning rate that the public schedule has left."""
        config = self.scenario.optimizer
        if config.learning_rate is None:
            raise InputError("optimizer.learning_rate is not set; resolve the scenario first. Nothing was trained.")
        if config.decay == "none":
            return config
        left = 1.0 - (round - 1) / self.scenario.rounds  # public: a function of the round alone
        return config.model_copy(update={"learning_rate": config.learning_rate * left})


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
