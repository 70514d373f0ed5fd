"""The allocator setting runs and leaves the process working (in a process of its own)."""

import subprocess
import sys


def test_it_can_be_switched_on():
    code = (
        "import torch; from fedpriv.privacy.engines.allocator import keep_freed_memory as keep; "
        "assert keep() in (True, False); assert torch.ones(10_000_000).sum() == 10_000_000"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
