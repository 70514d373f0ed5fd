"""Every gradient engine against plain autograd, one row at a time, written out here."""

import math
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedpriv.errors import InputError
from fedpriv.privacy.audit.probe import Probe, made_up, probe_loss, randomised
from fedpriv.privacy.clippers import CLIPPERS, FlatClipper, make_clipper
from fedpriv.privacy.engines import make_engine
from fedpriv.privacy.engines.base import ROUNDING_MARGIN
from fedpriv.privacy.engines.ghost import GhostEngine
from fedpriv.privacy.engines.rules import register_rule

ENGINES = ["single", "functional", "opacus", "ghost", "ghost-direct", "ghost-tokens", "ghost-native"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name, model, loss=probe_loss, microbatch=0, monkeypatch=None):
    """ghost-direct, ghost-tokens and ghost-native force one of the three norm computations of linear layers."""
    if name == "ghost-native":
        if not shutil.which("g++"):
            pytest.skip("no C++ compiler")
        monkeypatch.setattr("fedpriv.privacy.engines.rules.DIRECT_COST", 1e9)
        return make_engine("ghost", model, loss, microbatch=microbatch, native=True)
    if name.startswith("ghost-"):
        cost = {"ghost-direct": 0.0, "ghost-tokens": 1e9}[name]
        monkeypatch.setattr("fedpriv.privacy.engines.rules.DIRECT_COST", cost)
        name = "ghost"
    return make_engine(name, model, loss, microbatch=microbatch)


def probe(seed=0, **kwargs):
    torch.manual_seed(seed)
    return randomised(Probe(**kwargs), torch.Generator().manual_seed(seed))


def rows(count, seed=1, **kwargs):
    return made_up(count, torch.Generator().manual_seed(seed), **kwargs)


def row(pair, i):
    return pair[0].rows(slice(i, i + 1)), pair[1].rows(slice(i, i + 1))


def reference(model, pair, clipper, loss=probe_loss):
    """Plain autograd per row, float64 norms; returns total and norms."""
    params = [p for p in model.parameters() if p.requires_grad]
    total, norms = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64), []
    for i in range(len(pair[0])):
        value = loss(model, *row(pair, i)).sum()
        grads = torch.autograd.grad(value, params, allow_unused=True)
        flat = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(params, grads, strict=True)]
        )
        flat = flat.double()
        norms.append(flat.norm())
        if flat.isfinite().all():
            total += flat * clipper.factors(norms[-1][None]) * (1 - ROUNDING_MARGIN)
    return total, torch.stack(norms) if norms else torch.zeros(0)


def assert_close(got, want, model, tolerance=1e-5):
    """Relative per parameter tensor and as a whole."""
    start = 0
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = slice(start, start + p.numel())
            start += p.numel()
            error = (got[part].double() - want[part]).norm() / want[part].norm().clamp(min=1e-6 * want.norm())
            assert error <= tolerance, f"{name}: {error:.2g}"
    assert start == len(got)
    assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("clipper", [make_clipper(name, bound=0.7) for name in CLIPPERS], ids=lambda c: c.name)
@pytest.mark.parametrize("draws", [1, 4])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_match_plain_autograd(engine, draws, clipper, monkeypatch):
    model, pair = probe(), rows(7, draws=draws)
    want, norms = reference(model, pair, clipper)
    got = build(engine, model, monkeypatch=monkeypatch).clipped_sum(*pair, clipper)
    assert got.bound == clipper.bound and got.total.dtype == torch.float32
    assert_close(got.total, want, model)
    assert torch.allclose(got.norms.double(), norms, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("microbatch", [1, 3, 100])
def test_microbatches_change_nothing(engine, microbatch, monkeypatch):
    model, pair, clipper = probe(), rows(7, draws=2), FlatClipper(l2_clip_norm=1.0)
    want, _ = reference(model, pair, clipper)
    assert_close(
        build(engine, model, microbatch=microbatch, monkeypatch=monkeypatch).clipped_sum(*pair, clipper).total,
        want,
        model,
    )


GROUPS = {
    "output": lambda n: n.startswith("output"),
    "bias": lambda n: n.endswith("bias"),
    "weight": lambda n: n.endswith("weight"),
    "modulation": lambda n: ".modulate." in n,
    "first": lambda n: n.startswith(("embed", "positions", "time")),
    "last block": lambda n: n.startswith("blocks.1"),
    "raw": lambda n: n.startswith(("positions", "scale", "gain")),
}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("engine", ENGINES)
def test_subsets_of_trainable_parameters(engine, group, monkeypatch):
    model, pair, clipper = probe(), rows(5, draws=3), make_clipper("psac", bound=1.0)
    for name, p in model.named_parameters():
        p.requires_grad_(GROUPS[group](name))
    want, _ = reference(model, pair, clipper)
    assert_close(build(engine, model, monkeypatch=monkeypatch).clipped_sum(*pair, clipper).total, want, model)
    assert [GROUPS[group](n) for n, _ in model.named_parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_initialised_output(engine, monkeypatch):
    torch.manual_seed(0)
    model, pair, clipper = Probe(), rows(4), make_clipper("auto-s", bound=1.0)
    want, _ = reference(model, pair, clipper)
    assert_close(build(engine, model, monkeypatch=monkeypatch).clipped_sum(*pair, clipper).total, want, model)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_batch_gives_zeros(engine, monkeypatch):
    model, clipper = probe(), FlatClipper(l2_clip_norm=1.0)
    got = build(engine, model, monkeypatch=monkeypatch).clipped_sum(*rows(0, draws=2), clipper)
    assert got.total.shape == (sum(p.numel() for p in model.parameters()),)
    assert not got.total.any() and got.norms.shape == (0,)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_does_not_depend_on_the_others(engine, monkeypatch):
    model, pair, clipper = probe(), rows(6, draws=2), make_clipper("auto-v", bound=1.0)
    made = build(engine, model, monkeypatch=monkeypatch)
    alone = sum(made.clipped_sum(*row(pair, i), clipper).total for i in range(6))
    together = made.clipped_sum(*pair, clipper).total
    assert (alone - together).norm() <= 1e-5 * together.norm()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 1e18, 1e12])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_poisoned_row_is_dropped_or_bounded_and_spoils_nothing(engine, value, monkeypatch):
    model, clipper = probe(), FlatClipper(l2_clip_norm=1.0)
    pair = rows(5, draws=2)
    pair[0].values[2, :3] = value
    made = build(engine, model, monkeypatch=monkeypatch)
    got = made.clipped_sum(*pair, clipper)
    rest = torch.tensor([0, 1, 3, 4])
    want = made.clipped_sum(pair[0].rows(rest), pair[1].rows(rest), clipper)
    moved = (got.total.double() - want.total.double()).norm()
    assert got.total.isfinite().all()
    assert moved <= 1.0 + 1e-6
    if not math.isfinite(value):
        assert torch.equal(got.total, want.total) or moved < 1e-5  # a different split of the same sums may round


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", list(CLIPPERS))
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e-6, 1e6, 1e12, 1e18])
def test_the_bound_holds_for_gradients_of_any_size(engine, name, scale, monkeypatch):
    model, clipper = probe(), make_clipper(name, bound=0.5)
    pair = rows(1, draws=2)

    def scaled(module, examples, draws):
        return probe_loss(module, examples, draws) * scale

    got = build(engine, model, scaled, monkeypatch=monkeypatch).clipped_sum(*pair, clipper)
    norm = got.total.double().norm()
    assert norm <= clipper.bound
    want, _ = reference(model, pair, clipper, scaled)
    assert norm == pytest.approx(float(want.norm()), rel=2e-5, abs=1e-30)


class Cancelling(nn.Module):
    """Token gradients that cancel almost wholly: where ghost norms in float32 lose their digits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x, time, examples):
        del time, examples
        y = self.linear(x)  # [B, L, 3]
        sign = torch.ones(x.shape[1]) * 1e4
        sign[::2] = -1e4
        return (y * sign[None, :, None]).sum(dim=(1, 2)) + 1e-3 * y.sum(dim=(1, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_cancelling_tokens_do_not_fool_the_norm(engine, monkeypatch):
    def loss(module, examples, draws):
        return module(torch.ones_like(examples.values) + 1e-4 * examples.values, draws.time, examples)

    model, pair, clipper = Cancelling(), rows(3), make_clipper("auto-v", bound=1.0)
    made = build(engine, model, loss, monkeypatch=monkeypatch)
    for i in range(3):
        norm = made.clipped_sum(*row(pair, i), clipper).total.double().norm()
        assert norm <= 1.0 and norm > 0.999


class Twice(nn.Module):
    """One layer used three times in a pass, once on fewer tokens."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)

    def forward(self, x, time, examples):
        del time, examples
        y = self.norm(functional.gelu(self.linear(x)) + x)
        return self.norm(self.linear(y)) + self.linear(y[:, :2]).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("engine", ["functional", "ghost", "ghost-direct", "ghost-tokens", "ghost-native"])
def test_a_layer_used_several_times(engine, monkeypatch):
    model, pair, clipper = Twice(), rows(5, draws=2), FlatClipper(l2_clip_norm=0.5)
    want, _ = reference(model, pair, clipper)
    assert_close(build(engine, model, monkeypatch=monkeypatch).clipped_sum(*pair, clipper).total, want, model)


class Generic(nn.Module):
    """Layers without a rule of their own but with one input: handled by their own backward pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.group = nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x, time, examples):
        del time, examples
        return self.linear(self.group(self.conv(x.transpose(1, 2))).transpose(1, 2))


@pytest.mark.parametrize("engine", ["functional", "opacus", "ghost"])
def test_layers_without_a_special_rule(engine, monkeypatch):
    model, pair, clipper = (
        randomised(Generic(), torch.Generator().manual_seed(3)),
        rows(5),
        FlatClipper(l2_clip_norm=1.0),
    )
    want, _ = reference(model, pair, clipper)
    assert_close(build(engine, model, monkeypatch=monkeypatch).clipped_sum(*pair, clipper).total, want, model)


class RawBesideChildren(nn.Module):
    def __init__(self):
        super().__init__()
        self.raw, self.linear = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)

    def forward(self, x, time, examples):
        del time, examples
        return self.linear(x * self.raw)


class WeightOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, time, examples):
        del time, examples
        return self.linear(x) + functional.linear(x, self.linear.weight)


class SharedAcrossRows(nn.Module):
    """Calls a layer on something without rows whose length happens to divide."""

    def __init__(self):
        super().__init__()
        self.positions, self.linear = nn.Embedding(12, 2), nn.Linear(2, 2)

    def forward(self, x, time, examples):
        del time, examples
        return self.linear(x) + self.positions(torch.arange(12))[: x.shape[1]]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, time, examples):
        del time, examples
        x = x.clone()
        y = self.linear(x)
        x += 1
        return y


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
        self.two.weight = self.one.weight

    def forward(self, x, time, examples):
        del time, examples
        return self.two(self.one(x))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(8)

    def forward(self, x, time, examples):
        del time, examples
        return self.norm(self.linear(x))


@pytest.mark.parametrize("kind", [RawBesideChildren, WeightOutside, SharedAcrossRows, Tied, Normed])
def test_the_ghost_engine_refuses_what_it_cannot_see(kind):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=kind.__name__ if kind in (WeightOutside, SharedAcrossRows) else "module"):
        make_engine("ghost", kind(), probe_loss).clipped_sum(*rows(4), FlatClipper(l2_clip_norm=1.0))


def test_an_input_changed_in_place_is_noticed():
    engine = GhostEngine(InPlace(), probe_loss, check=False)
    with pytest.raises(InputError, match="changed in place"):
        engine.clipped_sum(*rows(4), FlatClipper(l2_clip_norm=1.0))


@pytest.mark.parametrize("kind", [RawBesideChildren, Tied])
def test_auto_falls_back_to_functional(kind):
    torch.manual_seed(0)
    model, pair, clipper = kind(), rows(4), FlatClipper(l2_clip_norm=1.0)
    want, _ = reference(model, pair, clipper)
    made = make_engine("auto", model, probe_loss)
    assert type(made).__name__ == "FunctionalEngine"
    assert_close(made.clipped_sum(*pair, clipper).total, want, model)


def test_auto_prefers_ghost():
    assert type(make_engine("auto", probe(), probe_loss)).__name__ == "GhostEngine"


@pytest.mark.parametrize("engine", ["functional", "opacus", "ghost", "single"])
def test_batch_statistics_are_refused_by_every_engine(engine):
    with pytest.raises(InputError, match=r"'norm' \(BatchNorm1d\)"):
        make_engine(engine, Normed(), probe_loss)


@pytest.mark.parametrize("engine", ["functional", "opacus", "ghost", "single"])
def test_a_batch_mean_is_not_a_loss(engine):
    with pytest.raises(InputError, match="one loss per row"):
        make_engine(engine, probe(), lambda m, e, d: probe_loss(m, e, d).mean()).clipped_sum(
            *rows(3), FlatClipper(l2_clip_norm=1.0)
        )


@pytest.mark.parametrize("engine", ["opacus", "ghost", "functional"])
def test_engines_leave_no_trace_on_the_model(engine):
    model, pair, clipper = probe().eval(), rows(3), FlatClipper(l2_clip_norm=1.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(3):  # a new engine each round, as clients do
        make_engine(engine, model, probe_loss).clipped_sum(*pair, clipper)
    for module in model.modules():
        assert not module._forward_hooks and not module._backward_hooks and not module.training
        assert not hasattr(module, "activations") and not hasattr(module, "autograd_grad_sample_hooks")
    for p in model.parameters():
        assert p.grad is None and p.requires_grad and not hasattr(p, "grad_sample")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("engine", ["opacus", "ghost"])
def test_an_error_in_the_loss_leaves_no_trace_either(engine):
    model = probe()
    made = make_engine(engine, model, lambda m, e, d: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.clipped_sum(*rows(2), FlatClipper(l2_clip_norm=1.0))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_engines_work_where_gradients_are_switched_off():
    model, pair, clipper = probe(), rows(3), FlatClipper(l2_clip_norm=1.0)
    want, _ = reference(model, pair, clipper)
    with torch.no_grad():
        for engine in ["single", "functional", "opacus", "ghost"]:
            assert_close(make_engine(engine, model, probe_loss).clipped_sum(*pair, clipper).total, want, model)


def test_registered_rules_are_used_and_checked():
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x + self.raw

    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = Shift()

        def forward(self, x, time, examples):
            del time, examples
            return self.shift(x)

    model, pair, clipper = Host(), rows(4, draws=2), FlatClipper(l2_clip_norm=0.1)
    register_rule(Shift, lambda module, a, g: {"raw": 2 * g.flatten(1, -2).sum(dim=1)})
    with pytest.raises(InputError, match="differ from plain autograd"):
        make_engine("ghost", model, probe_loss).clipped_sum(*pair, clipper)
    register_rule(Shift, lambda module, a, g: {"raw": g.flatten(1, -2).sum(dim=1)})
    want, _ = reference(model, pair, clipper)
    assert_close(make_engine("ghost", model, probe_loss).clipped_sum(*pair, clipper).total, want, model)


def test_sensitive_results_show_no_numbers_and_cannot_be_pickled():
    import pickle

    got = make_engine("ghost", probe(), probe_loss).clipped_sum(*rows(3), FlatClipper(l2_clip_norm=1.0))
    assert "sensitive" in repr(got) and "tensor" not in repr(got)
    with pytest.raises(TypeError, match="private"):
        pickle.dumps(got)


def test_unknown_engine_names_the_nearest():
    with pytest.raises(InputError, match="'ghost'"):
        make_engine("gost", probe(), probe_loss)


class Turned(nn.Module):
    """Two layers that read passing copies: the second copy may lie where the first one lay."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 12), nn.Linear(16, 12)

    def forward(self, x):  # [R K, 16, 5]
        return self.first(torch.sin(x).transpose(1, 2)).tanh() + self.second(torch.cos(3 * x).transpose(1, 2))


def test_an_input_that_had_to_be_copied_is_not_taken_for_another_ones_copy():
    def loss(model, examples, draws):
        rows, count = draws.time.shape
        out = model(draws.noise.reshape(rows * count, 16, 5))
        return out.square().mean(dim=(1, 2)).reshape(rows, count).mean(dim=1)

    torch.manual_seed(0)
    model, clipper = Turned(), make_clipper("flat", bound=0.01)
    pair = made_up(3, torch.Generator().manual_seed(1), draws=2, times=10, length=16, channels=5, features=2)
    want, norms = reference(model, pair, clipper, loss)
    got = make_engine("ghost", model, loss).clipped_sum(*pair, clipper)  # its own check uses other sizes
    assert_close(got.total, want, model)
    assert torch.allclose(got.norms, norms, rtol=1e-5)
