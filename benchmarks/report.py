"""Figures of a benchmark -> a small file beside the others, with command, versions, hardware and date."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("boto3", "numba", "numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg", "tokenizers")


def keep(name: str, facts: Mapping[str, Any], *, command: str) -> Path:
    """Write `facts` to results/NAME.json and return the path."""
    told = {
        "command": command,
        **facts,
        "machine": {"cores": os.cpu_count(), "processor": processor(), "python": platform.python_version()},
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "date": time.strftime("%Y-%m-%d"),
    }
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
    return path


def processor() -> str:
    """Return the processor's name as the system tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
