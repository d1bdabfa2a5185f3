# SPDX-License-Identifier: Apache-2.0
"""A CUDA device for tests on machines that have none: what CUDA refuses raises, all else runs on the CPU.

`Simulated` is a tensor that says it is on ``cuda:0`` and holds a plain one.  Within `simulated_gpu()`
torch reports one device, tensors go there and come back only where the code says so, and raise

- operations on tensors of both devices (but for what CUDA allows: scalars, copies, indices on the CPU);
- ``numpy()`` and everything that calls it;
- CPU generators for random numbers there; these are another stream than the CPU's, as on a GPU;
- what torch has no CUDA kernel for, as far as `RESTRICTED` lists it;
- values read before `torch.cuda.synchronize` of a copy to the CPU that was not to block (NaN until then);
- CUDA in a process that was forked from one which had asked for it.

It knows nothing of speed, memory or the rounding of CUDA's kernels; autocast follows the CPU's list of
operations.  Files that `torch.save` wrote hold plain tensors; only ``torch.load(map_location="cuda")`` moves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
HERE = torch.device("cuda", 0)
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
FORKED = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
    "'spawn' start method"
)
MEMORY = 8 << 30


class Simulated(torch.Tensor):
    """A tensor on the simulated device; the plain one is ``inner``."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Simulated:
        options: dict[str, Any] = {"dispatch_layout": True}
        if inner.layout is torch.strided:
            options = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        with torch.inference_mode(False):  # so that views of what was made outside may be taken inside
            self = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, dtype=inner.dtype, device=inner.device, **options
            )
        self.inner = inner.detach()
        return self

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({self.inner!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict, _context: None, _size: Any, _stride: Any) -> Simulated:
        return Simulated(inner["inner"])

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Move(torch.autograd.Function):
    """A copy from one device to the other, through which gradients flow."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        plain = _plain(x).clone()
        if isinstance(x, Simulated):
            _STATE.fetched += 1
            return plain
        _STATE.sent += 1
        return Simulated(plain)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _Move.apply(grad)


def _plain(x: Any) -> Any:
    return x.inner if isinstance(x, Simulated) else x


def _wrapped(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and not isinstance(x, Simulated):
        return _Move.apply(x)
    return x


@dataclass
class _State:
    random: torch.Tensor | None = None  # state of the device's random numbers
    asked_in: int | None = None  # process that asked for CUDA
    late: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # copies under way
    sent: int = 0  # copies to the device
    fetched: int = 0  # copies from there, values read one by one included


_STATE = _State()


def _touch() -> None:
    """What using CUDA does to the process, and refuses to a child of one that used it."""
    if _STATE.asked_in not in (None, os.getpid()):
        raise RuntimeError(FORKED)
    _STATE.asked_in = os.getpid()


# The torch functions (level of Python): which device is meant.

_SAYS = {
    torch.Tensor.device.__get__: lambda x: HERE,
    torch.Tensor.is_cuda.__get__: lambda x: True,
    torch.Tensor.is_cpu.__get__: lambda x: False,
    torch.Tensor.get_device: lambda x: 0,
}
_TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}
_MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}


def _called(func: Any, args: tuple, kwargs: dict) -> Any:
    on_gpu = any(isinstance(x, Simulated) for x in tree_leaves((args, kwargs)))
    if on_gpu and func in _SAYS:
        return _SAYS[func](args[0])
    if on_gpu and func in _TO_NUMPY:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )
    if on_gpu and func is torch.Tensor.tolist:
        return args[0].inner.tolist()
    wanted = _device_of(func, args, kwargs)
    if wanted is not None and wanted.type == "cuda":
        _touch()
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise RuntimeError("CUDA error: invalid device ordinal")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if func in _MOVES:
        return _moved(func, args, kwargs, wanted)
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        with torch._C.DisableTorchFunctionSubclass(), _Factories() if on_gpu else nullcontext():
            return func(*args, **kwargs)
    args, kwargs = _with_device(args, kwargs, torch.device("cpu"))
    with torch._C.DisableTorchFunctionSubclass():
        if wanted.type == "cpu":
            return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        with _Factories():
            return tree_map(_wrapped, func(*args, **kwargs))


def _as_device(x: Any) -> torch.device | None:
    if isinstance(x, torch.device):
        return x
    return torch.device(x) if isinstance(x, str) and x.split(":")[0] in ("cpu", "cuda") else None


def _device_of(func: Any, args: tuple, kwargs: dict) -> torch.device | None:
    """The device that a call names, if it does."""
    if func is torch.Tensor.cuda:
        return HERE
    if func is torch.Tensor.cpu:
        return torch.device("cpu")
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    if func is torch.Tensor.to:
        for x in args[1:]:
            if isinstance(x, torch.Tensor):
                return x.device
            if _as_device(x) is not None:
                return _as_device(x)
    return None


def _with_device(args: tuple, kwargs: dict, device: torch.device) -> tuple[tuple, dict]:
    args = tuple(device if _as_device(x) is not None else x for x in args)
    return args, {k: device if k == "device" else v for k, v in kwargs.items()}


def _moved(func: Any, args: tuple, kwargs: dict, wanted: torch.device | None) -> torch.Tensor:
    """``x.to(...)``, ``x.cuda()``, ``x.cpu()``."""
    x, rest = args[0], args[1:]
    if func is torch.Tensor.to:
        rest = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in rest)
        late = kwargs.get("non_blocking") or True in rest[1:]
        dtype = kwargs.get("dtype") or next((a for a in rest if isinstance(a, torch.dtype)), None)
        if dtype is not None:
            with torch._C.DisableTorchFunctionSubclass():
                x = func(x, dtype)
    else:
        late = kwargs.get("non_blocking")
    if wanted is None or (wanted.type == "cuda") == isinstance(x, Simulated):
        return x
    out = _Move.apply(x)
    if late and wanted.type == "cpu" and out.is_floating_point() and not out.requires_grad:
        _STATE.late.append((out, out.clone()))
        out.fill_(torch.nan)
    return out


class _Devices(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Within a call that works on the device, what torch itself makes anew is there, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, torch.Tensor) for x in tree_leaves((args, kwargs))):
            return _computed(func, args, kwargs)
        with _stream() if torch.Tag.nondeterministic_seeded in func.tags else nullcontext():
            out = func(*args, **kwargs)
        return tree_map(lambda x: Simulated(x) if isinstance(x, torch.Tensor) and x.ndim else x, out)


# The operations themselves (level of ATen): what may meet what.


def _computed(func: Any, args: tuple, kwargs: dict) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_gpu = [x for x in tensors if isinstance(x, Simulated)]
    if on_gpu:
        _STATE.fetched += func is aten._local_scalar_dense.default
        _refuse_mixed(func, args, tensors)
        for check in RESTRICTED.get(func.overloadpacket, ()):
            check(func, [x.inner for x in on_gpu], args, kwargs)
    by_inner = {id(x.inner): x for x in on_gpu}
    given = {id(x): x for x in tensors}
    with _stream() if torch.Tag.nondeterministic_seeded in func.tags and on_gpu else nullcontext():
        out = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))

    def back(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not on_gpu:
            return x
        if id(x) in by_inner:
            return by_inner[id(x)]
        return x if id(x) in given else Simulated(x)

    return tree_map(back, out)


_COPIES = {aten.copy_, aten._to_copy}
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


def _refuse_mixed(func: Any, args: tuple, tensors: list[torch.Tensor]) -> None:
    plain = [x for x in tensors if not isinstance(x, Simulated) and x.ndim]
    if not plain or func.overloadpacket in _COPIES:
        return
    if func.overloadpacket in _INDEXED:
        others = [args[0], *args[2:]]
        if isinstance(args[0], Simulated) and not any(x is y for x in plain for y in others):
            return
        if not isinstance(args[0], Simulated):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
    raise RuntimeError(f"{MIXED} (when checking arguments of {func})")


@contextmanager
def _stream() -> Iterator[None]:
    """The device's own random numbers."""
    before = torch.random.default_generator.get_state()
    if _STATE.random is None:
        _seeded(torch.initial_seed())
    torch.random.default_generator.set_state(_STATE.random)
    try:
        yield
    finally:
        _STATE.random = torch.random.default_generator.get_state()
        torch.random.default_generator.set_state(before)


def _seeded(seed: int) -> None:
    _STATE.random = torch.Generator().manual_seed((int(seed) + 0x9E3779B9) % 2**63).get_state()


Check = Callable[[Any, list[torch.Tensor], tuple, dict], None]


def _no_kernel(func: Any, inner: Any, args: Any, kwargs: Any) -> None:
    raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend.")


def _no_whole_numbers(func: Any, inner: list[torch.Tensor], args: Any, kwargs: Any) -> None:
    wrong = [x.dtype for x in inner if not (x.is_floating_point() or x.is_complex())]
    if wrong:
        raise RuntimeError(f'"addmm_cuda" not implemented for {str(wrong[0])!r}')


def _gels_only(func: Any, inner: Any, args: tuple, kwargs: dict) -> None:
    driver = kwargs.get("driver") or (args[3] if len(args) > 3 else None)
    if driver not in (None, "gels"):
        raise RuntimeError("torch.linalg.lstsq: `driver` other than `gels` is not supported on CUDA")


def _one_dtype(func: Any, inner: list[torch.Tensor], args: Any, kwargs: Any) -> None:
    if len({x.dtype for x in inner}) > 1:
        raise RuntimeError("expected mat1 and mat2 to have the same dtype")


def _csr_only(func: Any, inner: list[torch.Tensor], args: Any, kwargs: Any) -> None:
    """Sparse times dense: cuSPARSE takes COO, CSR and BSR, with values in float32, float64 or complex."""
    for x in inner:
        if x.layout in (torch.sparse_csc, torch.sparse_bsc):
            raise RuntimeError(f"addmm: computation on CUDA is not implemented for {x.layout}")
        if x.layout is not torch.strided and x.dtype in (torch.float16, torch.bfloat16):
            raise RuntimeError(f'"addmm_sparse_cuda" not implemented for {str(x.dtype)!r}')


_PRODUCT = (_no_whole_numbers, _one_dtype, _csr_only)
RESTRICTED: dict[Any, tuple[Check, ...]] = {
    **dict.fromkeys((aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.mv), _PRODUCT),
    **dict.fromkeys((aten.addmv, aten.dot, aten._sparse_addmm), _PRODUCT),
    aten.linalg_lstsq: (_gels_only,),
    aten.histogram: (_no_kernel,),
    aten._histogramdd_bin_edges: (_no_kernel,),
    aten._sparse_mm_reduce_impl: (_no_kernel,),
}
"""Where CUDA does less than the CPU: torch's documentation of each function, and its kernels' messages."""


def _arrived(*_: Any) -> None:
    for target, values in _STATE.late:
        target.copy_(values)
    _STATE.late.clear()


def _load(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        device = _as_device(map_location)
        if device is None or device.type != "cuda":
            return original(file, map_location, *args, **kwargs)
        found = original(file, "cpu", *args, **kwargs)
        return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, found)

    return load


def _autocast(original: Any) -> Any:
    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return autocast


def _grouped(original: Callable[..., dict]) -> Callable[..., dict]:
    """What optimisers ask: tensors by device and dtype."""

    def grouped(*args: Any) -> dict:
        found = original(*args)
        return {
            (HERE if any(isinstance(x, Simulated) for x in tree_leaves(own)) else device, dtype): own
            for (device, dtype), own in found.items()
        }

    return grouped


def _thread_run(original: Callable[..., None]) -> Callable[..., None]:
    def run(self: threading.Thread) -> None:
        with _Devices():  # modes are a thread's own
            original(self)

    return run


@contextmanager
def simulated_gpu() -> Iterator[_State]:
    """Let torch have one CUDA device within the context, in threads and forked processes as well.

    Yields counts of copies between the devices (``sent``, ``fetched``).
    """
    _STATE.__init__()
    cuda = {
        "is_available": lambda: _STATE.asked_in is not None or _touch() is None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": _arrived,
        "empty_cache": lambda: None,
        "is_initialized": lambda: _STATE.sent > 0,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "get_device_name": lambda device=None: "simulated",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(name="simulated", total_memory=MEMORY),
        "manual_seed": _seeded,
        "manual_seed_all": _seeded,
        "_lazy_init": _touch,
    }
    with ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(torch.version, "cuda", torch.version.cuda or "13.0"))
        # builds of torch with CUDA let optimisers ask the driver whether a graph is being captured
        stream = SimpleNamespace(is_capturing=lambda: False)
        stack.enter_context(patch.object(torch.accelerator, "current_stream", lambda *args: stream))
        stack.enter_context(patch.object(torch, "load", _load(torch.load)))
        stack.enter_context(patch.object(torch, "autocast", _autocast(torch.autocast)))
        name = "_group_tensors_by_device_and_dtype"
        stack.enter_context(patch.object(torch._C, name, _grouped(getattr(torch._C, name))))
        stack.enter_context(patch.object(threading.Thread, "run", _thread_run(threading.Thread.run)))
        stack.enter_context(_Devices())
        yield _STATE
