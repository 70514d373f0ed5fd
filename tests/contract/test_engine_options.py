"""The ghost engine's options: C++ norms and compilation. Same sums, and the plain path where they cannot be had."""

import shutil
import warnings

import pytest
import torch
from torch import nn

from fedpriv import native as building
from fedpriv.errors import InputError
from fedpriv.privacy.audit.probe import made_up, probe_loss
from fedpriv.privacy.clippers import FlatClipper, make_clipper
from fedpriv.privacy.engines import make_engine, native
from fedpriv.products import matrix_products, problem
from tests.contract.test_engines import assert_close, probe, reference, row, rows
from tests.contract.test_engines_denoiser import VARIANTS, setup, trained  # noqa: F401 (a fixture)

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(building, "_found", {})


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS)
def test_native_norms_agree_on_the_denoiser(variant, trained):  # noqa: F811
    model, loss, examples, draws = setup(VARIANTS[variant] | (trained if variant == "lora" else {}))
    for name in ("flat", "psac"):
        clipper = make_clipper(name, bound=0.3)
        want = make_engine("single", model, loss).clipped_sum(examples, draws, clipper)
        got = make_engine("ghost", model, loss, native=True).clipped_sum(examples, draws, clipper)
        assert (got.total - want.total).norm() <= 1e-5 * want.total.norm(), name
        assert torch.allclose(got.norms, want.norms, rtol=1e-5), name


@needs_compiler
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 15, 16, 17, 40])
@pytest.mark.parametrize("sizes", [(1, 1), (15, 17), (64, 56), (280, 3)])
def test_native_squares_for_awkward_shapes(tokens, sizes, bias):
    operator = native.operator(device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(tokens)
    a, g = (torch.randn(4, tokens + 2, n + 3, generator=generator)[:, 1:-1, :n] for n in sizes)  # views, not dense
    assert not a.is_contiguous()
    got, size = operator.ghost_squares(a, g, bias)
    inputs, outputs = a.double() @ a.double().mT + float(bias), g.double() @ g.double().mT
    roots = (inputs.diagonal(dim1=1, dim2=2) * outputs.diagonal(dim1=1, dim2=2)).sqrt().sum(dim=1)
    # Signed terms may cancel, and the engine allows for it by this very bound (LinearTerm.square).
    assert ((got.double() - (inputs * outputs).sum(dim=(1, 2))).abs() <= 2.0**-22 * roots.square()).all()
    torch.testing.assert_close(size.double(), roots, rtol=1e-5, atol=1e-6)


def without_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))


def test_without_a_compiler_the_engine_warns_and_works(monkeypatch, tmp_path):
    without_compiler(monkeypatch, tmp_path)
    model, pair, clipper = probe(), rows(4), FlatClipper(l2_clip_norm=1.0)
    with pytest.warns(UserWarning, match="using PyTorch's"):
        engine = make_engine("ghost", model, probe_loss, native=True)
    want, _ = reference(model, pair, clipper)
    assert_close(engine.clipped_sum(*pair, clipper).total, want, model)


@needs_compiler
def test_a_library_that_others_may_have_written_is_built_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = building.place("ghost-norms", native.SOURCE)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not ours")
    path.chmod(0o666)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.operator(device=torch.device("cpu")) is not None
    assert path.read_bytes()[:4] == b"\x7fELF" and not path.stat().st_mode & 0o077


@needs_compiler
def test_a_wrong_operator_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "SOURCE", native.SOURCE.replace("total += 2.0 * sum", "total += sum"))
    with pytest.warns(UserWarning, match="disagrees"):
        assert native.operator(device=torch.device("cpu")) is None


def test_nothing_is_built_unless_asked(monkeypatch):
    monkeypatch.setattr(native, "operator", lambda **_: pytest.fail("built"))
    make_engine("auto", probe(), probe_loss)


@pytest.mark.parametrize("engine", ["functional", "opacus", "single"])
@pytest.mark.parametrize("option", ["native", "compile", "bf16"])
def test_options_of_the_ghost_engine_are_refused_elsewhere(engine, option):
    with pytest.raises(InputError, match="ghost"):
        make_engine(engine, probe(), probe_loss, **{option: True})


def test_both_options_together_are_refused():
    for other in ("native", "bf16"):
        with pytest.raises(InputError, match="exclude"):
            make_engine("ghost", probe(), probe_loss, compile=True, **{other: True})


@pytest.mark.filterwarnings("ignore:privacy.bf16=true, but")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_compiler)])
def test_passes_in_bfloat16_are_less_exact_but_keep_the_bound(variant, native, trained):  # noqa: F811
    model, loss, examples, draws = setup(VARIANTS[variant] | (trained if variant == "lora" else {}))
    engine = make_engine("ghost", model, loss, bf16=True, native=native)
    norms = make_engine("single", model, loss).clipped_sum(examples, draws, FlatClipper(l2_clip_norm=1.0)).norms
    clipper = FlatClipper(l2_clip_norm=float(norms.median()))  # some rows are clipped, some are not
    want = make_engine("single", model, loss).clipped_sum(examples, draws, clipper)
    got = engine.clipped_sum(examples, draws, clipper)
    assert got.total.dtype == torch.float32
    assert (got.total - want.total).norm() <= 0.03 * want.total.norm()
    assert torch.allclose(got.norms, want.norms, rtol=0.03)
    for i in range(len(examples)):  # the norm that clips is the norm of what is added, to float32's digits
        one = engine.clipped_sum(examples.rows(slice(i, i + 1)), draws.rows(slice(i, i + 1)), clipper)
        added = one.total.double().norm()
        assert added <= clipper.bound * (1 + 1e-5)
        assert added == pytest.approx(min(float(one.norms[0]), clipper.bound), rel=2e-5)


def test_a_processor_without_matrix_units_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    with pytest.warns(UserWarning, match="slower"):
        make_engine("ghost", probe(), probe_loss, bf16=True)


def test_rows_beyond_float32_are_left_out_in_bfloat16_too():
    model, clipper = probe(), FlatClipper(l2_clip_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = make_engine("ghost", model, probe_loss, bf16=True)
    examples, draws = rows(4)
    for value in (float("nan"), float("inf"), 1e30):
        examples.values[2] = value
        got = engine.clipped_sum(examples, draws, clipper).total
        assert got.isfinite().all() and got.norm() <= 4 * (1 + 1e-5)


@pytest.mark.skipif(bool(problem()), reason="no exact oneDNN products here")
@pytest.mark.parametrize("variant", ["skip", "dp-aware"])
def test_engines_agree_with_the_other_products_too(variant):
    model, loss, examples, draws = setup(VARIANTS[variant])
    clipper = make_clipper("flat", bound=0.3)
    want = make_engine("single", model, loss).clipped_sum(examples, draws, clipper)
    for name, options in (("functional", {}), ("opacus", {}), ("ghost", {}), ("ghost", {"microbatch": 2})):
        with matrix_products("onednn"):
            got = make_engine(name, model, loss, **options).clipped_sum(examples, draws, clipper)
        assert (got.total - want.total).norm() <= 1e-5 * want.total.norm(), name
        assert torch.allclose(got.norms, want.norms, rtol=1e-5), name


def test_what_an_engine_returned_is_not_overwritten_by_its_next_step():
    model, clipper = probe(), FlatClipper(l2_clip_norm=1.0)
    engine = make_engine("ghost", model, probe_loss)
    first = engine.clipped_sum(*rows(3), clipper).total
    kept = first.clone()
    engine.clipped_sum(*rows(5), clipper)
    assert torch.equal(first, kept)


def test_frozen_layers_ahead_of_the_first_trainable_one_are_not_differentiated():
    model, seen = probe(), []
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("output"))
    engine = make_engine("ghost", model, probe_loss)
    handle = model.blocks[0].register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
    engine.clipped_sum(*rows(3), FlatClipper(l2_clip_norm=1.0))
    handle.remove()
    assert seen and not any(seen[-1:])


def products(run):
    """How many plain matrix products a call makes."""
    with torch.autograd.profiler.profile() as profile:
        run()
    return sum(e.count for e in profile.key_averages() if e.key == "aten::mm")


def test_autograd_computes_no_weight_gradients():
    model, pair, clipper = probe(), rows(6), FlatClipper(l2_clip_norm=1.0)
    engine = make_engine("ghost", model, probe_loss)
    engine.clipped_sum(*pair, clipper)  # the comparison with plain autograd is behind
    everything = products(lambda: torch.autograd.grad(probe_loss(model, *pair).sum(), list(model.parameters())))
    linear = sum(type(m) is nn.Linear for m in model.modules())
    assert products(lambda: engine._measured(*pair)) == everything - linear


@needs_compiler
@pytest.mark.slow
def test_a_compiled_engine_gives_the_same_sums_for_any_number_of_rows():
    model, loss, examples, draws = setup(VARIANTS["dp-aware"])
    engine = make_engine("ghost", model, loss, compile=True, microbatch=4)
    clipper = make_clipper("psac", bound=0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the private step was not compiled")
        for count in (5, 4, 1, 0, 5):
            some, drawn = examples.rows(slice(0, count)), draws.rows(slice(0, count))
            want = make_engine("single", model, loss).clipped_sum(some, drawn, clipper)
            got = engine.clipped_sum(some, drawn, clipper)
            assert (got.total - want.total).norm() <= 1e-5 * want.total.norm()
            assert torch.allclose(got.norms, want.norms, rtol=1e-5)
            with torch.no_grad():  # the graph must see new parameters
                for p in model.parameters():
                    p.mul_(1.05)
    poisoned = examples.rows(slice(0, 5))
    poisoned.values[2] = float("nan")
    got = engine.clipped_sum(poisoned, draws, clipper)
    rest = torch.tensor([0, 1, 3, 4])
    want = make_engine("single", model, loss).clipped_sum(poisoned.rows(rest), draws.rows(rest), clipper)
    assert (got.total - want.total).norm() <= 1e-5 * want.total.norm()


def test_where_compilation_fails_the_engine_warns_and_works(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    model, clipper = probe(), FlatClipper(l2_clip_norm=1.0)
    pair = made_up(5, torch.Generator().manual_seed(1), draws=2)
    engine = make_engine("ghost", model, probe_loss, compile=True, microbatch=3)
    with pytest.warns(UserWarning, match="not compiled"):
        got = engine.clipped_sum(*pair, clipper)
    want, _ = reference(model, pair, clipper)
    assert_close(got.total, want, model)
    alone = engine.clipped_sum(*row(pair, 1), clipper).total
    assert_close(alone, reference(model, row(pair, 1), clipper)[0], model)
