"""Overhead of orchestration: `python benchmarks/overhead.py`, some minutes on an idle machine.

Alternates `dreambooth train`, without Prefect and registry, and `dreambooth run` with the same training,
each in a new folder. Overhead, due to Prefect's server, states and artifacts: the run's time minus its
further stages minus the time of `dreambooth train`. Writes overhead.json beside this file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULT = HERE / "overhead.json"
CONFIG = HERE.parent / "examples/small_world/config.yaml"
SHARED = {"validate", "priors", "train"}
"""Stages of both commands."""
LONG = 600.0
"""Seconds of the training that the overhead's share refers to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    turns = [_turn(number, given.steps) for number in range(given.turns)]
    fixed = statistics.median(turn["overhead"] for turn in turns)
    found = {
        "steps": given.steps,
        "turns": turns,
        "fixed_seconds": round(fixed, 1),
        "share_of_ten_minutes": round(fixed / LONG, 4),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULT.read_text())


def _turn(number: int, steps: int) -> dict[str, float]:
    alone, _ = _timed("train", steps)
    run, stages = _timed("run", steps)
    further = sum(seconds for name, seconds in stages.items() if name not in SHARED)
    turn = {"alone": alone, "run": run, "further": further, "overhead": run - further - alone}
    print(number, turn, file=sys.stderr, flush=True)
    return {name: round(seconds, 2) for name, seconds in turn.items()}


def _timed(command: str, steps: int) -> tuple[float, dict[str, float]]:
    """Wall-clock seconds of the command, and of each stage in its output."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "paths.work": f"{folder}/work",
            "storage.uri": f"file://{folder}/store",
            "storage.endpoint": "null",
            "train.steps": steps,
        }
        sets = [word for pair in settings.items() for word in ("--set", "=".join(map(str, pair)))]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "dreambooth_core.cli", command, str(CONFIG), "--json", *sets],
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.monotonic() - began
    stages = json.loads(done.stdout).get("stages", {})
    return seconds, {name: stage["seconds"] for name, stage in stages.items()}


if __name__ == "__main__":
    main()
