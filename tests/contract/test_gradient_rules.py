"""Gradient rules through the engines that run them: sensitivity (D1), agreement, and what each reduces to."""

import itertools
import math

import pytest
import torch
from dp_accounting import dp_event

from fedpriv.config import PrivacyConfig
from fedpriv.errors import InputError
from fedpriv.privacy.audit.probe import Probe, VectorProbe, made_up, probe_loss, randomised, vector_loss
from fedpriv.privacy.audit.sensitivity import (
    Silence,
    adversarial_vectors,
    adversarial_windows,
    check_independence,
    check_sensitivity,
    join,
    pick,
)
from fedpriv.privacy.clippers import make_clipper
from fedpriv.privacy.controllers import StepFacts
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import layout
from fedpriv.privacy.engines.single import flat_parameters, set_parameters
from fedpriv.privacy.gradient_rules import Batch, SparsifyRule, layer_cuts
from fedpriv.privacy.iterate_rules import GRADIENT_RULES
from fedpriv.privacy.joint import release_jointly
from fedpriv.privacy.mechanism import Mechanism
from fedpriv.privacy.recipe import CONTROLLERS, Recipe, make_rules
from fedpriv.seeding import stream

DENOMINATOR, BOUND, SIGMA = 16.0, 0.5, 1.3
OPTIONS = {"sparsify": {"final_rate": 0.5, "rise": 0.0}, "disk": {}, "inner-momentum": {"steps": 3}}
CLIPPERS = ("flat", "auto-s", "psasc")


class Sampler:
    def amplify(self, inner, unit, relation):
        return dp_event.PoissonSampledDpEvent(0.1, inner)


def recipe(steps=100, sigma=SIGMA, **privacy):
    config = PrivacyConfig.model_validate({"clipper": "flat", "bound": BOUND, **privacy})
    rules = make_rules(config, steps_total=steps)
    mechanism = Mechanism(
        sampler=Sampler(), clipper=rules.clipper, noise_multiplier=sigma, unit="reading", relation="zero-out"
    )
    return Recipe(mechanism=mechanism, rules=rules)


def chosen(name, clipper="flat", **more):
    return recipe(clipper=clipper, gradient_rule=name, gradient_rule_options=OPTIONS.get(name, {}), **more)


def advanced(made, model, seed=5):
    """A public state from the middle of a run: every number set, and not to zero."""
    size = flat_parameters(model).numel()
    kept = made.state_layout(size)
    if kept is None:
        return None
    parts = made.start(size)
    rng = torch.Generator().manual_seed(seed)
    for state in parts.values():
        for name, value in state.items():
            if value.numel() > 1:
                state[name] = 0.3 * torch.randn(value.shape, generator=rng)
            elif name in ("seen", "known"):
                state[name] = torch.tensor([2.0])
    return kept.join(parts)


def step_of(made, model, loss, engine, *, state="advanced", step=3):
    """The whole private step as training runs it, before any filter."""
    made_engine = make_engine(engine, model, loss)
    at, params = layout(model), flat_parameters(model)
    kept = advanced(made, model) if state == "advanced" else made.initial_state(at.size)

    def run(rows, rng):
        return made.run(
            made_engine, *rows, params=params, state=kept, step=step, denominator=DENOMINATOR, layout=at, rng=rng
        ).grad

    return run


def asked_of(made, model, loss, engine, *, step=3):
    """Rows -> everything that the step computes of them before any noise, each over its own noise."""
    made_engine, at, params = make_engine(engine, model, loss), layout(model), flat_parameters(model)
    kept = advanced(made, model)
    parts = {} if kept is None else made.state_layout(at.size).split(kept)
    sigma = made.sigma_at(step)
    facts = StepFacts(
        step=step,
        denominator=DENOMINATOR,
        sizes=tuple(shape.numel() for shape in at.shapes),
        sigma=sigma,
        sigma_gradient=made.rules.sigma_gradient(sigma),
    )

    def run(rows):
        state = parts.get("controller", {})
        clipper = made.rules.controller.clipper(made.rules.clipper.at(step), state, step)
        batch = Batch(
            engine=made_engine, examples=rows[0], draws=rows[1], params=params, clipper=clipper,
            state=parts.get("rule", {}), facts=facts, names=at.names,
        )  # fmt: skip
        asked = made.ask(batch, state)
        gradient = asked.clipped.total.to(torch.float64) / (facts.sigma_gradient * asked.clipped.bound)
        return torch.cat([gradient, *(query.total / query.stddev for query in asked.extra)])

    return run, 1 / sigma


def engines_for(name):
    return ["functional", "single"] + (["ghost", "opacus"] if GRADIENT_RULES[name].NEEDS != "rows" else [])


CASES = [(name, engine) for name in GRADIENT_RULES for engine in engines_for(name)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def vector_rows(count=6):
    return made_up(count, torch.Generator().manual_seed(1))


def probe():
    torch.manual_seed(0)
    return randomised(Probe(depth=1), torch.Generator().manual_seed(0))


CLIPPED = [
    (name, engine, clipper)
    for name, engine in CASES
    for clipper in CLIPPERS
    if name != "error-feedback" or clipper == "flat"
]


@pytest.mark.parametrize(("name", "engine", "clipper"), CLIPPED)
def test_sensitivity_to_chosen_gradients(name, engine, clipper):
    made, rows = chosen(name, clipper), vector_rows()
    step = step_of(made, VectorProbe(), vector_loss, engine)
    results = check_sensitivity(
        step, bound=made.rules.clipper.bound, denominator=DENOMINATOR, rows=rows,
        adversaries=adversarial_vectors(pick(rows, slice(5, 6))),
    )  # fmt: skip
    assert not [r for r in results if not r.passed]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_sensitivity_of_a_transformer_to_adversarial_windows(name, engine):
    made, rows = chosen(name), made_up(4, torch.Generator().manual_seed(1), draws=2)
    step = step_of(made, probe(), probe_loss, engine)
    results = check_sensitivity(
        step, bound=made.rules.clipper.bound, denominator=DENOMINATOR, rows=rows,
        adversaries=adversarial_windows(pick(rows, slice(3, 4))), sizes=(0, 2),
    )  # fmt: skip
    assert not [r for r in results if not r.passed]
    if name != "error-feedback":  # its step adds the public error, once for every call
        assert check_independence(minus_empty(step, rows), denominator=DENOMINATOR, rows=rows).passed


def minus_empty(step, rows):
    """The step without what it adds for an empty batch (a filter's memory): linear in the rows' contributions."""
    nothing = step(pick(rows, slice(0, 0)), Silence())
    return lambda batch, rng: step(batch, rng) - nothing


JOINT = [{"controller": name} for name in CONTROLLERS if name != "dynamic"] + [
    {"gradient_rule": "error-feedback"},
    {"gradient_rule": "error-feedback", "controller": "quantile"},
    {"gradient_rule": "group-wise", "controller": "dc-sgd-e"},
    {"gradient_rule": "bam", "controller": "quantile"},
]


@pytest.mark.parametrize("privacy", JOINT, ids=lambda p: "+".join(p.values()))
def test_everything_asked_together_keeps_the_total(privacy):
    """Gradient, histogram, error and bits, each over its own noise, move by at most 1 / sigma for one row."""
    made, rows = recipe(**privacy), vector_rows()
    asked, most = asked_of(made, VectorProbe(), vector_loss, made.rules.engine_name("auto"))
    worst = 0.0
    for size, (_, adversary) in itertools.product((0, 3), adversarial_vectors(pick(rows, slice(5, 6))).items()):
        batch = pick(rows, slice(0, size))
        before, after = asked(batch), asked(join(batch, adversary(batch)))
        assert before.isfinite().all() and after.isfinite().all()
        worst = max(worst, float((after - before).norm()))
    assert 0.9 * most < worst <= most * (1 + 1e-5)


# ---- what each reduces to -------------------------------------------------------------------------

SAME = [
    ("bam", {"alpha": 0.0}),
    ("bam", {"r": 0.0}),
    ("sparsify", {"final_rate": 0.0}),
    ("disk", {"kappa": 1.0}),
    ("inner-momentum", {"gamma": 0.0}),
    ("inner-momentum", {"steps": 1}),
    ("group-wise", {"groups": 1}),
]


@pytest.mark.parametrize(("name", "options"), SAME, ids=str)
def test_special_cases_are_flat_clipping(name, options):
    model, rows = probe(), made_up(5, torch.Generator().manual_seed(2), draws=2)
    made = recipe(gradient_rule=name, gradient_rule_options=options)
    plain = step_of(recipe(), model, probe_loss, "functional")(rows, Silence())
    got = step_of(made, model, probe_loss, "functional")(rows, Silence())
    assert torch.allclose(got, plain, atol=1e-7)


@pytest.mark.parametrize("name", list(GRADIENT_RULES))
def test_engines_agree(name):
    model, rows = probe(), made_up(5, torch.Generator().manual_seed(2), draws=2)
    made = chosen(name)
    results = [step_of(made, model, probe_loss, engine)(rows, Silence()) for engine in engines_for(name)]
    for other in results[1:]:
        assert (other - results[0]).norm() <= 2e-5 * results[0].norm()


@pytest.mark.parametrize("name", [n for n in GRADIENT_RULES if GRADIENT_RULES[n].NEEDS == "rows"])
def test_microbatches_change_nothing(name):
    model, rows, made = probe(), made_up(5, torch.Generator().manual_seed(2)), chosen(name)
    at, params, kept = layout(model), flat_parameters(model), advanced(made, model)
    grads = [
        made.run(
            make_engine("functional", model, probe_loss, microbatch=size), *rows, params=params, state=kept, step=3,
            denominator=DENOMINATOR, layout=at, rng=Silence(),
        ).grad
        for size in (0, 1, 2)
    ]  # fmt: skip
    assert torch.allclose(grads[0], grads[1], atol=1e-7) and torch.allclose(grads[0], grads[2], atol=1e-7)


def quadratic_loss(model, examples, draws):
    """[B] half the squared distance of the parameters from the window: the gradient is theta - x."""
    theta = torch.cat([part.weight[0] for part in model.parts])
    return 0.5 * (theta[None] - examples.values.flatten(1)).square().sum(dim=1)


def quadratic(rows=4):
    model = VectorProbe()
    set_parameters(model, 0.1 * torch.arange(16.0))
    pair = made_up(rows, torch.Generator().manual_seed(3))
    theta = flat_parameters(model)
    return model, pair, theta, theta[None] - pair[0].values.flatten(1)


def flat_mean(rows, bound=BOUND):
    return (rows * (bound / rows.norm(dim=1, keepdim=True)).clamp(max=1)).sum(dim=0) * (1 - 1e-5) / DENOMINATOR


def test_bam_on_a_quadratic():
    """g + alpha r g / |g|, in closed form."""
    model, pair, _, g = quadratic()
    made = recipe(bound=100.0, gradient_rule="bam", gradient_rule_options={"r": 0.3, "alpha": 0.6})
    got = step_of(made, model, quadratic_loss, "functional")(pair, Silence())
    want = flat_mean(g * (1 + 0.6 * 0.3 / g.norm(dim=1, keepdim=True)), bound=100.0)
    assert torch.allclose(got, want, rtol=1e-5)


def test_bam_leaves_a_row_without_gradient_alone():
    model, pair, theta, _ = quadratic(1)
    pair[0].values[:] = theta.view(1, 8, 2)
    got = step_of(recipe(gradient_rule="bam"), model, quadratic_loss, "functional")(pair, Silence())
    assert not got.any()


def test_disk_on_a_quadratic():
    """Gradients are affine, so c g(ahead) + (1 - c) g = g + c gamma (theta - before); then the running mean."""
    kappa, gamma = 0.7, 0.5
    model, pair, theta, g = quadratic()
    made = recipe(bound=100.0, gradient_rule="disk", gradient_rule_options={"kappa": kappa, "gamma": gamma})
    at, kept = layout(model), advanced(made, model)
    state = made.state_layout(at.size).split(kept)["rule"]
    done = made.run(
        make_engine("functional", model, quadratic_loss), *pair, params=theta, state=kept, step=3,
        denominator=DENOMINATOR, layout=at, rng=Silence(),
    )  # fmt: skip
    share = (1 - kappa) / (kappa * gamma)
    mixed = flat_mean(g + share * gamma * (theta - state["previous"])[None], bound=100.0)
    assert torch.allclose(done.grad, (1 - kappa) * state["mean"] + kappa * mixed, rtol=1e-4, atol=1e-6)
    after = made.state_layout(at.size).split(done.state)["rule"]
    assert torch.equal(after["previous"], theta) and torch.equal(after["mean"], done.grad) and after["seen"] == 1


def test_inner_momentum_on_a_quadratic():
    model, pair, theta, g = quadratic()
    made = recipe(bound=100.0, gradient_rule="inner-momentum", gradient_rule_options={"gamma": 0.5, "steps": 3})
    at, state, engine = layout(model), made.initial_state(16), make_engine("functional", model, quadratic_loss)
    points = [theta + k for k in range(4)]
    for step, point in enumerate(points):
        set_parameters(model, point)
        done = made.run(
            engine, *pair, params=point, state=state, step=step, denominator=DENOMINATOR, layout=at, rng=Silence()
        )
        weights = [0.5**k for k in range(min(step + 1, 3))]
        mean = sum(w * (g + step - k) for k, w in enumerate(weights)) / sum(weights)
        assert torch.allclose(done.grad, flat_mean(mean, bound=100.0), rtol=1e-5)
        state = done.state


def test_sparsify_keeps_to_its_mask():
    rule = SparsifyRule(final_rate=0.9, rise=0.5, every=5, steps_total=100)
    assert rule.mask(0, 50).all() and rule.mask(60, 50).sum() == 5 and rule.mask(25, 1000).sum() == 550
    assert torch.equal(rule.mask(60, 50), rule.mask(64, 50)) and not torch.equal(rule.mask(60, 50), rule.mask(65, 50))
    made = recipe(gradient_rule="sparsify", gradient_rule_options={"final_rate": 0.5, "rise": 0.0})
    grads = [
        step_of(made, VectorProbe(), vector_loss, "functional")(made_up(n, torch.Generator().manual_seed(n)), noise)
        for n, noise in ((3, Silence()), (5, stream(1, "noise")), (0, stream(2, "noise")))
    ]
    kept = made.rules.rule.mask(3, 16)
    for grad in grads:  # the same for other data, with noise and for an empty batch
        assert kept.sum() == 8 and (grad[~kept] == 0).all() and grad[kept].all()


def test_error_feedback_adds_up():
    """Sum of what is applied = sum of all answers - the error that is left, exactly (telescoping)."""
    model, made = VectorProbe(), recipe(gradient_rule="error-feedback", gradient_rule_options={"outer": 5.0})
    at, state = layout(model), made.initial_state(16)
    applied, answered = torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    for step in range(6):
        rows = made_up(4, torch.Generator().manual_seed(step))
        engine = make_engine("ghost", model, vector_loss)
        flat, cut = (
            engine.clipped_sum(*rows, clipper).total.to(torch.float64) / DENOMINATOR
            for clipper in (made.rules.clipper, _residual(5.0))
        )
        done = made.run(
            engine, *rows, params=flat_parameters(model), state=state, step=step, denominator=DENOMINATOR, layout=at,
            rng=Silence(),
        )  # fmt: skip
        applied, answered, state = applied + done.grad, answered + flat + cut, done.state
    assert state.norm() > 0
    assert torch.allclose(applied + state, answered, atol=1e-6)


def _residual(outer):
    from fedpriv.privacy.gradient_rules import ResidualClipper

    return ResidualClipper(l2_clip_norm=BOUND, outer=outer)


def test_error_feedback_without_what_it_feeds_back():
    model, rows = VectorProbe(), vector_rows(4)
    plain = step_of(recipe(), model, vector_loss, "ghost")(rows, Silence())
    made = recipe(gradient_rule="error-feedback", gradient_rule_options={"ratio": 0.0})
    assert torch.allclose(step_of(made, model, vector_loss, "ghost")(rows, Silence()), plain, atol=1e-7)
    wide = recipe(bound=1e6, gradient_rule="error-feedback")
    done = wide.run(
        make_engine("ghost", model, vector_loss), *rows, params=flat_parameters(model), state=wide.initial_state(16),
        step=0, denominator=DENOMINATOR, layout=layout(model), rng=Silence(),
    )  # fmt: skip
    assert not done.state.any()  # nothing is cut off


def test_a_residual_never_exceeds_its_bound():
    clipper = _residual(10.0)
    norms = torch.tensor([0.0, *(10.0**e for e in range(-12, 31)), math.nan, math.inf], dtype=torch.float64)
    factors = clipper.factors(norms)
    assert (factors[-2:] == 0).all() and (factors >= 0).all()
    assert (norms[:-2] * factors[:-2] <= clipper.bound * (1 + 1e-5)).all() and clipper.bound == 9 * BOUND


# ---- groups ---------------------------------------------------------------------------------------


def test_groups_are_runs_of_whole_layers():
    names, sizes = ("a.weight", "a.bias", "b.weight", "c.weight", "c.bias"), (6, 2, 4, 10, 2)
    assert layer_cuts(names, sizes) == (0, 8, 12, 24)
    assert layer_cuts(names, sizes, 1) == (0, 24)
    assert layer_cuts(names, sizes, 2) == (0, 12, 24)
    assert layer_cuts(names, sizes, 99) == (0, 8, 12, 24)


def test_group_wise_clips_each_layer_to_its_share():
    model = VectorProbe()
    rows = made_up(1, torch.Generator().manual_seed(1))
    rows[0].values[:] = 1e3
    rows[0].values[:, 4:] = 1e-3  # the last two of four layers get hardly anything
    grad = step_of(recipe(gradient_rule="group-wise"), model, vector_loss, "ghost")(rows, Silence()) * DENOMINATOR
    parts = grad.view(4, 4).norm(dim=1)
    assert torch.allclose(parts[:2], torch.full((2,), BOUND / 2), rtol=1e-4)
    assert torch.allclose(parts[2:], torch.full((2,), 2e-3), rtol=1e-4)


@pytest.mark.parametrize("engine", ["ghost", "functional", "opacus", "single"])
def test_a_row_with_one_bad_layer_adds_nothing(engine):
    rows = vector_rows(1)
    rows[0].values[0, 0, 0] = math.inf
    grad = step_of(recipe(gradient_rule="group-wise"), VectorProbe(), vector_loss, engine)(rows, Silence())
    assert not grad.any()


# ---- engines that cannot --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bam", "sparsify", "disk", "inner-momentum"])
def test_an_engine_without_rows_is_refused(name):
    rules = chosen(name).rules
    assert rules.engine_name("auto") == rules.engine_name("functional") == "functional"
    for engine in ("ghost", "opacus"):
        with pytest.raises(InputError, match=f"{name}.*privacy.engine={engine}.*use functional"):
            rules.engine_name(engine)


@pytest.mark.parametrize("name", ["group-wise", "error-feedback"])
def test_other_rules_run_on_every_engine(name):
    rules = chosen(name).rules
    assert [rules.engine_name(e) for e in ("auto", "ghost", "opacus")] == ["auto", "ghost", "opacus"]


def test_a_query_that_is_not_finite_is_not_released():
    from fedpriv.errors import CheckFailed
    from fedpriv.privacy.joint import Query

    made = recipe()
    engine = make_engine("ghost", VectorProbe(), vector_loss)
    clipped = engine.clipped_sum(*vector_rows(2), make_clipper("flat", bound=BOUND))
    bad = Query(torch.tensor([math.nan], dtype=torch.float64), 1.0, 3.0)
    with pytest.raises(CheckFailed, match="nothing was released"):
        release_jointly(made.mechanism, clipped, [bad], denominator=1.0, rng=Silence())
    with pytest.raises(TypeError, match="private"):
        import pickle

        pickle.dumps(bad)
