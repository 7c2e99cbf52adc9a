"""What the system says of its processor."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_info() -> dict[str, str]:
    """The first processor's entries in `/proc/cpuinfo`, such as `flags`; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def cpu_model() -> str:
    """The model of the processor, or its architecture where the system does not say it."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def cpu_caches() -> list[str]:
    """The caches of the first processor, such as `L2 unified 1024K`; none where the system does not list them."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found.append(f"L{level} {kind.lower()} {size}")
    return found


def is_virtual() -> bool:
    """Whether the system says that it runs in a virtual machine (x86 alone says so)."""
    return "hypervisor" in cpu_info().get("flags", "").split()
