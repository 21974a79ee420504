"""What is counted as cost."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from vnet.core.hardware import peak_memory_mib, reset_peak_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory can be reset on Linux alone")
def test_the_peak_starts_anew() -> None:
    block = np.ones(100 * 2**17)  # 100 MiB
    before = peak_memory_mib()
    assert block.all()
    del block
    if not reset_peak_memory():
        pytest.skip("this kernel does not reset the peak")
    after = peak_memory_mib()
    assert before - after > 80
    again = np.ones(200 * 2**17)
    assert again.all()
    assert peak_memory_mib() - after > 150
