"""Where a program makes Python wait for the device, found on the CPU: each operation that would ask a GPU for a value.

Shared by the tests and benchmarks; not a test module.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from tiny import REPOSITORY
from torch.utils._python_dispatch import TorchDispatchMode


# A value of a tensor, or a size that depends on values.
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
# They read a tensor's memory, which on the CPU is no operation of its own.
READING = ("tolist", "cpu", "numpy", "__array__")


class Waits(TorchDispatchMode):
    """Counts them while it is entered.

    Attributes:
        ours: by "file:line function" of this package.
        theirs: by the same of transformers, accelerate or whoever else called torch.
    """

    def __init__(self):
        super().__init__()
        self.ours, self.theirs = Counter(), Counter()
        self._is_counting = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._asks(func, args, kwargs):
            self._count(func.__name__)
        return func(*args, **kwargs)

    def __enter__(self):
        self._methods = {name: getattr(torch.Tensor, name) for name in READING}
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, self._counted(name, method))
        return super().__enter__()

    def __exit__(self, *error):
        for name, method in self._methods.items():
            setattr(torch.Tensor, name, method)
        return super().__exit__(*error)

    def not_counting(self, function):
        """`function`, in which tensors are on the CPU anyway."""

        def call(*args, **kwargs):
            with self._paused():
                return function(*args, **kwargs)

        return call

    def _counted(self, name, method):
        def call(tensor, *args, **kwargs):
            self._count(name)
            with self._paused():  # one reads through another
                return method(tensor, *args, **kwargs)

        return call

    @contextmanager
    def _paused(self):
        before, self._is_counting = self._is_counting, False
        try:
            yield
        finally:
            self._is_counting = before

    @staticmethod
    def _asks(func, args, kwargs) -> bool:
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        return name in ASKING

    def _count(self, operation: str) -> None:
        if not self._is_counting:
            return
        frame, is_backward = sys._getframe(2), False
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            is_backward |= frame.f_code.co_name == "_engine_run_backward"
            if path != Path(__file__) and not path.is_relative_to(Path(torch.__file__).parent):
                break
            frame = frame.f_back
        place = f"{path.name}:{frame.f_lineno} {frame.f_code.co_name} ({operation})"
        if is_backward:  # what asks there is the other side of something in the forward pass
            self.ours[f"backward, from {place}"] += 1
        elif path.is_relative_to(REPOSITORY / "modeling_part"):
            self.ours[place] += 1
        else:
            self.theirs[place] += 1
