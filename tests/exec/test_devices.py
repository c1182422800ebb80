"""Without a GPU: one line and exit code 2; and nothing of CUDA is imported to say so."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from exec import devices
from exec.cli.app import main
from exec.devices import DeviceName
from sim.errors import UserError

NO_GPU = not torch.cuda.is_available()

COMMANDS = [
    "run --model tiny-mixtral --machine any.yaml --workload mtbench --scheduler cgopipe",
    "run --model tiny-mixtral --workload mtbench --scheduler cgopipe",  # without --machine, which takes such a device
    "run --model tiny-mixtral --ranks 2 --tokens 8 --scheduler overlapped",
    "calibrate -o profile.yaml",
    "calibrate --ranks 2 -o profile.yaml",
    "validate --machine any.yaml",
    "validate --ranks 2,4",
    "bench --op router",
]


@pytest.mark.skipif(not NO_GPU, reason="this computer has a GPU")
@pytest.mark.parametrize("command", COMMANDS)
def test_device_cuda_says_what_is_missing_and_what_to_use(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--device", "cuda"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: --device cuda: torch ")
    assert "use --device cpu here" in err


@pytest.mark.parametrize("command", ["run --model tiny-mixtral", "validate"])
def test_placed_experts_are_on_no_device(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where there is a GPU: no run on cores passes for one on it."""
    assert main([*command.split(), "--ranks", "2", "--placement", "eplb", "--device", "cuda"]) == 2
    assert "--device cuda: does not go with --placement" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("cuda", "available", "says"), [
    (None, False, "is built without CUDA"), ("13.0", False, "finds no NVIDIA GPU"), ("13.0", True, ""),
])  # fmt: skip
def test_what_is_missing(cuda: str | None, available: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert says in devices.missing()
    if says:
        with pytest.raises(UserError, match=says):
            devices.check(DeviceName.cuda)
    else:
        devices.check(DeviceName.cuda)
    devices.check(DeviceName.cpu)


def test_each_rank_of_a_computer_needs_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun only so many of all ranks run here as it says."""
    monkeypatch.setattr(devices, "missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert devices.for_ranks(DeviceName.cpu, 9) == ""
    assert devices.for_ranks(DeviceName.cuda, 2) == "cuda"
    with pytest.raises(UserError, match=r"--device cuda: 4 ranks on this computer need a GPU each, and it has 2; give --ranks 2"):
        devices.for_ranks(DeviceName.cuda, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert devices.for_ranks(DeviceName.cuda, 4) == "cuda"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 ranks on this computer need a GPU each, and it has 2; give torchrun --nproc-per-node 2"):
        devices.for_ranks(DeviceName.cuda, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: this torch is built without NCCL"):
        devices.for_ranks(DeviceName.cuda, 2)


def test_packages_are_imported_without_torch_or_numba() -> None:
    """What takes seconds to import is imported when it is used; `python -X importtime` tells the rest."""
    code = "import sys, exec, kernels, exec.devices; print(*{'torch', 'numba', 'numba_cuda', 'cuda'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_a_profile_of_the_other_device_is_refused() -> None:
    from exec.local import CUDA_RIG, check_runs_here
    from tests.exec.backends.support import machine

    for rig, device in ((CUDA_RIG, DeviceName.cpu), ("laptop-rig", DeviceName.cuda)):
        with pytest.raises(UserError, match=f"not for --device {device}; run: python -m exec calibrate --device {device}"):
            check_runs_here(machine().model_copy(update={"rig": rig}), device=device)
