"""The machine: peak memory, measured on memory that is really taken."""

import os
import sys

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qa_helpers.common.device import (
    MIB,
    autocast,
    default_device,
    describe_machine,
    has_native_bf16,
    longest_first,
    peak_memory_mib,
    release_memory,
    reset_peak_memory,
)
from qa_helpers.common.io import CourseError

TAKEN = 256  # MiB


def take_and_free():
    torch.ones(TAKEN * MIB, dtype=torch.uint8, device=default_device())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def can_reset():
    """Whether the peak can begin anew here."""
    if torch.cuda.is_available():
        return True
    try:
        os.close(os.open("/proc/self/clear_refs", os.O_WRONLY))
    except OSError:
        return False
    return True


def test_peak_memory_includes_what_is_freed_by_now():
    reset_peak_memory()
    before = peak_memory_mib()
    take_and_free()
    if can_reset():
        assert before + 0.9 * TAKEN < peak_memory_mib() < before + 2 * TAKEN
    assert peak_memory_mib() >= TAKEN


@pytest.mark.skipif(not can_reset(), reason="the peak cannot be reset on this system")
def test_after_a_reset_the_peak_is_what_is_still_held():
    reset_peak_memory()
    before = peak_memory_mib()
    take_and_free()
    held = torch.ones(TAKEN * MIB, dtype=torch.uint8, device=default_device())
    both = peak_memory_mib()
    reset_peak_memory()
    assert before + 0.9 * TAKEN < peak_memory_mib() <= both
    del held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    reset_peak_memory()
    assert peak_memory_mib() < both - 0.9 * TAKEN


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="Linux's resident set")
def test_the_peak_is_at_least_the_resident_set():
    import psutil

    assert peak_memory_mib() >= 0.95 * psutil.Process().memory_info().rss / MIB > 50


@pytest.mark.skipif(sys.platform != "linux", reason="what a process gives back can be asked on Linux only")
def test_released_memory_goes_back_to_the_system():
    process = psutil.Process()
    garbage = [bytearray(b"x") * 2**14 for _ in range(TAKEN * 64)]  # pieces that the C library keeps when freed
    garbage.append(garbage)  # and that only the garbage collector frees
    kept = garbage[-2]  # the last piece, so that the heap cannot shrink from its end by itself
    full = process.memory_info().rss
    del garbage
    release_memory()
    assert process.memory_info().rss < full - 0.8 * TAKEN * MIB
    assert len(kept) == 2**14


def test_float32_can_be_asked_for_where_bfloat16_is_native(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    cpu = torch.device("cpu")
    assert has_native_bf16(cpu)
    monkeypatch.setenv("QA_PRECISION", "fp32")
    assert not has_native_bf16(cpu)
    assert describe_machine()["precision"] == "fp32"
    with autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setenv("QA_PRECISION", "double")
    with pytest.raises(CourseError, match="QA_PRECISION is 'double'; set it to fp32, or leave it unset"):
        has_native_bf16(cpu)


# ---- batches of like length -------------------------------------------------------------------------------------
def test_the_longest_come_first_and_equals_keep_their_order():
    assert list(longest_first([3, 9, 3, 5, 9], 2)) == [[1, 4], [3, 0], [2]]
    assert list(longest_first([], 2)) == []


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 7))
def test_every_item_stands_in_one_batch_and_none_in_a_later_one_is_longer(lengths, batch_size):
    batches = list(longest_first(lengths, batch_size))
    order = [number for batch in batches for number in batch]
    assert sorted(order) == list(range(len(lengths)))
    keys = [(-lengths[number], number) for number in order]
    assert keys == sorted(keys)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
