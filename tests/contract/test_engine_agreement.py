"""The suite that compares engines with one row at a time: the sound engines pass on every variant, and defects fail."""

import pytest
import torch

from fedpriv.privacy.audit.agreement import check_agreement, check_agreements
from fedpriv.privacy.audit.whole_step import every_rule
from fedpriv.privacy.engines.base import ClippedSum, row_factors
from fedpriv.privacy.engines.functional import FunctionalEngine
from fedpriv.privacy.engines.ghost import GhostEngine
from simulations.auditing import variants

FEW = {name: every_rule()[name] for name in ("flat", "psac", "quantile")}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def variant(name):
    return next(v for v in variants() if v.name == name)


@pytest.mark.slow
def test_the_default_engine_agrees_on_every_variant_and_rule():
    failed = [r.name + ": " + r.detail for r in check_agreements(variants(), engine="auto") if not r.passed]
    assert not failed


@pytest.mark.parametrize("engine", ["functional", "opacus", "single"])
def test_the_other_engines_agree(engine):
    result = check_agreement(variant("dp-aware, multiplicative"), engine=engine, cases=FEW)
    assert result.passed, result.detail


def test_all_kinds_of_trained_parameters_are_among_the_variants():
    trained = {v.name: sum(p.numel() for p in v.model.parameters() if p.requires_grad) for v in variants()}
    assert len(trained) == 13 and all(trained.values())
    assert trained["skip"] < trained["transformer"] and trained["biases"] < trained["modulation"]


class Wrapped:
    """A sound engine whose sum goes wrong in one way."""

    microbatch = 0

    def __init__(self, model, loss, rows):
        self.inner, self.rows = FunctionalEngine(model, loss), rows

    def sum(self, rows, norms, clipper):
        return (row_factors(clipper, norms) @ rows.double()).float()

    def clipped_sum(self, examples, draws, clipper):
        rows = self.inner.per_row(examples, draws)
        norms = rows.double().norm(dim=1)
        return ClippedSum(self.sum(rows, norms, clipper), clipper.bound, norms)


class ForgetsAParameter(Wrapped):
    def sum(self, rows, norms, clipper):
        return super().sum(rows, rows[:, : rows.shape[1] * 9 // 10].double().norm(dim=1), clipper)


class LosesTheLastMicrobatch(Wrapped):
    def sum(self, rows, norms, clipper):
        kept = len(rows) // self.rows * self.rows if self.rows else len(rows)
        return super().sum(rows[:kept], norms[:kept], clipper)


class ClipsTheMeanOfAMicrobatch(Wrapped):
    def sum(self, rows, norms, clipper):
        mean = rows.double().mean(dim=0, keepdim=True)
        return super().sum(mean, mean.norm(dim=1), clipper) * len(rows)


class GhostForgetsALayer(GhostEngine):
    """The production engine with one layer's share left out of the norms."""

    def __init__(self, model, loss, rows):
        super().__init__(model, loss, microbatch=rows, check=False)

    def _measured(self, examples, draws):
        measured = super()._measured(examples, draws)
        measured.squares[0] = 0
        return measured


class RoundsToBfloat16(Wrapped):
    def sum(self, rows, norms, clipper):
        return super().sum(rows.bfloat16(), norms, clipper)


class ClipsAtTheLargestNorm(Wrapped):
    def sum(self, rows, norms, clipper):
        return super().sum(rows, norms.max().expand_as(norms), clipper)


MUTANTS = [
    ForgetsAParameter, LosesTheLastMicrobatch, ClipsTheMeanOfAMicrobatch, GhostForgetsALayer, RoundsToBfloat16,
    ClipsAtTheLargestNorm,
]  # fmt: skip


@pytest.mark.parametrize("mutant", [Wrapped, *MUTANTS], ids=lambda m: m.__name__)
def test_planted_defects_are_caught(mutant):
    result = check_agreement(
        variant("dp-aware"), cases=FEW, build=lambda name, model, loss, rows: mutant(model, loss, rows)
    )
    assert result.passed == (mutant is Wrapped), result.detail


def test_a_statistic_of_wrong_norms_is_caught():
    """The sum is right, the norms that a controller asks about are not."""

    class WrongNorms(Wrapped):
        def clipped_sum(self, examples, draws, clipper):
            made = super().clipped_sum(examples, draws, clipper)
            return ClippedSum(made.total, made.bound, made.norms / 3)

    result = check_agreement(
        variant("skip"), cases=FEW, build=lambda name, model, loss, rows: WrongNorms(model, loss, rows)
    )
    assert not result.passed and "quantile" in result.detail


def test_an_engine_that_cannot_run_a_rule_does_not_agree():
    def refuses(name, model, loss, rows):
        raise RuntimeError("not today")

    result = check_agreement(variant("skip"), cases=FEW, build=refuses)
    assert not result.passed and "not today" in result.detail
