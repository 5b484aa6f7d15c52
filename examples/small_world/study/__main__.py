"""The study: `python -m examples.small_world.study --peer PATH/train_dreambooth.py --peer-python PYTHON`.

Goes on where it was stopped, and writes `docs/study.md` from what there is at its end.
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
    """0 when everything that was asked for is there, 3 when the budget ended first, 1 for an error."""
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
    """Whether all trials are there; those that can be found cost seconds."""
    from examples.small_world.study import peer, trials

    theirs = peer.Peer(given.peer, given.peer_python) if given.peer else None
    place = trials.Place(given.work, given.results, theirs)
    make: Callable[[Trial, trials.Place], object] = (
        trials.train if given.train_only else trials.make
    )
    start = time.monotonic()
    for number, trial in enumerate(chosen, 1):
        if given.budget is not None and time.monotonic() - start >= given.budget * 60:
            return False
        make(trial, place)
        elapsed = time.monotonic() - start
        print(f"{elapsed:7.0f} s  {number} of {len(chosen)}  {_named(trial)}", flush=True)
    return True


def _plan(chosen: Sequence[Trial], results: Path) -> list[str]:
    """A line per trial, and what the missing ones will take if they go as those that are there."""
    from examples.small_world.study import trials

    found = [(trial, trials.read(results, trial)) for trial in chosen]
    seconds = [result.seconds for _, result in found if result is not None]
    lines = [
        f"{_named(trial)}: " + (f"done, {result.seconds:.0f} s" if result else "missing")
        for trial, result in found
    ]
    missing = len(found) - len(seconds)
    if not seconds:
        return [*lines, f"{missing} of {len(found)} are missing; none tells how long one takes"]
    hours = missing * statistics.median(seconds) / 3600
    return [*lines, f"{missing} of {len(found)} are missing: about {hours:.1f} hours"]


def _narrowed(question: Question, subjects: str | None, seeds: str | None) -> Question:
    """The question asked of other subjects and seeds, as for trying what the study must not see."""
    if subjects:
        question = replace(question, subjects=tuple(subjects.split(",")))
    if seeds:
        question = replace(question, seeds=tuple(int(seed) for seed in seeds.split(",")))
    return question


def _named(trial: Trial) -> str:
    return f"{trial.arm.name} {trial.subject} {trial.seed}"


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--plan",
        action="store_true",
        help="say what is there, what is missing and how long it takes",
    )
    add(
        "--question", choices=[each.name for each in QUESTIONS], help="this question's trials alone"
    )
    add("--only", action="append", metavar="ARM", help="this arm; may be given several times")
    add("--budget", type=float, metavar="MINUTES", help="start no trial after so long")
    add("--train-only", action="store_true", help="measure nothing yet")
    add("--page-only", action="store_true", help="make no trial; write the page from what is there")
    add("--peer", type=Path, help="diffusers' train_dreambooth.py; docs/study.md says which")
    add("--peer-python", type=Path, default=Path(sys.executable), help="Python to run it with")
    add("--subjects", metavar="CAT,BIRD_2", help="other subjects than the study's")
    add("--seeds", metavar="SEED,SEED", help="other seeds than the study's")
    add("--work", type=Path, default=Path(".dreambooth/study"), help="store and local state")
    add("--results", type=Path, default=HERE / "results", help="the trials' files")
    add("--page", type=Path, default=ROOT / "docs" / "study.md")
    return made


if __name__ == "__main__":
    sys.exit(main())
