"""One client's local work: the only place where data, model, diffusion and privacy meet.

`LocalWorker` holds what does not change during a run (model, gradient engine, mechanism), so that a process
builds it once and trains any number of clients with it. Nothing in it survives a round: the same parameters,
client and round give the same result in every process.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedpriv import evaluation
from fedpriv.config import OptimizerConfig, Scenario
from fedpriv.data.clients import ClientData, load_client, roster
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import CALENDAR_FEATURES, cut, day_steps
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.errors import InputError
from fedpriv.examples import Draws, Examples
from fedpriv.models.denoiser import Denoiser, build_denoiser
from fedpriv.models.parameters import load_trainable, trainable_vector
from fedpriv.privacy.accounting import calibrate
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.engines.plain import plain_mean
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.optimizers import make_optimizer
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import Relation, Unit
from fedpriv.schedule import make_schedule
from fedpriv.seeding import PrivacyRng, SystemRandom, stream, torch_generator

Mode = Literal["simulation", "deployment"]
Vector = NDArray[np.float32]

_workers: OrderedDict[str, LocalWorker] = OrderedDict()
_MAX_WORKERS = 4


def make_mechanism(scenario: Scenario, noise_multiplier: float) -> Mechanism:
    """The mechanism that a scenario describes: sampler, clipper, noise and event from one place."""
    privacy = scenario.privacy
    steps_per_day = day_steps(roster(scenario).step)
    return Mechanism(
        sampler=RandomPhaseTiling(scenario.task.window, privacy.sampling_prob),
        clipper=make_clipper(privacy.clipper, bound=privacy.bound, **privacy.clipper_options),
        noise_multiplier=noise_multiplier,
        unit=Unit.parse(privacy.unit, steps_per_day=steps_per_day),
        relation=Relation.parse(privacy.relation),
    )


def resolve(scenario: Scenario) -> Scenario:
    """The scenario with its noise multiplier filled in: the least that keeps (epsilon, delta) over all steps.

    A noise multiplier that the scenario states is left as it is; whether the budget allows it is decided by each
    client's ledger.
    """
    privacy = scenario.privacy
    make_clipper(privacy.clipper, bound=privacy.bound, **privacy.clipper_options)  # its errors come first
    if privacy.enabled and privacy.noise_multiplier is None and scenario.steps_total:
        sigma = calibrate(
            lambda value: make_mechanism(scenario, value).step_event(),
            count=scenario.steps_total,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            relation=Relation.parse(privacy.relation),
        )
        scenario = scenario.override({"privacy.noise_multiplier": sigma})
    if scenario.optimizer.learning_rate is None:
        scenario = scenario.override({"optimizer.learning_rate": suggested_learning_rate(scenario)})
    return scenario


def suggested_learning_rate(scenario: Scenario) -> float:
    """A learning rate from public numbers alone, in units of the bound.

    The noise of a round's mean update has norm n = sigma sqrt(P) / (B sqrt(K)) in units of the bound (P parameters, B
    expected batch, K clients), and steps must shrink as it grows: 0.08 / n, at most 0.12. For Adam, whose
    steps do not scale with the gradient, a hundredth of it. Without privacy the batch gradient, not each row's, is
    clipped: 0.5 for the skip, 0.12 where a transformer learns. Found on EIA-930 at two noise levels; docs/results.md.
    """
    adam = 0.01 if scenario.optimizer.name.startswith("adam") else 1.0
    if not scenario.privacy.enabled:
        return adam * (0.5 if scenario.model.trainable == "skip" else 0.12)
    people, privacy = roster(scenario), scenario.privacy
    clients = scenario.federation.clients_per_round or len(people.names)
    sampler = RandomPhaseTiling(scenario.task.window, privacy.sampling_prob)
    batches: list[float] = []
    for name in people.names:
        data = load_client(scenario, name)  # only its calendar is used, which is public
        batches.append(
            sampler.expected_batch_size(num_meters=data.num_meters, start=data.train.start, stop=data.train.stop)
        )
    sigma = privacy.noise_multiplier or 0.0
    parameters = LocalWorker(scenario.override({"optimizer.learning_rate": 1.0})).num_parameters
    noise = sigma * np.sqrt(parameters) / (np.mean(batches) * np.sqrt(clients))
    rate = min(0.12, 0.08 / noise) if noise > 0 else 0.12
    return float(f"{adam * rate:.3g}")


@dataclass(frozen=True)
class _Streams:
    """The named random streams of one client and round."""

    mode: Mode
    seed: int
    client: str
    round: int

    def __call__(self, purpose: str) -> PrivacyRng:
        if self.mode == "deployment":
            return SystemRandom()
        return stream(self.seed, purpose, self.client, self.round)


class LocalWorker:
    """Trains and evaluates any client of one scenario in this process."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.device = pick_device(scenario.run.device)
        channels = len(roster(scenario).channels)
        generator = torch_generator(stream(scenario.run.seed, "model"))
        self.model: Denoiser = build_denoiser(
            scenario, channels=channels, calendar_features=CALENDAR_FEATURES, generator=generator
        ).to(self.device)
        self._initial = trainable_vector(self.model).numpy().copy()
        self._loss = make_loss(scenario.diffusion)
        self._schedule = make_schedule(scenario.diffusion)
        privacy = scenario.privacy
        self._engine = make_engine(privacy.engine, self.model, self._loss, microbatch=privacy.microbatch)
        self._mechanism: Mechanism | None = None
        if privacy.enabled:
            if privacy.noise_multiplier is None and scenario.steps_total:
                raise InputError(
                    "privacy.noise_multiplier is not set; resolve the scenario first. Nothing was trained."
                )
            self._mechanism = make_mechanism(scenario, privacy.noise_multiplier or 1.0)
        self._sampler = RandomPhaseTiling(scenario.task.window, privacy.sampling_prob)

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

    def contract(self, run_id: str) -> Contract | None:
        """What every client commits to when it joins: the event of all steps of the run. None without privacy."""
        if self._mechanism is None or self.scenario.steps_total == 0:
            return None
        privacy = self.scenario.privacy
        return Contract(
            run_id=run_id,
            event=encode_event(self._mechanism.step_event()),
            steps_total=self.scenario.steps_total,
            steps_per_round=self.scenario.federation.local_steps,
            unit=privacy.unit,
            relation=privacy.relation,
            delta=privacy.delta,
            epsilon=privacy.epsilon,
            terms=canonical(self.terms()),
        )

    def terms(self) -> dict[str, object]:
        """Public constants of every step, which a contract fixes and a request must repeat."""
        assert self._mechanism is not None
        privacy = self.scenario.privacy
        return {
            **self._sampler.terms(),
            "noise_multiplier": self._mechanism.noise_multiplier,
            "clipper": privacy.clipper,
            "clipper_options": dict(privacy.clipper_options),
            "bound": self._mechanism.clipper.bound,
            "steps_per_day": day_steps(roster(self.scenario).step),
        }

    def train(self, client: str, parameters: Vector, *, round: int, steps: int, mode: Mode) -> Vector:
        """`steps` private steps on the client's training part, from `parameters` [P]; returns new parameters [P].

        The caller has reserved the steps in the client's ledger before: this reads private rows.
        """
        data = load_client(self.scenario, client)
        streams = _Streams(mode, self.scenario.run.seed, client, round)
        generator = torch_generator(streams("diffusion"))
        task_rng, noise_rng = streams("task"), streams("noise")
        span = {"num_meters": data.num_meters, "start": data.train.start, "stop": data.train.stop}
        denominator = self._sampler.expected_batch_size(**span)
        optimizer = make_optimizer(self._optimizer_config(round), unit=self._gradient_unit())
        vector = torch.from_numpy(parameters.copy()).to(self.device)
        for tiles in self._sampler.batches(**span, steps=steps, rng=streams("sampling")):
            load_trainable(self.model, vector)
            examples = self._examples(data, tiles.meter, tiles.start, task_rng)
            draws = draw(examples, self.scenario.diffusion.multiplicity, self._schedule, generator)
            if self._mechanism is not None:
                clipped = self._engine.clipped_sum(examples, draws, self._mechanism.clipper)
                grad = self._mechanism.release(clipped, denominator=denominator, rng=noise_rng).grad
            else:
                grad = self._plain_gradient(examples, draws)
            vector = optimizer.step(vector, grad)
        return vector.cpu().numpy()

    def evaluate(
        self, client: str, parameters: Vector, *, part: Literal["validation", "test"], samples: int
    ) -> dict[str, float]:
        """Mergeable sums of the scores on held-out windows, keys `model/...`. Reads private rows; simulation only."""
        data = load_client(self.scenario, client)
        load_trainable(self.model, torch.from_numpy(parameters))
        return evaluation.evaluate(self.model, data, self.scenario, part=part, samples=samples, device=self.device)

    def forecasts(self, client: str, parameters: Vector, *, count: int, samples: int) -> evaluation.Forecasts:
        """A few test windows with truth, point forecast and quantiles, for pictures. Simulation only."""
        data = load_client(self.scenario, client)
        load_trainable(self.model, torch.from_numpy(parameters))
        return evaluation.forecasts(self.model, data, self.scenario, count=count, samples=samples, device=self.device)

    def _examples(
        self, data: ClientData, meter: NDArray[np.int64], start: NDArray[np.int64], rng: PrivacyRng
    ) -> Examples:
        windows = cut(data, meter, start, self.scenario.task.window)
        target = task_masks(self.scenario.task, windows.observed, rng)
        period = self.scenario.task.period or day_steps(data.step)
        return make_examples(windows, target, period=period, scaling=self.scenario.data).to(self.device)

    def _plain_gradient(self, examples: Examples, draws: Draws) -> torch.Tensor:
        """The batch gradient without privacy, clipped as a whole to the bound: ordinary gradient clipping."""
        privacy = self.scenario.privacy
        grad = plain_mean(self.model, self._loss, examples, draws, microbatch=privacy.microbatch)
        return grad * (privacy.bound / grad.norm().clamp(min=privacy.bound))

    def _gradient_unit(self) -> float:
        """What the learning rate is measured in: the stated bound, so that rules are compared on equal terms."""
        privacy = self.scenario.privacy
        return self._mechanism.clipper.bound if self._mechanism and privacy.normalize_by_bound else 1.0

    def _optimizer_config(self, round: int) -> OptimizerConfig:
        """The optimiser of this round, with the learning rate that the public schedule has left."""
        config = self.scenario.optimizer
        if config.learning_rate is None:
            raise InputError("optimizer.learning_rate is not set; resolve the scenario first. Nothing was trained.")
        if config.decay == "none":
            return config
        left = 1.0 - (round - 1) / self.scenario.federation.rounds  # public: a function of the round alone
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
