"""All suites in one go: D1 sensitivity, D2 noise, D3 sampler, every rule, engine agreement, D4 canaries; D5 ledgers.

Everything runs on made-up rows and canaries, through the code that trains; no data of anybody is read.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from fedpriv.errors import InputError
from fedpriv.privacy.accounting import accountant_name, calibrate
from fedpriv.privacy.audit import probe, sensitivity
from fedpriv.privacy.audit.agreement import check_agreements
from fedpriv.privacy.audit.bounds import check_significance
from fedpriv.privacy.audit.canary import Streams, run_canaries
from fedpriv.privacy.audit.ledgers import audit_ledger
from fedpriv.privacy.audit.noise import check_noise
from fedpriv.privacy.audit.result import CheckResult, production_step
from fedpriv.privacy.audit.sampler import check_sampler
from fedpriv.privacy.audit.tables import Claim
from fedpriv.privacy.audit.verdict import FAILING, SuiteResult, judge
from fedpriv.privacy.audit.whole import check_every_rule
from fedpriv.privacy.audit.whole_step import Subject, chosen_gradients
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import layout
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.units import READING, Relation
from fedpriv.seeding import SystemRandom, stream

Progress: TypeAlias = Callable[[str, float], None]
"""(what is at work, share of the whole that is done in [0, 1])."""
Suite: TypeAlias = Callable[[Callable[[float], None]], SuiteResult]
"""(told the share of it that is done) -> result."""

RULES = "D1, D2 every rule"
ENGINES = "engine agreement"
DELTA = 1e-5
WINDOW, RATE, STEPS = 4, 0.1, 100  # of the canary runs: a subsampled mechanism, so that the sampler matters
BOUND = 2.0  # not 1, so that noise which misses the bound shows
DENOMINATOR = 16.0


@dataclass(frozen=True)
class AuditReport:
    """What the suites found.

    Attributes:
        suites: one result per suite and epsilon.
        seconds: time of the whole.
        settings: what was run: canaries, engine, clipper, randomness, accountant.
    """

    suites: tuple[SuiteResult, ...]
    seconds: float
    settings: dict[str, object]

    @property
    def passed(self) -> bool:
        """Whether every suite passed."""
        return all(suite.passed for suite in self.suites)

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        return {
            "passed": self.passed,
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "suites": [suite.to_json() for suite in self.suites],
        }


def audit(
    epsilons: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 10.0),
    *,
    canaries: int = 10_000,
    significance: float = FAILING,
    seed: int | None = None,
    engine: str = "auto",
    clipper: str = "flat",
    ledgers: Sequence[Path] = (),
    subjects: Sequence[Subject] = (),
    models: Sequence[Subject] = (),
    more: Sequence[tuple[str, Suite]] = (),
    progress: Progress | None = None,
) -> AuditReport:
    """Runs D1 to D3, the rules, the engines, D4 once for each epsilon, and D5 for each ledger.

    Args:
        epsilons: claims to test, at delta 1e-5 for one reading under zero-out.
        canaries: m; 10000 or more for epsilon <= 1.
        significance: chance that a sound program fails D3, and each D4 (D1 is exact, D2 has its own 1e-3 per check).
        seed: None draws from the operating system, as a deployed client does; a number repeats a run.
        engine: gradient engine, as in scenarios.
        clipper: clipping rule, as in scenarios.
        ledgers: files whose reported epsilons are audited as well.
        subjects: models on which every rule is replayed, beside gradients chosen outright.
        models: on which `engine` is compared with plain autograd for every rule, beside a small transformer.
        more: suites by name that are run after these, such as those that need the whole program.
        progress: told what is at work and how much is done.

    Raises:
        InputError: an epsilon or significance out of range, an unknown engine or clipper.
    """
    check_significance(significance)
    if any(not 0.01 <= e <= 100 for e in epsilons):
        raise InputError(f"epsilons={list(epsilons)} are not all between 0.01 and 100; nothing was audited.")
    started = time.perf_counter()
    streams = streams_of(seed)
    sampler = RandomPhaseTiling(WINDOW, RATE)
    base = Mechanism(
        sampler=sampler,
        clipper=make_clipper(clipper, bound=BOUND),
        noise_multiplier=1.0,
        unit=READING,
        relation=Relation.ZERO_OUT,
    )
    jobs: list[tuple[str, Suite]] = [
        ("D1 sensitivity", lambda _: _sensitivity(base, engine)),
        ("D2 noise", lambda _: _noise(base, engine, streams)),
        ("D3 sampler", lambda _: _sampler(sampler, streams, significance)),
        (RULES, lambda tell: _suite(RULES, check_every_rule([chosen_gradients(), *subjects], tell=tell))),
        (ENGINES, lambda tell: _suite(ENGINES, check_agreements([_transformer(), *models], engine=engine, tell=tell))),
    ]
    for epsilon in epsilons:
        name = f"D4 canaries, epsilon {epsilon:g}"
        jobs.append((name, _canary_job(name, base, epsilon, canaries, significance, engine, streams)))
    for path in ledgers:
        name = f"D5 ledger {path.name}"
        jobs.append((name, _ledger_job(name, path, canaries, engine, streams)))
    jobs += more
    results: list[SuiteResult] = []
    for done, (name, job) in enumerate(jobs):

        def tell(share: float, name: str = name, done: int = done) -> None:
            if progress is not None:
                progress(name, (done + share) / len(jobs))

        tell(0.0)
        began = time.perf_counter()
        found = job(tell)
        seconds = round(time.perf_counter() - began, 3)
        results.append(replace(found, numbers={**found.numbers, "suite_seconds": seconds}))
        tell(1.0)
    settings: dict[str, object] = {
        "canaries": canaries,
        "significance": significance,
        "engine": engine,
        "clipper": clipper,
        "delta": DELTA,
        "unit": READING.name,
        "relation": Relation.ZERO_OUT.value,
        "sampler": sampler.terms(),
        "steps": STEPS,
        "randomness": "operating system" if seed is None else f"seed {seed}",
        "accountant": accountant_name(),
    }
    return AuditReport(tuple(results), round(time.perf_counter() - started, 3), settings)


def streams_of(seed: int | None) -> Streams:
    """Named streams of a seed, or the operating system's."""
    if seed is None:
        return lambda purpose: SystemRandom()
    return lambda purpose: stream(seed, "audit", purpose)


def _canary_job(
    name: str, base: Mechanism, epsilon: float, canaries: int, significance: float, engine: str, streams: Streams
) -> Suite:
    def job(tell: Callable[[float], None]) -> SuiteResult:
        mechanism = calibrated(base, epsilon, STEPS)
        claim = Claim.of([(mechanism.step_event(), STEPS)], Relation.parse(mechanism.relation), DELTA)
        own: Streams = lambda purpose: streams(f"{purpose} {epsilon:g}")  # noqa: E731
        scores = run_canaries([(mechanism, STEPS)], canaries=canaries, streams=own, engine=engine, progress=tell)
        found = judge(claim, scores, epsilon=epsilon, name=name, failing=significance)
        return replace(found, numbers={**found.numbers, "noise_multiplier": mechanism.noise_multiplier})

    return job


def calibrated(base: Mechanism, epsilon: float, steps: int) -> Mechanism:
    """`base` with the least noise that keeps `epsilon` over `steps`, as training calibrates it."""
    sigma = calibrate(
        lambda value: replace(base, noise_multiplier=value).step_event(),
        count=steps,
        epsilon=epsilon,
        delta=DELTA,
        relation=Relation.parse(base.relation),
    )
    return replace(base, noise_multiplier=sigma)


def _ledger_job(name: str, path: Path, canaries: int, engine: str, streams: Streams) -> Suite:
    def job(tell: Callable[[float], None]) -> SuiteResult:
        own: Streams = lambda purpose: streams(f"{purpose} {name}")  # noqa: E731
        return audit_ledger(path, canaries=canaries, streams=own, engine=engine, name=name, progress=tell)

    return job


# ---- D1 to D3 -------------------------------------------------------------------------------------


def _sensitivity(mechanism: Mechanism, engine: str) -> SuiteResult:
    """Chosen gradients, and adversarial windows on a small transformer."""
    generator = torch.Generator().manual_seed(1)
    bound = mechanism.clipper.bound
    results: list[CheckResult] = []
    vectors = probe.made_up(6, generator)
    windows = probe.made_up(6, generator, draws=2)
    transformer = probe.randomised(_probe(), generator)
    for model, loss, rows, adversaries in (
        (
            _vector_probe(),
            probe.vector_loss,
            vectors,
            sensitivity.adversarial_vectors(sensitivity.pick(vectors, slice(5, 6))),
        ),
        (
            transformer,
            probe.probe_loss,
            windows,
            sensitivity.adversarial_windows(sensitivity.pick(windows, slice(5, 6))),
        ),
    ):
        step = production_step(make_engine(engine, model, loss), mechanism, denominator=DENOMINATOR)
        results += sensitivity.check_sensitivity(
            step, bound=bound, denominator=DENOMINATOR, rows=rows, adversaries=adversaries
        )
        results.append(sensitivity.check_independence(step, denominator=DENOMINATOR, rows=rows))
    return _suite("D1 sensitivity", results)


def _noise(mechanism: Mechanism, engine: str, streams: Streams) -> SuiteResult:
    """Empty batches, and windows that ask for nothing."""
    model = _probe(width=32)
    made = layout(model)
    blocks = {
        name: slice(start, start + shape.numel())
        for name, start, shape in zip(made.names, made.starts, made.shapes, strict=True)
    }
    examples, draws = probe.made_up(3, torch.Generator().manual_seed(1))
    quiet = replace(examples, target=torch.zeros_like(examples.target))
    results = check_noise(
        production_step(make_engine(engine, model, probe.probe_loss), mechanism, denominator=DENOMINATOR),
        rng_for=lambda client, round_: streams(f"noise of client {client}, round {round_}"),
        stddev=mechanism.stddev / DENOMINATOR,
        blocks=blocks,
        silent=[sensitivity.pick((examples, draws), slice(0, 0)), (quiet, draws)],
    )
    return _suite("D2 noise", results)


def _probe(width: int = 16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # initial values from a seed, the global generator left alone
        torch.manual_seed(0)
        return probe.Probe(width=width)


def _transformer() -> Subject:
    generator = torch.Generator().manual_seed(1)
    model = probe.randomised(_probe(), generator)
    return Subject("small transformer", model, probe.probe_loss, probe.made_up(5, generator, draws=2), {})


def _vector_probe() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return probe.VectorProbe()


def _sampler(sampler: RandomPhaseTiling, streams: Streams, significance: float) -> SuiteResult:
    results = check_sampler(
        sampler,
        num_meters=3,
        start=5,
        stop=5 + 8 * sampler.window + 3,
        steps=4000,
        rng=streams("sampling of D3"),
        significance=significance,
    )
    return _suite("D3 sampler", results)


def _suite(name: str, results: Sequence[CheckResult]) -> SuiteResult:
    failed = [result for result in results if not result.passed]
    detail = "; ".join(f"{r.name}: {r.detail}" for r in failed) if failed else f"{len(results)} checks held"
    numbers: dict[str, float | str] = {"checks": float(len(results)), "failed": float(len(failed))}
    for result in results:
        label, count = result.name, 2
        while label in numbers:  # the same check on another model
            label, count = f"{result.name} ({count})", count + 1
        numbers[label] = result.detail
    return SuiteResult(name, not failed, detail, numbers)
