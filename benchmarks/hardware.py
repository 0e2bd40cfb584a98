"""The name of the machine that numbers are measured on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

__all__ = ["processor"]


def processor() -> str:
    """The processor's model name where Linux tells it, else what Python knows."""
    cpu_info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpu_info.read_text() if cpu_info.exists() else "", re.M)
    return model[1].strip() if model else platform.processor() or platform.machine()
