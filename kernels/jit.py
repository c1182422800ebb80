"""`@jit`: compile with Numba at the first call, so that importing a kernel imports no compiler.

The work formulas of this package are imported by the simulator, which must start in a fraction of a
second. A `Lazy` function may call other `Lazy` functions: inside compiled code they are plain
Numba functions.

All kernels release the GIL, are cached on disk, and may reorder sums (`reassoc`) so that reductions
vectorise; NaN and infinity keep their meaning, since softmax starts at -inf and tests poison
outputs with NaN. Numba's cache looks at the file of the called function only: after editing a
helper in `vecmath.py` or `gemm.py`, touch the kernels that use it.

Threads: a kernel that takes `threads` runs serially for 1 and otherwise cuts its work into that
many parts in one OpenMP region; waking a sleeping thread costs some 50 us, so there is at most one
region a call. `numba.set_num_threads` holds for the calling thread only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

prange = range
"""Parallel loops are written with this name; it becomes `numba.prange` when a kernel is compiled."""

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


class Lazy:
    """A function that becomes a Numba dispatcher when it is first called or first seen by Numba."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        functools.update_wrapper(self, function)
        self.py_func = function
        self.options = options

    @functools.cached_property
    def dispatcher(self) -> Any:
        import numba

        _teach_numba()
        if self.options.get("parallel"):
            self.py_func.__globals__["prange"] = numba.prange
        return numba.njit(self.py_func, nogil=True, error_model="numpy", boundscheck=False, **self.options)

    def __call__(self, *args: Any) -> Any:
        return self.dispatcher(*args)


def jit(function: Callable[..., Any] | None = None, *, parallel: bool = False) -> Any:
    """Decorate a kernel. `parallel`: it uses `numba.prange`."""
    if function is None:
        return functools.partial(jit, parallel=parallel)
    return Lazy(function, cache=True, parallel=parallel, fastmath=FASTMATH)


def inline(function: Callable[..., Any] | None = None, *, reorder: bool = False) -> Any:
    """Decorate a helper of kernels that LLVM inlines into its callers, so that constants that they
    pass become constants of its loops. Sums stay in the order written unless `reorder`."""
    if function is None:
        return functools.partial(inline, reorder=reorder)
    return Lazy(function, forceinline=True, fastmath=FASTMATH if reorder else {"contract"})


@functools.cache
def _teach_numba() -> None:
    """Let Numba see a `Lazy` global as the dispatcher that it stands for."""
    from numba.core.typing.typeof import typeof_impl

    @typeof_impl.register(Lazy)
    def typeof_lazy(value: Lazy, context: Any) -> Any:
        return typeof_impl(value.dispatcher, context)
