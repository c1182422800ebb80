"""`@kernel` and `@device`: Numba-CUDA functions that are compiled when first launched or asked for PTX.

Kernel files import the stand-in `cuda` from here, so that they can be imported without CUDA and
without the second that Numba takes. A kernel is compiled from a copy of its function whose globals
hold the real `numba.cuda` and compiled forms of the helpers that it calls.

Every kernel states its signature in Numba's notation, `element` standing for the element type of
weights and activations; it is compiled once for each element type that it meets. The declared
types are what tests compile to PTX and what runs: a Python int becomes the int32 of the signature,
where Numba would otherwise take int64 and twice the registers (numba issue 7613).

Under the CUDA simulator (NUMBA_ENABLE_CUDASIM=1 before Numba is imported) the same functions run as
Python; a `primitive` brings a Python form for what the simulator lacks.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import Any

ELEMENTS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
"""Element types and the types that arrays of them have in kernels. NumPy has no bfloat16: its bits
travel as uint16, see `kernels.cuda.element`."""

KERNELS: dict[str, Kernel] = {}
"""Every kernel that was imported, by module and name."""


class _Stand:
    """`numba.cuda`, imported when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numba_cuda(), name)


cuda: Any = _Stand()


def numba_cuda() -> Any:
    """The module `numba.cuda`; ImportError without Numba-CUDA's package."""
    import numba_cuda  # noqa: F401  Numba's own older copy of numba.cuda is not meant
    from numba import cuda as module

    return module


def simulated() -> bool:
    """Whether kernels run in the CUDA simulator."""
    from numba.core import config

    return bool(config.ENABLE_CUDASIM)


class _Helper:
    """What a kernel may call; `target` is what stands for it in compiled code."""

    target: Any


def real(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of `function` that sees the real `numba.cuda` and the targets of its helpers."""
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        value = names.get(name)
        if value is cuda:
            names[name] = numba_cuda()
        elif isinstance(value, _Helper):
            names[name] = value.target
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    return functools.update_wrapper(copy, function)


class Device(_Helper):
    """A helper in Python, compiled with the kernels that call it."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self.options = options

    @functools.cached_property
    def target(self) -> Any:
        function = real(self.py_func)
        if simulated():
            uses_cuda = "cuda" in self.py_func.__code__.co_names
            return numba_cuda().jit(function, device=True) if uses_cuda else function
        return numba_cuda().jit(function, device=True, **self.options)


class Primitive(_Helper):
    """A helper with one form for the simulator and another for the compiler."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self.build: Callable[[], Any] | None = None

    def compiled(self, build: Callable[[], Any]) -> Callable[[], Any]:
        """Decorate the function that makes the compiled form: a Numba-CUDA intrinsic, an overloaded
        function, or a declared external function."""
        self.build = build
        return build

    @functools.cached_property
    def target(self) -> Any:
        if simulated():
            return Device(self.py_func).target
        assert self.build is not None, f"{self.py_func.__name__} has no compiled form"
        return self.build()


class Kernel:
    """A kernel with its signature.

    hot: it does the heavy lifting of a step, so that spilled registers would show; `options` go to
    `numba.cuda.jit` (link, max_registers, launch_bounds, fastmath, ...).
    """

    def __init__(self, function: Callable[..., Any], signature: str, hot: bool, **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.py_func, self.signature, self.hot, self.options = function, signature, hot, options
        self.name = f"{function.__module__.removeprefix('kernels.')}.{function.__name__}"
        self._compiled: dict[str, Any] = {}

    @property
    def elements(self) -> tuple[str, ...]:
        """Element types that the kernel exists for; one where its signature names none."""
        return tuple(ELEMENTS) if "element" in self.signature else ("float32",)

    @functools.cached_property
    def function(self) -> Callable[..., Any]:
        return real(self.py_func)

    def typed(self, element: str) -> str:
        """The signature for an element type, as Numba reads it."""
        return f"void({self.signature.replace('element', ELEMENTS[element])})"

    def dispatcher(self, element: str) -> Any:
        """The kernel compiled for the current device (or the simulator)."""
        if element not in self._compiled:
            jit = numba_cuda().jit
            make = jit if simulated() else functools.partial(jit, self.typed(element), **self.options)
            self._compiled[element] = make()(self.function)
        return self._compiled[element]

    def launch(self, grid: Any, block: Any, *args: Any, stream: Any = 0) -> None:
        """Start the kernel. Arrays: NumPy (simulator), Numba device arrays or torch CUDA tensors, C-contiguous.

        The first array of the element types decides for which of them the kernel is compiled. Does not wait for the kernel.
        """
        element = "float32" if len(self.elements) == 1 else next(e for a in args if (e := element_of(a)))
        stored = [storage(a) for a in args]
        self._check(stored, ELEMENTS[element])
        self.dispatcher(element)[grid, block, stream](*stored)

    @functools.cached_property
    def _parameters(self) -> list[tuple[str, int]]:
        """(type, dimensions) of each parameter, 0 dimensions for a number."""
        found = re.findall(r"(\w+)(\[[^\]]*\])?", self.signature)
        return [(name, shape.count(":,") + 1 if shape else 0) for name, shape in found]

    def _check(self, args: list[Any], element: str) -> None:
        """Numba takes a kernel of one signature at its word, and the simulator has no types: arguments of
        other types would be read as what they are not."""
        assert len(args) == len(self._parameters), f"{self.name}: {len(args)} arguments for ({self.signature})"
        for place, (arg, (name, dimensions)) in enumerate(zip(args, self._parameters, strict=True)):
            wanted = element if name == "element" else name
            given = str(getattr(arg, "dtype", "")).rpartition(".")[2], getattr(arg, "ndim", 0)
            if dimensions:
                assert given == (wanted, dimensions), f"{self.name}: argument {place} is {given}, not {(wanted, dimensions)}"
                assert _contiguous(arg), f"{self.name}: argument {place} is not C-contiguous"
            else:
                assert given[1] == 0, f"{self.name}: argument {place} is an array, not one {wanted}"


def _contiguous(array: Any) -> bool:
    """Whether a NumPy, torch or Numba device array lies in C order without gaps."""
    for ask in ("is_contiguous", "is_c_contiguous"):
        if hasattr(array, ask):
            return bool(getattr(array, ask)())
    return bool(array.flags.c_contiguous)


def element_of(array: Any) -> str:
    """Name of an array's element type ("" where it is none)."""
    name = str(getattr(array, "dtype", "")).rpartition(".")[2]
    return "bfloat16" if name == "uint16" else name if name in ELEMENTS else ""


def storage(array: Any) -> Any:
    """A torch bfloat16 tensor as its bits; anything else as it is."""
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":
        import torch

        return array.view(torch.uint16)
    return array


def kernel(signature: str, *, hot: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorate a CUDA kernel. `signature`: argument types in Numba's notation, with `element`."""

    def decorate(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature, hot, **options)
        KERNELS[made.name] = made
        return made

    return decorate


def device(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorate a device function; `options` go to `numba.cuda.jit`."""
    if function is None:
        return functools.partial(device, **options)
    return Device(function, **options)


def primitive(function: Callable[..., Any]) -> Primitive:
    """Decorate the simulator's form of a device function; `compiled` adds the other."""
    return Primitive(function)
