"""Arrays that count the arithmetic done on them, by the rules of `kernels.cost`."""

from __future__ import annotations

from typing import Any

import numpy as np

FREE = {np.isnan, np.isfinite}


class Counted(np.ndarray):
    """Counts elementwise operations, reductions (n for n numbers), matrix products (2 m k n) and argmax."""

    flops = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        plain = [np.asarray(x).view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc is np.matmul:
            Counted.flops += 2 * np.size(result) * plain[0].shape[-1]
        elif method == "reduce":
            Counted.flops += np.size(plain[0])
        elif ufunc not in FREE:
            Counted.flops += np.size(result)
        return np.asarray(result).view(Counted)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function is np.argmax:
            Counted.flops += np.size(args[0])
            return np.argmax(np.asarray(args[0]).view(np.ndarray), *args[1:], **kwargs)
        if function is np.where:  # a choice costs nothing; what is chosen is still counted
            return np.where(*(np.asarray(a) for a in args)).view(Counted)
        return super().__array_function__(function, types, args, kwargs)


def count(function: Any, *arguments: Any) -> int:
    """FLOPs of function(*arguments), its float arrays being counted."""
    Counted.flops = 0
    function(*(a.view(Counted) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments))
    return Counted.flops
