"""Description of the machine that figures are measured on."""

import os
import platform
from pathlib import Path

import torch

UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # each has the ones before it, too


def machine() -> str:
    """Return the processor's name, number of cores, best vector or matrix unit, and the version of torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = known.get("model name", platform.machine())
    # Virtual machines with the same processor name differ in these units.
    units = [unit for unit in UNITS if unit in known.get("flags", "").split()]
    return ", ".join([name, f"{os.cpu_count()} cores", *units[-1:], f"torch {torch.__version__}"])
