"""Other projects' packages, installed without their dependencies into `benchmarks/.peers`, not into our environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PEERS_FOLDER = Path(__file__).parents[1] / ".peers"


def peer_folder(requirements: Sequence[str]) -> Path:
    """Where a worker process finds these packages, once they are installed."""
    return PEERS_FOLDER / "+".join(requirements)


def not_installed(requirements: Sequence[str]) -> str | None:
    """Installs packages on the first call; returns why they cannot be had, if so."""
    folder = peer_folder(requirements)
    if folder.exists():
        return None
    part = folder.with_name(folder.name + ".part")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(part)]
    if subprocess.run([*command, *requirements], stdout=sys.stderr, check=False).returncode:
        return "not installed"
    part.rename(folder)
    return None
