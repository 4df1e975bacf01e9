"""Benchmarks measure what a user gets: every core computes, where the other tests use one thread."""

from collections.abc import Iterator

import psutil
import pytest
import torch


@pytest.fixture(autouse=True)
def every_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give torch a thread a core, in this process and in those that a benchmark starts."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    yield
    torch.set_num_threads(before)
