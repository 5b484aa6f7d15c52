"""The study: `python -m examples.small_world.study --peer PATH/train_dreambooth.py --peer-python PYTHON`.

Resumes a stopped study, and writes `docs/study.md` from all finished trials.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dreambooth_core.errors import DreamBoothError
from examples.small_world.study.arms import QUESTIONS, Question, Trial

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if all chosen trials are done, 3 if the budget ended first, 1 for an error."""
    given = parser().parse_args(arguments)
    from examples.small_world.study import page, trials

    questions = [_narrowed(each, given.subjects, given.seeds) for each in QUESTIONS]
    chosen = [
        trial
        for trial in trials.planned(
            each for each in questions if given.question in (None, each.name)
        )
        if not given.only or trial.arm.name in given.only
    ]
    if given.plan:
        print("\n".join(_plan(chosen, given.results)))
        return 0
    try:
        done = given.page_only or _work(chosen, given)
    except DreamBoothError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not given.train_only:
        page.write(questions, given.results, given.page)
    return 0 if done else 3


def _work(chosen: Sequence[Trial], given: argparse.Namespace) -> bool:
    """Make the trials; whether all were done within the budget. A stored trial takes seconds."""
    from examples.small_world.study import peer, trials

    script = peer.Peer(given.peer, given.peer_python) if given.peer else None
    context = trials.TrialContext(given.work, given.results, script)
    make: Callable[[Trial, trials.TrialContext], object] = (
        trials.train if given.train_only else trials.make
    )
    start = time.monotonic()
    for number, trial in enumerate(chosen, 1):
        if given.budget is not None and time.monotonic() - start >= given.budget * 60:
            return False
        make(trial, context)
        elapsed = time.monotonic() - start
        print(f"{elapsed:7.0f} s  {number} of {len(chosen)}  {_named(trial)}", flush=True)
    return True


def _plan(chosen: Sequence[Trial], results: Path) -> list[str]:
    """A line per trial, and the missing ones' hours, at the median duration of the finished ones."""
    from examples.small_world.study import trials

    found = [(trial, trials.read(results, trial)) for trial in chosen]
    seconds = [result.seconds for _, result in found if result is not None]
    lines = [
        f"{_named(trial)}: " + (f"done, {result.seconds:.0f} s" if result else "missing")
        for trial, result in found
    ]
    missing = len(found) - len(seconds)
    if not seconds:
        return [*lines, f"{missing} of {len(found)} are missing; no duration is known yet"]
    hours = missing * statistics.median(seconds) / 3600
    return [*lines, f"{missing} of {len(found)} are missing: about {hours:.1f} hours"]


def _narrowed(question: Question, subjects: str | None, seeds: str | None) -> Question:
    """The question with other subjects and seeds, comma-separated; None: its own."""
    if subjects:
        question = replace(question, subjects=tuple(subjects.split(",")))
    if seeds:
        question = replace(question, seeds=tuple(int(seed) for seed in seeds.split(",")))
    return question


def _named(trial: Trial) -> str:
    return f"{trial.arm.name} {trial.subject} {trial.seed}"


def parser() -> argparse.ArgumentParser:
    """Parser of the command's options."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--plan",
        action="store_true",
        help="list finished and missing trials, estimate the hours left, and exit",
    )
    add("--question", choices=[each.name for each in QUESTIONS], help="only this question's trials")
    add("--only", action="append", metavar="ARM", help="only this arm; may be repeated")
    add("--budget", type=float, metavar="MINUTES", help="start no trial after this time")
    add("--train-only", action="store_true", help="train without evaluation")
    add("--page-only", action="store_true", help="make no trial, only write the page")
    add("--peer", type=Path, help="diffusers' train_dreambooth.py, of the commit in docs/study.md")
    add("--peer-python", type=Path, default=Path(sys.executable), help="Python to run it with")
    add("--subjects", metavar="CAT,BIRD_2", help="subjects; default: the study's")
    add("--seeds", metavar="SEED,SEED", help="seeds; default: the study's")
    add("--work", type=Path, default=Path(".dreambooth/study"), help="store and local state")
    add("--results", type=Path, default=HERE / "results", help="folder of the trials' result files")
    add("--page", type=Path, default=ROOT / "docs" / "study.md", help="page to write")
    return made


if __name__ == "__main__":
    sys.exit(main())
