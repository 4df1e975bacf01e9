"""What this machine is and can do: its device, number formats, memory; and how far work on it is."""

import contextlib
import ctypes
import gc
import os
import platform
import random
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import nn

from qa_helpers.common.io import CourseError

MIB = 2**20


def progress_bar(*iterable: Any, **options: Any) -> Any:
    """A tqdm bar that fits notebook or terminal, gone when done, and silent under TQDM_DISABLE=1.

    tqdm itself heeds that variable in terminals only. An iterable, if one is given, is gone through under the bar.
    """
    from tqdm.auto import tqdm

    return tqdm(*iterable, disable=os.environ.get("TQDM_DISABLE", "") not in ("", "0"), leave=False, **options)


def default_device() -> torch.device:
    """The accelerator if there is one (CUDA, then Apple's MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_native_bf16(device: torch.device | None = None) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: CUDA from Ampere, CPUs with AVX512-BF16 or AMX.

    Elsewhere bfloat16 is emulated and slower than float32, so training stays in float32. With `QA_PRECISION=fp32` it
    does so everywhere, as on a machine without bfloat16.

    Raises:
        CourseError: if that variable says anything else.
    """
    asked = os.environ.get("QA_PRECISION", "")
    if asked == "fp32":
        return False
    if asked:
        raise CourseError(f"QA_PRECISION is '{asked}'; set it to fp32, or leave it unset for bfloat16 where it is fast")
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device | None = None) -> torch.autocast:
    """The context for model calls: bfloat16 where the device has it natively, otherwise float32."""
    device = device or default_device()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_native_bf16(device))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within, and afterwards as it was, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def longest_first(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers (from 0) of items of these lengths in batches of like length: so hardly any padding is computed.

    The longest come first: where memory does not suffice, it runs out at once. Items of one length keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def set_seed(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (torch's covers every GPU)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def release_memory() -> None:
    """Give memory that is used no longer back to the system: Python's garbage, and what the C library keeps of it."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> None:
    """Begin `peak_memory_mib` anew where that is possible: on CUDA and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # a sandbox may forbid it
            file.write("5")


def peak_memory_mib() -> float:
    """Peak memory in MiB since `reset_peak_memory`, or of this process so far where that does nothing.

    On a GPU it is what torch reserved there, else the resident set.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / MIB
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / MIB
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB  # bytes on macOS


def processor_name() -> str:
    """The CPU's name as the system gives it, or its architecture where it gives none."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """What a record states of the machine: device, number format, threads, memory in GiB and versions."""
    import psutil

    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "device_name": name,
        "precision": "bf16 autocast" if has_native_bf16(device) else "fp32",
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in ("torch", "transformers", "peft", "numpy", "tokenizers")},
    }
