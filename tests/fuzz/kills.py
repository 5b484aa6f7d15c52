"""`kill -9` at random moments of small trainings and runs, which must resume to the same bytes.

Kills the trainer of forked attempts (`tests/forked_attempts.py`), and, of `dreambooth train` and
`dreambooth run`, the process tree, the parent only or the trainer only. Afterwards all digests must be
those of an undisturbed training or run, all records in the store whole, and no checkpoint unfinished.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from tests.chaos.checks import incomplete
from tests.conftest import build_tiny_base, build_tiny_encoders, draw_photos

Victim = Literal["tree", "parent", "trainer"]
STEPS = 12
PATIENCE = 300.0
"""Time limit of a command in seconds."""
MOST_KILLS = 5
"""Largest number of kills of one training or run."""
TRAINER = "dreambooth_core.training.process"


@dataclass
class KillCounts:
    """Numbers of kills and their faults, for one kind of process."""

    kind: str
    kills: int = 0
    ended: int = 0
    """Completed trainings or runs."""
    victims: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unfinished: int = 0
    """Temporary files left in the store by killed processes; readers ignore them."""
    seconds: float = 0.0

    def count(self, victim: str) -> None:
        self.kills += 1
        self.victims[victim] = self.victims.get(victim, 0) + 1


def forked(folder: Path, base: Path, kills: int, seed: int) -> KillCounts:
    """Kill forked attempts of trainings, one training after the other."""
    from tests.forked_attempts import Attempts, differences, has_started
    from tests.training_for_real import Run

    counts, draw, began = KillCounts("forked attempts"), random.Random(seed), time.monotonic()
    train, often = {"method": "lora", "ema": 0.9}, {"every_n_steps": 1, "keep_last": 4}
    whole = Attempts(Run(base, folder / "whole", STEPS, train, often))
    whole.finished()
    started = time.monotonic()
    again = Attempts(Run(base, folder / "again", STEPS, train, often))
    expected = again.finished()
    length = time.monotonic() - started  # of the second one, with warm caches
    while counts.kills < kills:
        parts = Attempts(Run(base, folder / f"parts-{counts.ended}", STEPS, train, often))
        for _ in range(draw.randint(1, MOST_KILLS)):
            if counts.kills < kills and parts.killed(has_started, draw.uniform(0, length)):
                counts.count("trainer")
                print(
                    f"{counts.kills} of {kills} kills of forked attempts",
                    file=sys.stderr,
                    flush=True,
                )
        found = parts.finished()
        counts.ended += 1
        counts.faults += [f"{name} differs" for name in differences(found, expected)]
        if parts.weights() != whole.weights():
            counts.faults.append("the exported weights differ")
        counts.faults += [f"unfinished {path}" for path in parts.run.saved.glob("*.partial")]
    counts.seconds = time.monotonic() - began
    return counts


class Commands:
    """One command in its own folder, restarted after every kill until it completes."""

    def __init__(self, folder: Path, word: Literal["train", "run"], config: dict[str, Any]) -> None:
        self.folder, self.word = folder, word
        folder.mkdir()
        paths = {
            "storage": {"uri": f"file://{folder}/store", "endpoint": None},
            "paths": {"work": f"{folder}/work"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, **paths}))

    def start(self) -> subprocess.Popen[str]:
        words = [
            sys.executable,
            "-m",
            "dreambooth_core.cli",
            self.word,
            str(self.folder / "config.yaml"),
            "--json",
        ]
        errors = (self.folder / "stderr").open("a")
        with errors:
            return subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )

    def finished(self) -> dict[str, Any]:
        """JSON output of the completed command; raises `RuntimeError` if it fails."""
        process = self.start()
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        finally:
            end(process)
        if process.returncode:
            last = (self.folder / "stderr").read_text()[-500:]
            raise RuntimeError(f"{self.word} ended with {process.returncode}: {last}")
        found: dict[str, Any] = json.loads(output)
        return found

    def killed(self, victim: Victim, wait: float) -> bool:
        """Kill the command after `wait` seconds; False if it had completed."""
        process = self.start()
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=wait)
                return False
            _kill(process, victim)
            process.communicate(timeout=PATIENCE)
        finally:
            end(process)
        return True

    def wrong(self) -> Iterator[str]:
        """Incomplete objects of the store, and unfinished checkpoints."""
        from dreambooth_core.config import Storage
        from dreambooth_core.storage.stores import open_store

        store = open_store(Storage(uri=f"file://{self.folder}/store", endpoint=None))
        yield from (f"{key} is not whole" for key in incomplete(store))
        yield from (f"unfinished {path}" for path in self.folder.rglob("*.partial"))

    def unfinished(self) -> int:
        """Temporary files in the store."""
        return sum(
            "~" in path.name and path.name != "~lock" for path in (self.folder / "store").rglob("*")
        )


def commanded(
    folder: Path, word: Literal["train", "run"], config: dict[str, Any], kills: int, seed: int
) -> KillCounts:
    """Kill `dreambooth train` or `dreambooth run`, each several times until it completes."""
    counts, draw, began = KillCounts(f"dreambooth {word}"), random.Random(seed), time.monotonic()
    expected = _digests(Commands(folder / f"{word}-whole", word, config).finished())
    length = time.monotonic() - began
    victims: Sequence[Victim] = ("tree", "parent", "trainer")
    while counts.kills < kills:
        command = Commands(folder / f"{word}-{counts.ended}", word, config)
        for _ in range(draw.randint(1, MOST_KILLS)):
            victim = draw.choice(victims)
            if counts.kills < kills and command.killed(victim, draw.uniform(0.5, length)):
                counts.count(victim)
                print(f"{counts.kills} of {kills} kills of {word}", file=sys.stderr, flush=True)
        try:
            found = _digests(command.finished())
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            counts.faults.append(" ".join(str(error).split()))
            found = expected
        counts.ended += 1
        if found != expected:
            counts.faults.append(f"{word} {counts.ended}: {found} instead of {expected}")
        counts.faults += command.wrong()
        counts.unfinished += command.unfinished()
    counts.seconds = time.monotonic() - began
    return counts


def end(process: subprocess.Popen[str]) -> None:
    """Kill all remaining processes of a command."""
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                one.kill()
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


def _kill(process: subprocess.Popen[str], victim: Victim) -> None:
    """SIGKILL the victim; the parent, if there is no trainer at the moment."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        trainers = [one for one in children if _trains(one)]
        if victim == "trainer" and trainers:
            for one in trainers:
                one.kill()
            return
        os.kill(process.pid, signal.SIGKILL)
        for one in children if victim == "tree" else ():
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _trains(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return TRAINER in process.cmdline()[:4]
    return False


def _digests(output: dict[str, Any]) -> dict[str, Any]:
    """Reproducible parts of the output: digests, and the scores of a run."""
    return {"digests": output["digests"], "metrics": output.get("metrics", {})}


def small(folder: Path) -> dict[str, Any]:
    """A config whose training and run take seconds."""
    base = build_tiny_base(folder / "base")
    clip, identity = build_tiny_encoders(folder / "encoders", base)
    return {
        "name": "tiny",
        "subject": {"images": str(draw_photos(folder / "photos")), "class_noun": "robot"},
        "model": {"base": str(base), "resolution": 32},
        "prior": {"target": "images", "num_class_images": 2},
        "train": {"method": "full", "steps": STEPS, "learning_rate": 1e-4},
        "checkpoints": {"every_n_steps": 1, "keep_last": 4},
        "sampler": {"inference_steps": 2, "batch_size": 2},
        "evaluation": {
            "prompts": ["a photo of {subject}", "{subject} on the beach"],
            "seeds": 2,
            "class_images": 2,
            "clip": str(clip),
            "identity": str(identity),
        },
        "sample": {"prompts": ["a photo of {subject}"], "seeds": 2},
    }


def main() -> int:
    options = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        config = small(folder)
        all_counts = (
            [forked(folder / "forked", folder / "base", options.forked, options.seed)]
            if options.forked
            else []
        )
        words: tuple[tuple[Literal["train", "run"], int], ...] = (
            ("train", options.trainings),
            ("run", options.runs),
        )
        for word, kills in words:
            if kills:
                all_counts.append(commanded(folder, word, config, kills, options.seed))
    for one in all_counts:
        print(
            f"{one.kind:<16} {one.kills} kills, {one.ended} ended, {len(one.faults)} faults, "
            f"{one.unfinished} temporary files, {one.seconds:.0f} s"
        )
        for fault in one.faults:
            print(f"FAILED {one.kind}: {fault}")
    if options.out:
        options.out.write_text(json.dumps([asdict(one) for one in all_counts], indent=1))
    return 1 if any(one.faults for one in all_counts) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--forked", type=int, default=38, help="kills of forked attempts")
    parser.add_argument("--trainings", type=int, default=12, help="kills of `dreambooth train`")
    parser.add_argument("--runs", type=int, default=20, help="kills of `dreambooth run`")
    parser.add_argument("--out", type=Path, help="file for the counts as JSON")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
