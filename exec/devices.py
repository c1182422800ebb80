"""What may play the device of a run: this computer's own threads, or a CUDA GPU."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING

from sim.errors import UserError

if TYPE_CHECKING:
    from exec.backends.cuda.torch_device import CudaDevice


class DeviceName(StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def missing() -> str:
    """What a CUDA run lacks here, in a few words; empty: nothing."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU, or its driver is too old for " + f"CUDA {torch.version.cuda}"
    return ""


def check(name: DeviceName) -> None:
    """Raises UserError where this computer has no such device."""
    if name is DeviceName.cuda and (lacks := missing()):
        raise UserError(f"--device cuda: {lacks}; use --device cpu here, or a machine with an NVIDIA GPU and a CUDA build of torch")


def check_count(needed: int) -> None:
    """Raises UserError where this computer has fewer CUDA devices than ranks here need, one each."""
    check(DeviceName.cuda)
    import torch

    if (found := torch.cuda.device_count()) < needed:
        flag = "torchrun --nproc-per-node" if "LOCAL_WORLD_SIZE" in os.environ else "--ranks"
        raise UserError(f"--device cuda: {needed} ranks on this computer need a GPU each, and it has {found}; give {flag} {found} at most")


def for_ranks(name: DeviceName, ranks: int) -> str:
    """`exec.cluster.job.Order.device` of ranks that compute on `name`. Raises UserError where this computer has not one for each
    of those that run on it."""
    if name is DeviceName.cpu:
        return ""
    check_count(int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
    from torch import distributed

    if not distributed.is_nccl_available():
        raise UserError("--device cuda: this torch is built without NCCL, by which ranks exchange rows; use one with it, or --device cpu")
    return str(name)


def opened(name: DeviceName) -> CudaDevice | None:
    """The device for one run, None for this computer's threads. Raises as `check`."""
    check(name)
    if name is DeviceName.cpu:
        return None
    from exec.backends.cuda.torch_device import CudaDevice

    return CudaDevice()
