"""Every rule through the whole private step, and defects of single rules: each must fail a check of its case.

Gradients chosen outright (`VectorProbe`) find what is wrong with sums and charges; the real model finds what depends
on the point at which a gradient is taken.
"""

import dataclasses

import pytest
import torch

from fedpriv.privacy import joint
from fedpriv.privacy import recipe as recipe_module
from fedpriv.privacy.audit.steering import check_steering
from fedpriv.privacy.audit.whole import check_rule
from fedpriv.privacy.audit.whole_step import SIGMA, chosen_gradients, every_rule, make_recipe
from fedpriv.privacy.clippers import PsascClipper
from fedpriv.privacy.controllers import GlobalAdaptController, QuantileController
from fedpriv.privacy.engines.base import ClippedSum
from fedpriv.privacy.filters import FILTERS, EmaFilter
from fedpriv.privacy.gradient_rules import Asked, ErrorFeedbackRule, GroupWiseRule, SparsifyRule, clip_rows
from fedpriv.privacy.histogram_controllers import DcSgdEController, HistogramController
from fedpriv.privacy.iterate_rules import GRADIENT_RULES, BamRule, InnerMomentumRule
from fedpriv.privacy.joint import JointRelease, Query
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import CONTROLLERS, Recipe
from simulations.auditing import model_subject


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def failing(name, subject=None, sigma=SIGMA):
    results = check_rule(name, make_recipe(every_rule()[name], sigma=sigma), subject or chosen_gradients())
    return {r.name.partition(": ")[2]: r.detail for r in results if not r.passed}


# ---- the sound program ----------------------------------------------------------------------------


def test_every_entry_of_every_registry_has_a_case():
    settings = every_rule().values()
    for part, registry in (("controller", CONTROLLERS), ("gradient_rule", GRADIENT_RULES), ("filter", FILTERS)):
        assert {s.get(part) for s in settings} >= set(registry)
    assert len(every_rule()) >= 7 + 5 + 6 + 4 + 4


@pytest.mark.parametrize("name", list(every_rule()))
def test_sound_rules_pass(name):
    assert failing(name) == {}
    assert failing(name, model_subject()) == {}


@pytest.mark.parametrize("name", ["quantile", "dc-sgd-p", "dc-sgd-e", "global-adapt"])
def test_sound_controllers_steer(name):
    found = check_steering(name, make_recipe(every_rule()[name]))
    assert found.passed, found


# ---- what is charged ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quantile", "dc-sgd-p", "dc-sgd-e", "global-adapt", "error-feedback"])
def test_a_statistic_that_is_not_charged_is_caught(name, monkeypatch):
    """The gradient keeps all of sigma, and the statistic comes on top."""
    monkeypatch.setattr(joint, "gradient_noise", lambda sigma, shares: sigma)
    assert "one row" in failing(name)


@pytest.mark.parametrize("name", ["quantile", "dc-sgd-p", "error-feedback"])
def test_charging_the_noise_of_the_gradient_alone_is_caught(name, monkeypatch):
    """What two published implementations do: the event is that of the larger noise which is left for the gradient."""
    real = recipe_module.release_jointly

    def reports_less(mechanism, clipped, queries, **more):
        made = real(mechanism, clipped, queries, **more)
        left = joint.gradient_noise(mechanism.noise_multiplier, [(q.bound / q.stddev) ** 2 for q in queries])
        event = dataclasses.replace(mechanism, noise_multiplier=left).step_event()
        return JointRelease(made.grad, made.answers, event)

    monkeypatch.setattr(recipe_module, "release_jointly", reports_less)
    assert {"one row", "charged as agreed"} <= set(failing(name))


def test_a_schedule_charged_at_its_first_noise_is_caught(monkeypatch):
    monkeypatch.setattr(
        Recipe, "event", lambda self: dataclasses.replace(self.mechanism, noise_multiplier=SIGMA).step_event()
    )
    assert "charged as agreed" in failing("dynamic")


def test_a_schedule_whose_noise_falls_faster_than_its_event_is_caught(monkeypatch):
    monkeypatch.setattr(Mechanism, "stddev", property(lambda self: self.noise_multiplier**1.5 * self.clipper.bound))
    assert "one row" in failing("dynamic", sigma=0.9)


# ---- sensitivities that are stated too small ------------------------------------------------------


def bits_without_recentring(self, norms, clipper, state):
    return (norms <= clipper.l2_clip_norm).to(torch.float64).sum().reshape(1)


def two_bins(self, norms, width):
    real = torch.nn.functional.one_hot(((norms / width).nan_to_num(99, 99).clamp(0, 98)).long(), 100).double()
    return torch.nn.functional.pad(real, (0, 0))[:, : self.bins] + torch.ones(len(norms), self.bins) / self.bins**0.5


def weighted_bins(self, norms, width):
    rows = REAL_ROWS(self, norms, width)
    return rows * norms.nan_to_num(0, 0, 0).clamp(max=50)[:, None]


REAL_ROWS = HistogramController.rows
STATISTICS = {
    "bits of 0 and 1": ("quantile", QuantileController, "statistic", bits_without_recentring),
    "rows in all bins": ("dc-sgd-p", HistogramController, "rows", two_bins),
    "bins filled with norms": ("dc-sgd-e", HistogramController, "rows", weighted_bins),
    "noise of half the size": (
        "global-adapt", GlobalAdaptController, "statistic", lambda self, norms, clipper, state: 2.0 * (
            (norms > self.tau * state["z"][0]).to(torch.float64) - 0.5).sum().reshape(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(STATISTICS))
def test_statistics_of_larger_sensitivity_are_caught(what, monkeypatch):
    name, kind, method, mutant = STATISTICS[what]
    monkeypatch.setattr(kind, method, mutant)
    assert "one row" in failing(name)


def test_a_query_with_too_small_a_bound_is_caught(monkeypatch):
    real = ErrorFeedbackRule.ask

    def ask(self, batch):
        asked = real(self, batch)
        (query,) = asked.extra
        return Asked(asked.clipped, (Query(query.total, query.bound / 9, query.stddev / 9),))

    monkeypatch.setattr(ErrorFeedbackRule, "ask", ask)
    assert "one row" in failing("error-feedback")


def test_psasc_whose_bound_is_called_c_is_caught(monkeypatch):
    monkeypatch.setattr(PsascClipper, "bound", property(lambda self: self.l2_clip_norm))
    assert "one row" in failing("psasc")


def test_groups_that_each_get_the_full_bound_are_caught(monkeypatch):
    class Full:
        """The engine's group clipping at C for each of G groups instead of C / sqrt(G)."""

        def __init__(self, engine, count):
            self.engine, self.count = engine, count

        def __getattr__(self, name):
            return getattr(self.engine, name)

        def clipped_groups(self, examples, draws, clipper, cuts):
            made = self.engine.clipped_groups(examples, draws, clipper, cuts)
            return ClippedSum(made.total * (len(cuts) - 1) ** 0.5, clipper.bound, made.norms)

    real = GroupWiseRule.ask
    monkeypatch.setattr(
        GroupWiseRule, "ask", lambda self, b: real(self, dataclasses.replace(b, engine=Full(b.engine, 4)))
    )
    assert "one row" in failing("group-wise")


def test_a_mask_that_looks_at_the_sum_is_caught(monkeypatch):
    def ask(self, batch):
        made = clip_rows(batch, batch.engine.per_row)
        top = made.total.abs().argsort(descending=True)[: made.total.numel() // 2]
        kept = torch.zeros_like(made.total)
        kept[top] = made.total[top]
        return Asked(ClippedSum(kept, made.bound, made.norms))

    monkeypatch.setattr(SparsifyRule, "ask", ask)
    monkeypatch.setattr(SparsifyRule, "after", lambda self, grad, a, p, c, state, f: (grad, dict(state)))
    assert "one row" in failing("sparsify", model_subject()) or "one row" in failing("sparsify")


def test_a_perturbed_point_that_follows_the_batch_is_caught(monkeypatch):
    """All rows are taken uphill along the batch's mean gradient: each row then depends on the others."""

    def ask(self, batch):
        def rows(examples, draws):
            here = batch.engine.per_row(examples, draws)
            mean = here.nan_to_num(0, 0, 0).double().clamp(-1e6, 1e6).mean(dim=0)
            uphill = (mean / mean.norm().clamp(min=1e-30)).float().expand_as(here)
            return 0.2 * here + 0.8 * batch.engine.per_row(examples, draws, batch.params + 1.0 * uphill)

        return Asked(clip_rows(batch, rows))

    monkeypatch.setattr(BamRule, "ask", ask)
    found = failing("bam", model_subject())
    assert found, "nothing failed"


def test_momentum_of_the_batch_before_clipping_is_caught(monkeypatch):
    """A history of raw sums, kept by the rule itself."""
    kept = []

    def ask(self, batch):
        made = clip_rows(batch, batch.engine.per_row)
        kept.append(made.total.clone())
        return Asked(ClippedSum(sum(0.5**k * t for k, t in enumerate(reversed(kept[-3:]))), made.bound, made.norms))

    monkeypatch.setattr(InnerMomentumRule, "ask", ask)
    assert {"remembers no rows"} <= set(failing("inner-momentum"))


# ---- memory that is not a release -----------------------------------------------------------------


def test_error_feedback_with_an_exact_private_error_is_caught(monkeypatch):
    """As published: the cut-off part is kept without noise and comes back in later steps."""
    kept = {}
    real = ErrorFeedbackRule.ask

    def ask(self, batch):
        asked = real(self, batch)
        kept["error"] = asked.extra[0].total.float() / batch.facts.denominator
        return Asked(asked.clipped, asked.extra)

    def after(self, grad, answers, params, clipper, state, facts):
        return grad + kept["error"], dict(state)

    monkeypatch.setattr(ErrorFeedbackRule, "ask", ask)
    monkeypatch.setattr(ErrorFeedbackRule, "after", after)
    assert "remembers no rows" in failing("error-feedback")


def test_an_error_released_without_noise_is_caught(monkeypatch):
    real = ErrorFeedbackRule.ask

    def ask(self, batch):
        asked = real(self, batch)
        (query,) = asked.extra
        return Asked(asked.clipped, (Query(query.total, 1e-9, 1e-6),))  # "almost nothing is asked"

    monkeypatch.setattr(ErrorFeedbackRule, "ask", ask)
    assert "one row" in failing("error-feedback")


def test_a_bias_term_of_raw_norms_is_caught(monkeypatch):
    """DC-SGD-E evaluated on the norms themselves instead of the noisy histogram."""
    kept = {}
    real = DcSgdEController.statistic

    def statistic(self, norms, clipper, state):
        kept["norms"] = norms.clone()
        return real(self, norms, clipper, state)

    def next_bound(self, shares, middles, bound, facts):
        return float(kept["norms"].nan_to_num(1, 1, 1).clamp(max=1e6).mean()) + bound

    monkeypatch.setattr(DcSgdEController, "statistic", statistic)
    monkeypatch.setattr(DcSgdEController, "next_bound", next_bound)
    assert "remembers no rows" in failing("dc-sgd-e")


def test_a_filter_fed_with_sums_is_caught(monkeypatch):
    """A filter behind which the noise-free sum slips through."""
    kept = {}
    real = recipe_module.release_jointly

    def leaky(mechanism, clipped, queries, **more):
        kept["sum"] = clipped.total.clone()
        return real(mechanism, clipped, queries, **more)

    monkeypatch.setattr(recipe_module, "release_jointly", leaky)
    monkeypatch.setattr(EmaFilter, "apply", lambda self, grad, state, sizes: (kept["sum"], dict(state)))
    assert "remembers no rows" in failing("ema")


# ---- noise ----------------------------------------------------------------------------------------


def test_a_statistic_without_noise_is_caught(monkeypatch):
    real = recipe_module.release_jointly

    def exact(mechanism, clipped, queries, **more):
        made = real(mechanism, clipped, queries, **more)
        return JointRelease(made.grad, tuple(q.total for q in queries), made.event)

    monkeypatch.setattr(recipe_module, "release_jointly", exact)
    assert {"one row", "noise"} <= set(failing("quantile"))


def test_one_number_for_all_coordinates_is_caught(monkeypatch):
    class Same:
        def __init__(self, rng):
            self.rng = rng

        def standard_normal(self, size):
            drawn = self.rng.standard_normal(size)
            return drawn * 0 + drawn[0]

    real = Mechanism.release
    monkeypatch.setattr(
        Mechanism, "release", lambda self, c, *, denominator, rng: real(self, c, denominator=denominator, rng=Same(rng))
    )
    assert "noise" in failing("flat")


# ---- steering -------------------------------------------------------------------------------------


def test_a_wrong_sign_runs_away(monkeypatch):
    """The clipped bit in the place of the unclipped one, as in a widely used framework."""
    real = QuantileController.statistic
    monkeypatch.setattr(QuantileController, "statistic", lambda self, *a: -real(self, *a))
    assert not check_steering("quantile", make_recipe(every_rule()["quantile"])).passed


def test_a_histogram_that_never_widens_stays_where_it_began(monkeypatch):
    real = HistogramController.update

    def update(self, answer, clipper, state, facts):
        return {**real(self, answer, clipper, state, facts), "width": state["width"]}

    monkeypatch.setattr(HistogramController, "update", update)
    assert not check_steering("dc-sgd-p", make_recipe(every_rule()["dc-sgd-p"])).passed
