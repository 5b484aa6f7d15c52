"""`kill -9` at random moments of small trainings and runs, which then go on to the same bytes.

Trainings are killed as forked attempts (see `tests/forked_attempts.py`), where only the trainer can be
killed, and as `dreambooth train`; runs as `dreambooth run`. There the whole process tree, the parent alone
or the trainer alone is killed. Afterwards all digests are those of an undisturbed one, all records in the
store are whole, and no checkpoint is unfinished.
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

from tests.chaos.checks import halves
from tests.conftest import build_tiny_base, build_tiny_encoders, draw_photos

Victim = Literal["tree", "parent", "trainer"]
STEPS = 12
PATIENCE = 300.0
"""Seconds for a command to end."""
MOST_KILLS = 5
"""Of one training or run before it is let go to its end."""
TRAINER = "dreambooth_core.training.process"


@dataclass
class Tally:
    """What was killed, and what was wrong afterwards."""

    kind: str
    kills: int = 0
    ended: int = 0
    """Trainings or runs that went on to their end."""
    victims: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unfinished: int = 0
    """Temporary files that a killed process left in the store, which no reader sees."""
    seconds: float = 0.0

    def count(self, victim: str) -> None:
        self.kills += 1
        self.victims[victim] = self.victims.get(victim, 0) + 1


def forked(folder: Path, base: Path, kills: int, seed: int) -> Tally:
    """Kill forked attempts of one training after another."""
    from tests.forked_attempts import Attempts, differ, starts
    from tests.training_for_real import Run

    tally, draw, began = Tally("forked attempts"), random.Random(seed), time.monotonic()
    train, often = {"method": "lora", "ema": 0.9}, {"every_n_steps": 1, "keep": 4}
    whole = Attempts(Run(base, folder / "whole", STEPS, train, often))
    whole.finished()
    started = time.monotonic()
    again = Attempts(Run(base, folder / "again", STEPS, train, often))
    expected = again.finished()
    length = time.monotonic() - started  # once all is warm
    while tally.kills < kills:
        parts = Attempts(Run(base, folder / f"parts-{tally.ended}", STEPS, train, often))
        for _ in range(draw.randint(1, MOST_KILLS)):
            if tally.kills < kills and parts.killed(starts, draw.uniform(0, length)):
                tally.count("trainer")
                print(
                    f"{tally.kills} of {kills} kills of forked attempts",
                    file=sys.stderr,
                    flush=True,
                )
        found = parts.finished()
        tally.ended += 1
        tally.faults += [f"{name} differs" for name in differ(found, expected)]
        if parts.weights() != whole.weights():
            tally.faults.append("the exported weights differ")
        tally.faults += [f"{path} is left" for path in parts.run.saved.glob("*.partial")]
    tally.seconds = time.monotonic() - began
    return tally


class Commands:
    """One command in a folder of its own, started again and again until it ends by itself."""

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
        """What the command printed at its end; raises `RuntimeError` when it failed."""
        process = self.start()
        try:
            told, _ = process.communicate(timeout=PATIENCE)
        finally:
            end(process)
        if process.returncode:
            last = (self.folder / "stderr").read_text()[-500:]
            raise RuntimeError(f"{self.word} ended with {process.returncode}: {last}")
        found: dict[str, Any] = json.loads(told)
        return found

    def killed(self, victim: Victim, wait: float) -> bool:
        """Whether the command was still there after so many seconds, and was killed."""
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
        """What is not whole in the store, and checkpoints that are unfinished."""
        from dreambooth_core.config import Storage
        from dreambooth_core.storage.stores import open_store

        store = open_store(Storage(uri=f"file://{self.folder}/store", endpoint=None))
        yield from (f"{key} is not whole" for key in halves(store))
        yield from (f"{path} is left" for path in self.folder.rglob("*.partial"))

    def unfinished(self) -> int:
        """Temporary files in the store."""
        return sum(
            "~" in path.name and path.name != "~lock" for path in (self.folder / "store").rglob("*")
        )


def commanded(
    folder: Path, word: Literal["train", "run"], config: dict[str, Any], kills: int, seed: int
) -> Tally:
    """Kill `dreambooth train` or `dreambooth run`, one after another, each until it ends."""
    tally, draw, began = Tally(f"dreambooth {word}"), random.Random(seed), time.monotonic()
    expected = _digests(Commands(folder / f"{word}-whole", word, config).finished())
    length = time.monotonic() - began
    victims: Sequence[Victim] = ("tree", "parent", "trainer")
    while tally.kills < kills:
        command = Commands(folder / f"{word}-{tally.ended}", word, config)
        for _ in range(draw.randint(1, MOST_KILLS)):
            victim = draw.choice(victims)
            if tally.kills < kills and command.killed(victim, draw.uniform(0.5, length)):
                tally.count(victim)
                print(f"{tally.kills} of {kills} kills of {word}", file=sys.stderr, flush=True)
        try:
            found = _digests(command.finished())
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            tally.faults.append(" ".join(str(error).split()))
            found = expected
        tally.ended += 1
        if found != expected:
            tally.faults.append(f"{word} {tally.ended}: {found} instead of {expected}")
        tally.faults += command.wrong()
        tally.unfinished += command.unfinished()
    tally.seconds = time.monotonic() - began
    return tally


def end(process: subprocess.Popen[str]) -> None:
    """Kill everything that is left of a command."""
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                one.kill()
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()


def _kill(process: subprocess.Popen[str], victim: Victim) -> None:
    """SIGKILL; the parent stands in where there is no trainer at that moment."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        trainers = [one for one in family if _trains(one)]
        if victim == "trainer" and trainers:
            for one in trainers:
                one.kill()
            return
        os.kill(process.pid, signal.SIGKILL)
        for one in family if victim == "tree" else ():
            with suppress(psutil.NoSuchProcess):
                one.kill()


def _trains(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return TRAINER in process.cmdline()[:4]
    return False


def _digests(told: dict[str, Any]) -> dict[str, Any]:
    """All that must be the same: digests, and the scores of a run."""
    return {"digests": told["digests"], "metrics": told.get("metrics", {})}


def small(folder: Path) -> dict[str, Any]:
    """A config of a training and of a run that take seconds."""
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
    asked = _arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        config = small(folder)
        tallies = (
            [forked(folder / "forked", folder / "base", asked.forked, asked.seed)]
            if asked.forked
            else []
        )
        words: tuple[tuple[Literal["train", "run"], int], ...] = (
            ("train", asked.trainings),
            ("run", asked.runs),
        )
        for word, kills in words:
            if kills:
                tallies.append(commanded(folder, word, config, kills, asked.seed))
    for one in tallies:
        print(
            f"{one.kind:<16} {one.kills} kills, {one.ended} ended, {len(one.faults)} faults, "
            f"{one.unfinished} temporary files, {one.seconds:.0f} s"
        )
        for fault in one.faults:
            print(f"FAILED {one.kind}: {fault}")
    if asked.out:
        asked.out.write_text(json.dumps([asdict(one) for one in tallies], indent=1))
    return 1 if any(one.faults for one in tallies) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--forked", type=int, default=38, help="kills of forked attempts")
    parser.add_argument("--trainings", type=int, default=12, help="kills of `dreambooth train`")
    parser.add_argument("--runs", type=int, default=20, help="kills of `dreambooth run`")
    parser.add_argument("--out", type=Path, help="file for the tallies as JSON")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
