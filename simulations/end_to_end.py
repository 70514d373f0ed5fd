"""An attack on a whole federation: what its server shows of planted days, beside the epsilon that the ledgers claim.

D4 plants units in the private step. Here days are planted in the files of clients, and everything between is the
program as it runs: reader, calendar, tiling, masks, diffusion draws, the denoiser's gradient, clipping, noise,
optimiser, ledger, Flower message, strategy. The attacker is the server and uses what a server has: the scenario that it
proposed, all readings except the planted ones' presence, and each client's update as it came over the wire.

What gives it power. Ordinary days are hard to tell apart: the gradients of a hundred of them at one client lie in a
handful of dimensions, so that the server sees their number and not which they are. Here instead:

* Relation and unit. A planted day is one daily reading, the only one of its meter in the training part: left out, no
  window that touches it has anything to learn, which is zero-out; put in, at most one window of a step has it.
* Scaling by declared bounds, so that a window needs no readings before the day, and a horizon of nearly the whole
  window, so that the day is asked for in almost every place.
* A reading far beyond its bounds: the gradient then lies almost wholly on the spread of the day's place in the window
  (`LogScale`), whatever the diffusion draws, at the clipping bound. Places have parameters of their own, so days at
  different places are orthogonal although the model is the default one.
* A beacon: known meters that all read the same day. The tallest place of an update is theirs and shows the phase of
  the tiling, which the server is not told.

Each update, divided by learning rate and public denominator, is then the noisy sum; the score of a day is the sum of
exact log-likelihood ratios of its coordinate: noise alone, or with probability p one bound more.
Design after Steinke et al. 2023 (arXiv:2305.08846) and Nasr et al. 2023 (arXiv:2302.07956).
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray

from clients import client_app
from fedpriv.config import Scenario
from fedpriv.data.client_data import ClientData
from fedpriv.data.clients import load_client
from fedpriv.data.roster import roster
from fedpriv.data.tasks import make_examples, task_masks
from fedpriv.data.windows import CALENDAR_FEATURES, cut, day_steps
from fedpriv.diffusion.loss import draw, make_loss
from fedpriv.errors import CheckFailed, InputError
from fedpriv.mechanisms import make_mechanism
from fedpriv.messages import TrainRequest, WireError, decode_model, read_train_reply
from fedpriv.models.denoiser import build_denoiser
from fedpriv.models.parameters import load_trainable
from fedpriv.privacy.audit.canary import CanaryScores
from fedpriv.privacy.audit.plan import make_plan
from fedpriv.privacy.audit.recorded import recorded
from fedpriv.privacy.audit.tables import Claim, step_law
from fedpriv.privacy.audit.verdict import SuiteResult, all_bounds, parameters
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.events import decode_event
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.reports.folder import RunFolder
from fedpriv.schedule import make_schedule
from fedpriv.seeding import stream
from simulations.inline_grid import FIRST_NODE, InlineGrid
from simulations.launch import as_simulation, prepare
from simulations.planted_days import CONTEXT, MOST, RATE, WINDOW, Layout, beacons_of, scenario_of
from strategies.base import TRAIN
from strategies.federation import federation

Array = NDArray[np.float64]
Tell = Callable[[float], None]

NAME = "end to end (information)"
_REPEATS = 8  # draws over which the attacker averages a direction


def end_to_end(
    *,
    canaries: int = 2000,
    clients: int = 16,
    epsilon: float = 8.0,
    rounds: int = 4,
    noise_multiplier: float | None = None,
    seed: int = 0,
    progress: Tell | None = None,
) -> SuiteResult:
    """Runs the federation, attacks it and reports lower bounds for one day. Information: it passes whatever it finds.

    The bounds hold for this attacker's guesses; they are not what leaks at most (D1 to D4 and the proofs are about
    that). A bound at 99.9 % above the claim is stated in the detail.

    Args:
        canaries: days planted, over all clients; a fair coin leaves about half of them out.
        clients: that take part; at most 127 days fit on each.
        epsilon: the budget that the noise is calibrated to, for one day.
        rounds: of one step each.
        noise_multiplier: instead of the calibrated one; `epsilon` must allow it.
        seed: of the coins and the run.
        progress: told the share that is done.

    Raises:
        InputError: more days than fit, or no days, rounds or clients.
        BudgetExceeded: `epsilon` does not allow `noise_multiplier`.
        CheckFailed: a client answered with a refusal.
    """
    if not (1 <= clients <= canaries <= clients * MOST and rounds >= 1):
        raise InputError(
            f"canaries={canaries} at clients={clients} in rounds={rounds}: from one day to {MOST} days fit on each "
            "client, in one round or more; nothing was audited."
        )
    started, tell = time.perf_counter(), progress or (lambda share: None)
    coins = stream(seed, "audit", "coins").random(canaries) < 0.5
    with tempfile.TemporaryDirectory(prefix="fedpriv-audit-") as home, as_simulation():
        place = Path(home)
        layout = Layout(canaries, clients, beacons_of(epsilon, rounds, noise_multiplier, place))
        layout.write(place / "real", coins)
        layout.write(place / "known", np.ones(canaries, dtype=bool))
        base = scenario_of(place / "real", epsilon, rounds, noise_multiplier, seed)
        scenario = prepare(base, out=place / "run")
        folder = RunFolder.create(place / "run", scenario, resume=False)
        with folder.lock():
            grid = Listening(client_app.app, clients, scenario.flat())
            try:
                federation(grid, scenario, folder, listener=lambda p: tell(0.7 * p.round / max(p.rounds, 1)))
            finally:
                client_app.release()
        if len(grid.updates) != clients * rounds:
            raise CheckFailed(f"{len(grid.updates)} of {clients * rounds} updates arrived; nothing was audited.")
        found = attack(grid.updates, scenario.override({"data.path": str(place / "known")}), layout)
        claim, claimed = _claim(folder, layout.names)
        scores = _scores(found, claim, coins, rounds, layout)
        tell(0.8)
        return _result(scores, claim, claimed, clients, seed, started)


@dataclass(frozen=True)
class Update:
    """What came back of a training request.

    Attributes:
        round, client: of which.
        sent, got: [P] model before and after the client's step.
    """

    round: int
    client: int
    sent: NDArray[np.float32]
    got: NDArray[np.float32]


class Listening(InlineGrid):
    """Keeps every update of the training requests that it carries, as the server's network does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.updates: list[Update] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """See `InlineGrid`."""
        asked = list(messages)
        replies = list(super().send_and_receive(asked, timeout=timeout))
        training = {m.metadata.dst_node_id: m for m in asked if m.metadata.message_type == TRAIN}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in training:
                request = TrainRequest.from_record(training[node].content)
                sent = decode_model(request.model, num_parameters=None)
                try:
                    got = read_train_reply(reply, request, num_parameters=len(sent)).parameters
                except WireError:
                    continue  # a refusal: the strategy sees it, too, and says why
                self.updates.append(Update(request.round, node - FIRST_NODE, sent, got))
        return replies


# ---- the attack -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the attacker sees of each canary, summed over the updates that show it.

    Attributes:
        scores: [m] log-likelihood ratios; higher means "in".
        totals: [m] coordinates of the noisy sums, in units of the clipping bound.
        squares: [m] squares of the same over the claimed noise.
        shown: [m] updates in which it was in view.
    """

    scores: Array
    totals: Array
    squares: Array
    shown: Array


def attack(updates: Iterable[Update], scenario: Scenario, layout: Layout) -> Found:
    """Scores every canary from the updates of its client.

    Args:
        updates: as they came over the wire.
        scenario: the federation's, its data folder one in which every canary is there.
        layout: which day is planted where.
    """
    sigma = scenario.privacy.noise_multiplier
    assert sigma is not None  # resolved
    prob = scenario.privacy.sampling_prob
    mechanism = make_mechanism(scenario, sigma)
    data = load_client(scenario, layout.names[0])  # calendar and beacon are the same at all clients
    directions = _Directions(scenario, mechanism, data)
    sampler = RandomPhaseTiling(scenario.task.window, prob)
    zeros = [np.zeros(layout.canaries) for _ in range(4)]
    scores, totals, squares, shown = zeros
    for update in updates:
        own = layout.of(update.client)
        meters = layout.beacons + len(own)
        denominator = sampler.expected_batch_size(num_meters=meters, start=data.train.start, stop=data.train.stop)
        moved = (update.sent.astype(np.float64) - update.got) * (denominator / RATE)  # the noisy sum, over the bound
        units, lengths = directions.at(update.sent)
        seen = units @ moved  # [H] its coordinate at each place of the horizon
        beacon = int(np.argmax(seen))
        if seen[beacon] < layout.beacons * prob / 2:
            continue  # the beacon lies in the context: nobody knows the phase
        place = (CONTEXT + beacon + 1 + np.arange(len(own))) % WINDOW - CONTEXT
        visible = place >= 0
        who, place = own[visible], place[visible]
        scores[who] += _log_ratio(seen[place], lengths[place], sigma, prob)
        totals[who] += seen[place]
        squares[who] += (seen[place] / sigma) ** 2
        shown[who] += 1
    return Found(scores, totals, squares, shown)


def _log_ratio(seen: Array, length: Array, sigma: float, prob: float) -> Array:
    """Ln of the density of a coordinate with the day (there with `prob`, of this length) over that without it."""
    gain = length * (seen - length / 2) / sigma**2
    return np.logaddexp(math.log1p(-prob), math.log(prob) + gain)


class _Directions:
    """What a planted day adds to the clipped sum, by its place in the window, at the model that was sent."""

    def __init__(self, scenario: Scenario, mechanism: Mechanism, data: ClientData) -> None:
        self._clipper = mechanism.clipper
        step = roster(scenario).step
        self._model = build_denoiser(
            scenario,
            channels=1,
            calendar_features=CALENDAR_FEATURES,
            generator=torch.Generator().manual_seed(0),
            period=day_steps(step),
        )
        self._engine = FunctionalEngine(self._model, make_loss(scenario.diffusion))
        start = np.repeat(WINDOW - np.arange(CONTEXT, WINDOW), _REPEATS)  # the beacon's day at each place
        windows = cut(data, np.zeros(len(start), dtype=np.int64), data.train.start + start, WINDOW)
        target = task_masks(scenario.task, windows.observed, stream(0, "audit", "masks"))
        self._rows = make_examples(windows, target, period=day_steps(step), scaling=scenario.data)
        schedule, generator = make_schedule(scenario.diffusion), torch.Generator().manual_seed(0)
        self._draws = draw(self._rows, scenario.diffusion.multiplicity, schedule, generator)

    def at(self, parameters: NDArray[np.float32]) -> tuple[Array, Array]:
        """([H, P] unit vectors, [H] lengths over the bound) at a model [P]."""
        load_trainable(self._model, torch.from_numpy(parameters.copy()))
        rows = self._engine.per_row(self._rows, self._draws).double()
        rows *= self._clipper.factors(rows.norm(dim=1))[:, None] / self._clipper.bound
        mean = rows.view(-1, _REPEATS, rows.shape[1]).mean(dim=1).numpy()
        lengths = np.linalg.norm(mean, axis=1)
        return mean / np.maximum(lengths, 1e-30)[:, None], lengths


# ---- the verdict ----------------------------------------------------------------------------------


def _claim(folder: RunFolder, names: list[str]) -> tuple[Claim, float]:
    """What the ledgers record, and the largest epsilon that one of them commits to."""
    claims: list[Claim] = []
    claimed = 0.0
    for name in names:
        with Ledger.open(folder.ledger_path(name), readonly=True) as ledger:
            rows = ledger.rows()
            parts = [p for c in ledger.agreements() for p in recorded(c, rows, whole=True) if p.steps > 0]
            claims.append(Claim.of([(p.event, p.steps) for p in parts], ledger.relation, ledger.delta))
            claimed = max(claimed, ledger.committed())
    return claims[0], claimed


def _scores(found: Found, claim: Claim, coins: NDArray[np.bool_], rounds: int, layout: Layout) -> CanaryScores:
    laws = [(step_law(decode_event(text)), count) for text, count in claim.parts]
    return CanaryScores(
        inserted=coins,
        scores=found.scores,
        totals=found.totals,
        squares=found.squares * rounds / np.maximum(found.shown, 1),  # as if in view in every update
        expected=sum(law.mean * count for law, count in laws),
        expected_square=sum(law.square / law.sigma**2 * count for law, count in laws),
        steps=rounds,
        strata=np.array([f"client {i % layout.clients}" for i in range(layout.canaries)]),
        seconds=0.0,
    )


def _result(scores: CanaryScores, claim: Claim, claimed: float, clients: int, seed: int, started: float) -> SuiteResult:
    canaries = len(scores.scores)
    right = int(((scores.scores > 0) == scores.inserted).sum())
    plan = make_plan(claim, canaries, 0.05)
    usual, strict = (all_bounds(claim, scores, plan, significance) for significance in (0.05, 1e-3))
    best, highest = max(usual.valid().values()), max(strict.valid().values())
    estimate = parameters(claim, scores, 0.5)
    numbers: dict[str, float | str] = {
        "status": "information",
        "unit": "day",
        "epsilon": claimed,
        "epsilon_of_events": claim.epsilon(),
        "delta": claim.delta,
        "seed": float(seed),
        "canaries": float(canaries),
        "clients": float(clients),
        "rounds": float(scores.steps),
        "right": float(right),
        **usual.numbers(),
        **{f"{name}_999": value for name, value in strict.numbers().items()},
        "noise_over_claimed": estimate.scale,
        "contribution_over_claimed": estimate.thin,
        "exceeded_999": float(highest > claimed),
        "seconds": round(time.perf_counter() - started, 3),
    }
    more = "; MORE THAN CLAIMED: do not trust the epsilons of this program" if highest > claimed else ""
    detail = (
        f"the server tells {right} of {canaries} planted days right; at least epsilon {best:.2f} (95 %), "
        f"{highest:.2f} (99.9 %) for one day, {claimed:.4g} claimed by the ledgers{more}"
    )
    return SuiteResult(NAME, True, detail, numbers)
