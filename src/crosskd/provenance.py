"""What a run ran on: versions, machine, commit, command line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

PACKAGES = ("crosskd", "torch", "transformers", "tokenizers", "accelerate", "datasets", "safetensors", "numpy")
_SECRET = "--hub_token"


def package_versions() -> dict[str, str]:
    """Versions of crosskd and of what its numbers depend on, Python included."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerators and threads of this machine."""
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": accelerators,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def processor_name() -> str:
    """Model name of the processor, as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def provenance(**details: Any) -> dict[str, Any]:
    """A record of the running process: when, what command, which code, versions and machine, and ``details``."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(_without_secrets(sys.argv)),
        "commit": _commit(),
        "versions": package_versions(),
        "machine": describe_machine(),
        **details,
    }


def _without_secrets(words: list[str]) -> list[str]:
    """A command line that can be shown: ``--hub_token`` without its value."""
    shown = [f"{_SECRET}=..." if word.startswith(f"{_SECRET}=") else word for word in words]
    return ["..." if before == _SECRET else word for before, word in zip(["", *shown], shown, strict=False)]


def _commit() -> str | None:
    """Commit of the code that runs, where it runs from a checkout of crosskd."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "log", "-1", "--format=%H", "--", str(here)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
