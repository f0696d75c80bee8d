"""Measurements in processes of their own."""

import json
import subprocess
from typing import Any

__all__ = ["run_json"]


def run_json(command: list[str]) -> dict[str, Any]:
    """The JSON object on a command's last line.

    Raises:
        RuntimeError: if the command fails, with the end of what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[:3]} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
