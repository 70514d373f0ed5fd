"""Scenarios by name, resources, provenance, process trees, Flower's bundle."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import tomllib

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import flatten_dict, fuse_dicts

from fedpriv.config import Scenario
from fedpriv.errors import CheckFailed, InputError
from fedpriv.provenance import PACKAGES, source_digest, source_files, source_root
from simulations import flower_launch, scenarios
from simulations.processes import alive, descendants, end, marked
from simulations.resources import cores, plan


class TestScenarios:
    def test_every_named_scenario_loads_and_is_described(self):
        assert "synthetic-4" in scenarios.names()
        for name in scenarios.names():
            assert isinstance(scenarios.load(name), Scenario)
            assert scenarios.load(name).run.name == name
            assert scenarios.describe(name)

    def test_none_path_and_object(self, tmp_path):
        assert scenarios.load(None) == Scenario()
        path = tmp_path / "mine.toml"
        path.write_text("[run]\nseed = 7\n")
        assert scenarios.load(path).run.seed == 7 == scenarios.load(str(path)).run.seed
        assert scenarios.load(Scenario()) == Scenario()

    def test_unknown_name_names_the_nearest(self):
        with pytest.raises(InputError, match="did you mean 'eia-8'"):
            scenarios.load("eia-9")
        with pytest.raises(InputError, match="cannot be read"):
            scenarios.load("absent.toml")


class TestResources:
    def test_cores_and_clients_bound_the_workers(self):
        assert plan(0, 10, [{"CPU": 4}]).count == 4
        assert plan(0, 3, [{"CPU": 4}]).count == 3
        assert plan(2, 10, [{"CPU": 4}]).count == 2
        assert plan(0, 100, [{"CPU": 4}, {"CPU": 2}]).count == 6

    def test_gpu_shares_do_not_span_devices(self):
        assert plan(0, 100, [{"CPU": 64, "GPU": 2}], num_gpus=0.25).count == 8
        assert plan(0, 100, [{"CPU": 64, "GPU": 2}], num_gpus=0.4).count == 4
        assert plan(0, 100, [{"CPU": 64, "GPU": 3}], num_gpus=2).count == 1
        assert plan(0, 100, [{"CPU": 3, "GPU": 2}], num_gpus=0.25).count == 3

    def test_nothing_fits(self):
        with pytest.raises(InputError, match=r"run.num_gpus=1 GPUs, but there are 4 cores and 0 GPUs"):
            plan(0, 2, [{"CPU": 4}], num_gpus=1)
        with pytest.raises(InputError, match="no machine"):
            plan(0, 2, [])

    def test_this_machine_has_a_core(self):
        assert cores() >= 1


class TestProvenance:
    def test_digest_follows_names_and_contents(self, tmp_path):
        for package in PACKAGES:
            (tmp_path / package).mkdir()
            (tmp_path / package / "a.py").write_text(f"# {package}\n")
        first = source_digest(tmp_path)
        source_digest.cache_clear()
        (tmp_path / "clients" / "test_x.py").write_text("ignored: no bundle carries it")
        (tmp_path / "clients" / "data.json").write_text("{}")
        (tmp_path / "clients" / "a.py").write_bytes(b"# clients\r\n")
        assert source_digest(tmp_path) == first
        for change in ("# other\n", "# clients\n#"):
            source_digest.cache_clear()
            (tmp_path / "clients" / "a.py").write_text(change)
            assert source_digest(tmp_path) != first

    def test_all_four_packages_are_found(self):
        found = {path.relative_to(source_root()).parts[0] for path in source_files(source_root())}
        assert found == set(PACKAGES)


class TestProcesses:
    def test_a_tree_is_found_and_ended(self):
        code = (
            "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        )
        parent = subprocess.Popen([sys.executable, "-c", code + "time.sleep(600)"])
        deadline = time.monotonic() + 120
        while not (children := descendants(parent.pid)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(children) == 1
        end({parent.pid, *children}, wait=5.0)
        parent.wait(timeout=120)
        deadline = time.monotonic() + 120
        while any(alive(pid) for pid in children) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(alive(pid) for pid in children)

    @pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="marks are read from /proc")
    def test_marked_processes_only(self):
        env = {**os.environ, "FEDPRIV_TEST_MARK": "here"}
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=env)
        try:
            deadline = time.monotonic() + 120
            while marked("FEDPRIV_TEST_MARK", "here") != {child.pid} and time.monotonic() < deadline:
                time.sleep(0.02)
            assert marked("FEDPRIV_TEST_MARK", "here") == {child.pid}
            assert marked("FEDPRIV_TEST_MARK", "her") == set()
        finally:
            child.kill()
            child.wait()

    def test_one_that_does_not_listen_is_killed(self):
        code = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            "print('x', flush=True); time.sleep(600)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        end([child.pid], wait=0.2)
        assert child.wait(timeout=120) < 0


class TestFlowerLauncher:
    def test_bundle_has_the_same_sources_and_the_complete_scenario(self, tmp_path):
        app = flower_launch.write_bundle(tmp_path / "fedpriv")
        assert source_digest(app) == source_digest()
        import io
        import zipfile

        with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as fab:
            fab.extractall(tmp_path / "fab")
        assert source_digest(tmp_path / "fab") == source_digest()
        project = tomllib.loads((tmp_path / "fab" / "pyproject.toml").read_text())
        default = flatten_dict(project["tool"]["flwr"]["app"]["config"])
        changed = Scenario().override(
            {"run.seed": 9, "privacy.clipper_options": {"r": 0.5}, "data.clients": ["A", "B"]}
        )
        fused = fuse_dicts(default, flatten_dict(flower_launch.nested(changed)))
        assert Scenario.from_flat(fused) == changed
        assert (tmp_path / "fab" / "fedpriv" / "data" / "registry.json").exists()

    def test_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLWR_LOG_LEVEL", "DEBUG")
        monkeypatch.setenv("PYTHONPATH", "/somewhere")
        monkeypatch.setenv("FEDPRIV_DATA_DIR", ".")
        env = flower_launch.environment(tmp_path)
        assert "FLWR_LOG_LEVEL" not in env
        assert "PYTHONPATH" not in env
        assert env["FEDPRIV_SIMULATION"] == "1"
        assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert os.path.isabs(env["FEDPRIV_DATA_DIR"])

    @pytest.mark.parametrize(
        ("text", "kind", "said"),
        [
            ("ValueError: ActorPool is empty. Stopping", InputError, "run.num_gpus"),
            ("ModuleNotFoundError: No module named 'torch'", CheckFailed, "missing"),
            ("something else", CheckFailed, "--resume"),
        ],
    )
    def test_flowers_own_errors_are_translated(self, tmp_path, text, kind, said):
        error = flower_launch._from_log(text, tmp_path / "flower.log")
        assert type(error) is kind
        assert said in str(error)
        assert "flower.log" in str(error)


def test_ray_missing_is_bad_input(monkeypatch):
    from simulations.ray_grid import RayGrid

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else found(name, *a))
    with pytest.raises(InputError, match="Ray, which is not installed"):
        RayGrid(2, {})
