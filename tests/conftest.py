"""What all tests share: published data where they are, one thread, repeatable property tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("fedpriv", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("fedpriv")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The directory with the published data sets; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    root = Path(os.environ.get("FEDPRIV_DATA_DIR") or beside)
    if not (root / "eia930").is_dir():
        pytest.skip("the published data sets are not here (FEDPRIV_DATA_DIR)")
    return root
