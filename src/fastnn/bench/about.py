"""What results of a GPU depend on besides the kernels: for the ``about`` of their JSON."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import fastnn
from fastnn.device import cuda_module, gpu_index_of

_SMI = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit",
        "temperature.gpu")  # fmt: skip


def gpu_facts(device: str) -> dict[str, Any]:
    """The GPU, which of its instructions products use, and what ``nvidia-smi`` says of it now."""
    index, cuda = gpu_index_of(device), fastnn.backends.cuda
    wgmma = "used" if cuda.use_wgmma() else "not used: switched off"
    if not cuda_module().has_wgmma(index):
        wgmma = "not used: no code for 9.0a, or another GPU"
    return {
        "device": fastnn.cuda.get_device_name(index),
        "tensor cores": cuda.tensor_cores(index),
        "wgmma": wgmma,
        **_smi(index),
    }


def _smi(index: int) -> dict[str, str]:
    """Nothing where there is no ``nvidia-smi``, or it knows none of this."""
    command = [
        "nvidia-smi",
        f"--id={index}",
        f"--query-gpu={','.join(_SMI)}",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(_SMI, values, strict=True)) if len(values) == len(_SMI) else {}


def torch_facts() -> dict[str, Any]:
    """What PyTorch computes with on a GPU, and how it was last allowed to; nothing if it was not used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cudnn = torch.backends.cudnn
    return {
        "torch's CUDA": torch.version.cuda,
        "cuDNN": cudnn.version(),
        "cudnn.benchmark": cudnn.benchmark,
        "allow_tf32 in the last row": cudnn.allow_tf32,
    }
