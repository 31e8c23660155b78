"""Checks of the machine: versions, disk, memory, and, for information, a GPU."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from client.checks.result import CheckResult, failed, passed

MIN_PYTHON = (3, 11)
MIN_DISK_BYTES = 2 << 30
MIN_MEMORY_BYTES = 2 << 30
_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^;\s]+)")


def check_versions(
    *,
    python: tuple[int, int] = (sys.version_info[0], sys.version_info[1]),
    requirements: Iterable[str] | None = None,
    installed: Callable[[str], str] = metadata.version,
) -> CheckResult:
    """Python and the pinned packages (torch, opacus, flwr) are those that fedtwin was tested with.

    Args:
        requirements: those of the installed fedtwin by default.
        installed: gives a package's version.
    """
    if python < MIN_PYTHON:
        return failed("versions", f"Python is {python[0]}.{python[1]}", "install Python 3.11 or newer")
    wrong, right = [], []
    lines = metadata.requires("fedtwin") or [] if requirements is None else requirements
    for name, wanted in {match[1]: match[2] for line in lines if (match := _PIN.match(line))}.items():
        try:
            found = installed(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing, {wanted} is needed")
            continue
        # A local part such as +cpu or +cu128 is the same release, built for another device.
        if found.partition("+")[0] == wanted:
            right.append(f"{name} {found}")
        else:
            wrong.append(f"{name} is {found}, {wanted} is needed")
    if wrong:
        return failed("versions", "; ".join(wrong), 'install fedtwin again: pip install "fedtwin[site]"')
    return passed("versions", ", ".join([f"Python {python[0]}.{python[1]}", *right]))


def check_disk(folder: Path, *, min_bytes: int = MIN_DISK_BYTES) -> CheckResult:
    """There is room for what a site keeps."""
    free = shutil.disk_usage(folder).free
    if free < min_bytes:
        return failed(
            "disk",
            f"{_gib(free)} free where the site's folder is, {_gib(min_bytes)} are needed",
            "free some space, or move the folder to a larger disk",
        )
    return passed("disk", f"{_gib(free)} free")


def check_memory(*, min_bytes: int = MIN_MEMORY_BYTES, meminfo: Path = Path("/proc/meminfo")) -> CheckResult:
    """There is memory for the worker. Known on Linux only."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), flags=re.M)
    except OSError:
        found = None
    if found is None:
        return passed("memory", "not known on this system")
    free = int(found[1]) << 10
    if free < min_bytes:
        return failed(
            "memory",
            f"{_gib(free)} available, {_gib(min_bytes)} are needed",
            "close other programs, or give the machine more memory",
        )
    return passed("memory", f"{_gib(free)} available")


def check_gpu() -> CheckResult:
    """Whether there is a GPU; for information, a site needs none."""
    import torch

    if torch.cuda.is_available():
        return passed("gpu", torch.cuda.get_device_name(0))
    return passed("gpu", "none; a site needs none")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
