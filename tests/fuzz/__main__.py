"""`make fuzz`: run the command line on the whole corpus of bad inputs.

Prints totals per category and every failed case. Exit code 1 if a case failed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import build_tiny_base
from tests.fuzz import corpus, forks, materials, servers
from tests.fuzz.case import Case
from tests.fuzz.verdict import faults

Result = dict[str, object]


def main() -> int:
    options = _arguments()
    cases = corpus.quick(options.seed) if options.quick else corpus.everything(options.seed)
    cases = [case for case in cases if options.only in case.name]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, servers.serving(Path(name)):
        os.chmod(name, 0o755)
        results = _perform(cases, Path(name), options.jobs, options.patience)
    _show(results, time.monotonic() - began)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    return 1 if any(is_wrong(result) for result in results) else 0


def is_wrong(result: Result) -> bool:
    """Whether a case failed, or a case with a known defect passed."""
    return bool(result["faults"]) != bool(result["known_defect"])


def _perform(cases: Sequence[Case], folder: Path, jobs: int, patience: float) -> list[Result]:
    """Run all cases in `jobs` processes, forked after the imports."""
    forks.warm_up()
    context = multiprocessing.get_context("fork")
    builder = context.Process(target=build_tiny_base, args=(folder / materials.TEMPLATE / "base",))
    builder.start()
    builder.join()
    found = folder / "results"
    found.mkdir()
    workers = [
        context.Process(target=_work, args=(cases, range(job, len(cases), jobs), folder, patience))
        for job in range(jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [json.loads((found / f"{number}.json").read_text()) for number in range(len(cases))]


def _work(cases: Sequence[Case], numbers: Sequence[int], folder: Path, patience: float) -> None:
    for number in numbers:
        case, own = cases[number], folder / f"{number}"
        ended = forks.perform(case, own, patience)
        forks.clear(own)
        result: Result = {
            "name": case.name,
            "category": case.category,
            "known_defect": case.known_defect,
            "faults": faults(case, ended),
            "code": ended.code,
            "seconds": round(ended.seconds, 2),
            "memory": ended.memory,
            "stderr": ended.stderr[-700:],
            "words": " ".join(case.words)[:300],
        }
        (folder / "results" / f"{number}.json").write_text(json.dumps(result))


def _show(results: Sequence[Result], seconds: float) -> None:
    totals = Counter(str(result["category"]) for result in results)
    passed = Counter(str(result["category"]) for result in results if not result["faults"])
    for category, count in totals.items():
        print(f"{category:<14} {count:>5} cases  {passed[category]:>5} passed")
    for result in filter(is_wrong, results):
        faults = result["faults"] or ["passes now: remove `known_defect`"]
        print(f"FAILED {result['name']}: {'; '.join(map(str, faults))}")
        print(f"       {str(result['stderr']).strip()[-300:]!r}")
    wrong = sum(map(is_wrong, results))
    print(f"{len(results)} cases, {wrong} failed, {seconds:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some cases of every category")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor on the cases' time limits"
    )
    parser.add_argument("--out", type=Path, help="file for all results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
