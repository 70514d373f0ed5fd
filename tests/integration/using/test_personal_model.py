"""A client's own model on a user's table: by name and by file, with its remark, and of no other run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clients.personal_file import write_personal
from fedpriv.cli import main
from fedpriv.errors import InputError
from fedpriv.trained import Trained

NAME = "utility-000"


def file_of(run) -> Path:
    return run.folder.ledger_path(NAME).with_name(f"{NAME}.personal.safetensors")


def words(run, which, source: Path, out: Path) -> list[str]:
    return ["forecast", str(run.path), "--personal", str(which), "--input", str(source), "--output", str(out)]


def test_by_name_and_by_file_it_is_the_clients_own_model(forecaster, load, write_table, tmp_path, capsys) -> None:
    source, out = write_table(load, tmp_path / "load.csv"), tmp_path / "out.csv"
    moved = tmp_path / "own.safetensors"
    moved.write_bytes(file_of(forecaster).read_bytes())
    found = []
    for which in (NAME, moved):
        assert main([*words(forecaster, which, source, out), "--overwrite"]) == 0
        assert "must not leave the client" in " ".join(capsys.readouterr().err.split())
        found.append(pd.read_csv(out)["mean"].to_numpy())
    with pytest.warns(UserWarning, match="must not leave the client"):
        by_hand = forecaster.forecast(load, personal=NAME)["mean"].to_numpy()
    shared = forecaster.forecast(load)["mean"].to_numpy()
    for each in found:
        np.testing.assert_allclose(each, by_hand, rtol=1e-6)
    assert not np.allclose(by_hand, shared, rtol=1e-6)
    own = Trained.load(forecaster.path, weights=moved)
    assert any(not np.array_equal(p.detach().numpy(), forecaster.model[n]) for n, p in own.model.named_parameters())


def test_a_private_one_fills_gaps_without_a_remark(filler, gappy, write_table, tmp_path, capsys) -> None:
    source, out = write_table(gappy, tmp_path / "gaps.csv"), tmp_path / "out.csv"
    asked = ["impute", str(filler.path), "--personal", NAME, "--input", str(source), "--output", str(out), "--json"]
    assert main(asked) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["filled"] > 0 and not any("noise" in note for note in summary["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        own, shared = filler.impute(gappy, personal=NAME), filler.impute(gappy)
    assert not own.equals(shared)
    assert own.where(gappy.notna()).equals(shared.where(gappy.notna()))


def test_json_carries_the_remark(forecaster, load, write_table, tmp_path, capsys) -> None:
    source = write_table(load, tmp_path / "load.csv")
    assert main([*words(forecaster, NAME, source, tmp_path / "out.csv"), "--json"]) == 0
    assert any("without noise" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_what_is_no_model_of_this_run_is_refused(forecaster, filler, load, write_table, tmp_path, capsys) -> None:
    source, out = write_table(load, tmp_path / "load.csv"), tmp_path / "out.csv"
    (tmp_path / "text").write_text("no model")
    own = file_of(forecaster)
    short = tmp_path / "short.safetensors"
    run_id = str(forecaster.status["run_id"])
    write_personal(short, {"some.weight": np.zeros(3, dtype=np.float32)}, about={"run": run_id})
    for which, expected in [
        ("nobody", f"clients with one in {forecaster.path}: {NAME}, utility-001"),
        (tmp_path / "text", "cannot be read"),
        (forecaster.path / "model.safetensors", "is not a client's own model"),
        (file_of(filler), "was made in another run"),
        (short, "is missing"),
    ]:
        assert main(words(forecaster, which, source, out)) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert expected in said and "Traceback" not in said and not out.exists()
    assert own.exists()
    with pytest.raises(InputError, match="another run"):
        forecaster.personal(file_of(filler))


def test_a_run_without_personal_models_says_so(forecaster, load, write_table, tmp_path, capsys) -> None:
    source = write_table(load, tmp_path / "load.csv")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "scenario.toml").write_text(forecaster.scenario.override({"personal.kind": "none"}).to_toml())
    assert main(["forecast", str(plain), "--personal", NAME, "--input", str(source), "--output", "out.csv"]) == 2
    assert "personal.kind=none" in " ".join(capsys.readouterr().err.split())
