"""The machine that figures were measured on."""

import os
import platform
from pathlib import Path

import torch

UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # each adds to those before


def machine() -> str:
    """Name the processor, as the kernel does, what it has for vectors and matrices, and torch's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name", platform.machine())
    # Virtual machines of one name differ in these.
    units = [unit for unit in UNITS if unit in known.get("flags", "").split()]
    return ", ".join([name, f"{os.cpu_count()} cores", *units[-1:], f"torch {torch.__version__}"])
