"""Labels of ledgers that stand alone, their keys and signatures, the page, and the commands around them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from dp_accounting import dp_event

from fedpriv.cli import main
from fedpriv.config import Scenario
from fedpriv.errors import CheckFailed, InputError
from fedpriv.privacy.accounting import epsilon
from fedpriv.privacy.contract import Contract, canonical
from fedpriv.privacy.events import encode_event
from fedpriv.privacy.hardened import discrete_event
from fedpriv.privacy.label import build_label, build_stated_label
from fedpriv.privacy.ledger import Ledger
from fedpriv.privacy.renyi_contract import RenyiContract
from fedpriv.privacy.samplers import RandomPhaseTiling
from fedpriv.privacy.signing import make_key, public_hex, read_key, sign_label, verify_label
from fedpriv.reports.label_page import label_html

BINDING = {"budget_epsilon": 8.0, "delta": 1e-5, "unit": "reading", "relation": "zero-out", "mode": "deployment"}
PROMISE = {"unit": "reading", "relation": "zero-out", "delta": 1e-5, "epsilon": 8.0}
SAMPLER = RandomPhaseTiling(96, 0.114)
TERMS = {**SAMPLER.terms(), "noise_multiplier": 5.2, "clipper": "auto-s", "bound": 1.0, "steps_per_day": 24}


def training(**changes) -> Contract:
    event = dp_event.PoissonSampledDpEvent(0.114, dp_event.GaussianDpEvent(5.2))
    fields = {"run_id": "r", "event": encode_event(event), "steps_total": 500, "terms": canonical(TERMS), **PROMISE}
    return Contract(**{**fields, **changes})


def side(kind: str, sigma: float, times: int, **terms) -> Contract:
    return Contract(
        run_id=f"r#{kind}", event=encode_event(dp_event.GaussianDpEvent(sigma)), steps_total=times,
        terms=canonical({"side_release": kind, "noise_multiplier": sigma, **terms}), **PROMISE,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path):
    def make(*contracts, name: str = "alpha", **binding) -> Path:
        path = tmp_path / f"{name}.sqlite"
        with Ledger.create(path, dataset=name, **{**BINDING, **binding}) as ledger:
            ledger.enrol(*contracts)
        return path

    return make


def test_a_ledger_alone_gives_its_label(made):
    label = build_label(None, {"alpha": made(training())}, calendar_steps=8640)
    assert label["ladder"]["reading"] == pytest.approx(1.994, rel=0.01)
    assert label["ladder"]["day"] == pytest.approx(2.718, rel=0.01)  # the phase counts as published: not 2.539
    assert label["ladder"]["meter"] == pytest.approx(24.06 * 50, rel=0.05)
    assert label["ladders"]["replace-one"]["reading"] == pytest.approx(4.26, rel=0.01)
    assert label["mechanism"]["alpha"]["clipper"] == "auto-s"
    assert label["mechanism"]["alpha"]["steps_total"] == 500
    assert label["side_releases"] == []
    assert not label["seeded"]
    assert label["evaluation"].startswith("no scores")


def test_a_day_is_a_day_on_the_calendar_of_each_contract(made):
    fine = canonical({**TERMS, "steps_per_day": 96})
    both = build_label(None, {"a": made(training(terms=fine), training(run_id="s", steps_total=1), name="a")})
    alone = build_label(None, {"b": made(training(terms=fine), name="b")})
    assert alone["ladder"]["day"] == pytest.approx(4.37, rel=0.01)  # up to two tiles of 96, in most phases
    for rung in ("reading", "day", "week", "month"):
        assert both["ladder"][rung] >= alone["ladder"][rung]
    assert "24 and 96 steps a day" in both["assumptions"][-1]
    assert "steps a day" not in alone["assumptions"][-1]
    clients = {"b": made(training(), name="c"), "a": made(training(terms=fine), name="d")}  # the worst of all clients
    assert build_label(None, clients, steps_per_day=24)["ladder"]["day"] == alone["ladder"]["day"]


def test_a_meter_is_left_open_where_calendars_differ(made):
    fine = training(run_id="s", steps_total=1, terms=canonical({**TERMS, "steps_per_day": 96}))
    label = build_label(None, {"a": made(training(), fine)}, calendar_steps=8640)
    assert label["ladder"]["meter"] is None and label["ladder"]["month"] is not None


def test_what_clients_state_of_a_one_round_model_makes_a_label():
    statistics = side("statistics", 2.0, 1, window=96, stride=6, steps_per_day=24, model="ridge")
    cost = epsilon(dp_event.GaussianDpEvent(2.0), 1, 1e-5, "zero-out")
    stated = {"a": {"committed": cost, "nominal": cost, "budget": 8.0, "delta": 1e-5}}
    label = build_stated_label(Scenario(), [statistics], stated, steps_per_day=24)
    assert label["max_epsilon"] == label["ladder"]["reading"] == pytest.approx(cost)
    assert label["mechanism"]["a"]["model"] == "ridge"


def test_side_releases_are_listed_and_counted_in_every_rung(made):
    plain = build_label(None, {"alpha": made(training())})
    path = made(
        training(), side("count", 50.0, 1), side("metrics", 100.0, 12, window=96, cap=4.0, scores=["x"]), name="b"
    )
    label = build_label(None, {"b": path})
    assert [r["release"] for r in label["side_releases"]] == ["count", "metrics"]
    assert label["side_releases"][1]["times"] == 12
    for rung in ("reading", "day", "week"):
        assert label["ladder"][rung] > plain["ladder"][rung]
    assert label["committed"]["b"] == pytest.approx(label["ladder"]["reading"], rel=1e-6)
    assert label["ladder"]["week"] > 3 + plain["ladder"]["week"] - 1  # a count noised for a reading moves by 168 a week
    assert label["evaluation"].startswith("noisy scores")


def test_a_hardened_ledger_says_what_is_not_claimed(made):
    terms = canonical({**TERMS, "noise": "discrete-gaussian", "noise_multiplier": 20.0})
    path = made(training(event=encode_event(discrete_event(20.0)), steps_total=300, terms=terms))
    label = build_label(None, {"alpha": path})
    assert "not amplified" in label["accountant"]["name"]
    assert label["mechanism"]["alpha"]["noise_multiplier"] == 20.0
    assert label["ladder"]["reading"] == pytest.approx(label["committed"]["alpha"], rel=1e-6)
    assert label["ladder"]["day"] > label["ladder"]["reading"]
    assert not any("floating point" in a for a in label["assumptions"])


def test_a_filter_promises_its_own_unit_only(made):
    path = made(RenyiContract(run_id="r", order=8.0, terms=canonical(TERMS), **{**PROMISE, "epsilon": 6.0}))
    label = build_label(None, {"alpha": path})
    assert label["max_epsilon"] == pytest.approx(6.0, abs=1e-6)
    assert label["ladder"]["reading"] == label["max_epsilon"]
    assert label["ladder"]["day"] is None
    assert "order 8" in label["accountant"]["name"]
    assert "Renyi" in label["mechanism"]["alpha"]["filter"]


# ---- keys and signatures --------------------------------------------------------------------------


def test_keys_are_private_and_never_overwritten(tmp_path: Path):
    path = tmp_path / "label.key"
    public = make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public == public_hex(read_key(path))
    with pytest.raises(InputError, match="never overwritten"):
        make_key(path)
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    path.write_text("not a key")
    with pytest.raises(InputError, match="Ed25519"):
        read_key(path)
    for missing in (tmp_path / "none", tmp_path / "no" / "dir"):
        with pytest.raises(InputError):
            read_key(missing)
    with pytest.raises(InputError, match="cannot be written"):
        make_key(tmp_path / "no" / "dir")


def test_the_page_is_one_file_and_says_what_the_label_says(made, tmp_path: Path):
    label = build_label(None, {"alpha": made(training())})
    make_key(tmp_path / "k")
    for one in (label, sign_label(label, read_key(tmp_path / "k"))):
        page = label_html(one, name="<alpha>")
        assert page.startswith("<!doctype html>")
        assert "&lt;alpha&gt;" in page
        assert "http://" not in page and "https://" not in page and "<script" not in page
        assert "committed" in page and "zero-out" in page
        assert ("Not signed" in page) == ("signature" not in one)
    assert one["signature"]["public_key"] in page


def test_the_commands(made, tmp_path: Path, capsys):
    path, key = made(training()), tmp_path / "label.key"
    assert main(["ledger", "keygen", str(key), "--json"]) == 0
    public = json.loads(capsys.readouterr().out)["public_key"]
    out, html = tmp_path / "label.json", tmp_path / "label.html"
    assert main(["ledger", "label", str(path), "--sign", str(key), "--out", str(out), "--html", str(html)]) == 0
    assert "auto-s" in capsys.readouterr().out
    assert "Ed25519" in html.read_text()
    verify_label(json.loads(out.read_text()), public_key=public)
    assert main(["ledger", "label", str(out), "--verify", "--public-key", public]) == 0
    assert public in capsys.readouterr().out
    assert main(["ledger", "label", str(out), "--verify", "--public-key", "00" * 32]) == 1
    changed = json.loads(out.read_text()) | {"max_epsilon": 0.1}
    out.write_text(json.dumps(changed))
    assert main(["ledger", "label", str(out), "--verify"]) == 1
    assert "changed" in capsys.readouterr().err
    assert main(["ledger", "label", str(path), "--verify"]) == 1  # a fresh label is not signed
    assert main(["ledger", "keygen", str(key)]) == 2
    (tmp_path / "other.json").write_text("{}")
    assert main(["ledger", "label", str(tmp_path / "other.json")]) == 2
    with pytest.raises(CheckFailed):
        verify_label(changed)


def test_a_node_file_names_ledger_and_key(made, tmp_path: Path, capsys):
    path, key = made(training()), tmp_path / "label.key"
    public = make_key(key)
    node = tmp_path / "node.toml"
    fields = {"client": "alpha", "ledger": str(path), "dataset": "alpha", "key": str(key)}
    lines = [f'{name} = "{value}"' for name, value in fields.items()]
    node.write_text("\n".join([*lines, "epsilon = 8.0", "delta = 1e-5", "[data]", 'source = "csv"']) + "\n")
    node.chmod(0o600)
    assert main(["ledger", "label", str(node), "--json"]) == 0
    verify_label(json.loads(capsys.readouterr().out), public_key=public)
    node.write_text("client = 1")
    assert main(["ledger", "label", str(node)]) == 2
