"""The versions, hardware, git revision and command behind a number; written beside every result."""

import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import available_cores

_PACKAGES = ("torch", "diffusers", "transformers", "peft", "gymnasium", "stable-baselines3", "numpy", "pillow")

#: What decides a run's numbers, beside its specification.
DECIDES = ("python", "platform", "processor", "torch_threads", "gpu", "packages", "revision")


def provenance() -> dict[str, Any]:
    """Return date, versions, processor, threads and revision, JSON-serialisable."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processor": processor(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in _PACKAGES},
        "revision": _revision(),
        "command": _command(sys.argv[1:]),
    }


def _command(words: list[str]) -> str:
    """Return the command without absolute paths, which mean nothing on another machine."""
    return shlex.join(["diffusion-gym", *(Path(word).name if Path(word).is_absolute() else word for word in words)])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Return the revision of the clone that holds this file; None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() or None
