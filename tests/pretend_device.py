"""A device that does not exist, for finding what would fail on a GPU: tensors that are kept apart from the CPU's.

Within `pretend_device()`, tensors "on" `DEVICE` hold their values in a tensor of the CPU and calculate with it. As on
a GPU, an operation on one of them and one of the CPU's is an error, unless the latter is a single number.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")


class Elsewhere(torch.Tensor):
    """A tensor on the device; `values` are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "Elsewhere":
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        tensor = torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype, device=DEVICE, **shape)
        tensor.values = values
        return tensor

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return calculate(func, args, kwargs or {})


def calculate(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, and where: on the device if it is told so, or its tensors are there."""
    tensors = [given for given in tree_flatten((args, kwargs))[0] if isinstance(given, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_"):  # places in a tensor may be listed on the CPU
        tensors = [args[0], *args[2:]]
    elif name in ("_to_copy", "copy_"):
        tensors = []
    if there and any(isinstance(t, torch.Tensor) and t.dim() and not isinstance(t, Elsewhere) for t in tensors):
        raise AssertionError(f"{name}: expected all tensors to be on the same device, but found {DEVICE} and cpu")
    told = kwargs.get("device")
    result_there = torch.device(told) == DEVICE if told is not None else bool(there)
    if name == "_local_scalar_dense":
        result_there = False
    if told is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.values, (args, kwargs))
    result = func(*args, **kwargs)
    if name.endswith("_") and there:  # in place: the same tensor again
        return there[0]
    return tree_map_only(torch.Tensor, Elsewhere, result) if result_there else result


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return calculate(func, args, kwargs or {})


class _Tensor(TorchFunctionMode):
    """`torch.tensor` makes no values on a device of this kind: they are made on the CPU and brought there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func is torch.tensor else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


@contextlib.contextmanager
def pretend_device() -> Iterator[torch.device]:
    """Within, `DEVICE` can be calculated on."""
    with _Mode(), _Tensor():
        yield DEVICE
