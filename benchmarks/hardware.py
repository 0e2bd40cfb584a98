"""The machine that numbers are measured on."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path

__all__ = ["describe", "processor"]


def describe() -> dict[str, object]:
    """Day, processor, cores, system and interpreter of a run."""
    return {
        "date": datetime.now(tz=timezone.utc).date().isoformat(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's model name where Linux tells it, else what Python knows."""
    cpu_info = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpu_info.read_text() if cpu_info.exists() else "", re.M)
    return model[1].strip() if model else platform.processor() or platform.machine()
