"""Matrix products of another library: exact or not used, and never left switched on."""

import warnings

import pytest
import torch

from fedpriv import products

SETTING = torch.backends.mkldnn.matmul
needs_onednn = pytest.mark.skipif(bool(products.problem()), reason="no exact oneDNN products here")


@pytest.fixture(autouse=True)
def fresh():
    products._exact.cache_clear()
    before = SETTING.fp32_precision
    yield
    assert SETTING.fp32_precision == before
    products._exact.cache_clear()


@needs_onednn
def test_the_setting_lasts_as_long_as_its_block():
    before = SETTING.fp32_precision
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with products.matrix_products("onednn"), products.matrix_products("onednn"):
            assert SETTING.fp32_precision == "bf16"
        with pytest.raises(KeyError), products.matrix_products("onednn"):
            raise KeyError
    assert SETTING.fp32_precision == before


@pytest.mark.parametrize("kind, device", [("default", "cpu"), ("onednn", "cuda")])
def test_nothing_is_changed_unless_asked_and_on_the_cpu(kind, device, monkeypatch):
    monkeypatch.setattr(products, "problem", lambda: pytest.fail("probed"))
    before = SETTING.fp32_precision
    with products.matrix_products(kind, torch.device(device)):
        assert SETTING.fp32_precision == before


def test_products_of_lower_precision_are_found_out(monkeypatch):
    """As a processor with units for bfloat16 would make them."""
    whole = torch.Tensor.__matmul__

    def rounded(a, b):
        half = a.dtype == torch.float32 and SETTING.fp32_precision == "bf16"
        return whole(a.bfloat16().float(), b.bfloat16().float()) if half else whole(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert "not float32" in products.problem()
    with pytest.warns(UserWarning, match="is not used"), products.matrix_products("onednn"):
        assert SETTING.fp32_precision != "bf16"
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        with products.matrix_products("onednn"):
            assert SETTING.fp32_precision != "bf16"


def test_a_pytorch_without_the_setting_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no oneDNN" in products.problem()
