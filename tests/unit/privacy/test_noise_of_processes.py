"""Noise of fresh processes: deployed ones share nothing, simulated ones repeat their seed (suite D2)."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

SIZE = 20_000
LIMIT = 6 / np.sqrt(SIZE)
CODE = f"""
import sys
import numpy, torch
from fedpriv.training.streams import Streams
torch.manual_seed(1)
numpy.random.seed(1)
for name in sys.argv[1:]:
    mode, client, number = name.split()
    streams = Streams(mode, 20, client, int(number))
    for purpose in ("noise", "noise", "sampling"):
        rng = streams(purpose)
        drawn = rng.standard_normal({SIZE}) if purpose == "noise" else rng.random({SIZE})
        sys.stdout.buffer.write(drawn.tobytes())
"""
NAMES = ("deployment a 1", "simulation a 1", "simulation b 1", "simulation a 2")


@pytest.fixture(scope="module")
def processes():
    """Of two processes that set the global seeds alike: name -> [3, SIZE], noise, noise asked for again, coins."""
    started = [subprocess.Popen([sys.executable, "-c", CODE, *NAMES], stdout=subprocess.PIPE) for _ in range(2)]
    found = [np.frombuffer(p.communicate()[0], dtype=np.float64).reshape(len(NAMES), 3, SIZE) for p in started]
    assert [p.returncode for p in started] == [0, 0]
    return [dict(zip(NAMES, each, strict=True)) for each in found]


def related(x, y):
    x, y = x - x.mean(), y - y.mean()
    return abs(float(x @ y)) / float(np.sqrt((x @ x) * (y @ y)))


def test_deployed_processes_share_nothing(processes):
    """The same client, round and purpose: fresh noise each time it is asked for, in one process and in the other."""
    noise = [row for each in processes for row in each["deployment a 1"][:2]]
    for x, y in combinations(noise, 2):
        assert related(x, y) < LIMIT and not np.isin(x, y).any()
    assert related(*(each["deployment a 1"][2] for each in processes)) < LIMIT
    assert stats.kstest(np.concatenate(noise), "norm").pvalue > 1e-6


def test_simulated_processes_repeat_their_seed_and_nothing_else(processes):
    for name in NAMES[1:]:
        assert np.array_equal(processes[0][name], processes[1][name])
    first = processes[0]["simulation a 1"]
    assert np.array_equal(first[0], first[1])  # a stream is named by its purpose
    for name in NAMES[2:]:
        other = processes[0][name]
        assert related(first[0], other[0]) < LIMIT and not np.isin(first[0], other[0]).any()
        assert related(first[2], other[2]) < LIMIT
