"""What a benchmark ran on, for its table."""

import os
import platform
from pathlib import Path

import jax


def describe() -> str:
    """The accelerator's name; of a processor also its cores and what else they do."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [n.split(":")[1].strip() for n in lines if n.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores; "
        f"load average {os.getloadavg()[1]:.1f}, other work included"
    )
