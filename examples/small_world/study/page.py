"""`docs/study.md`: every number in it is computed from the trials' files, and nothing is written by hand."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreambooth_core.metrics import catalogue
from dreambooth_core.storage.records import Estimate
from examples.small_world.study import findings, peer, plots
from examples.small_world.study.arms import Question
from examples.small_world.study.findings import Found
from examples.small_world.study.subjects import SUBJECTS

WIDTH = 108
"""Characters of a line of prose."""
MARKS = {"better": " ▲", "worse": " ▼", "no difference shown": ""}


def write(questions: Sequence[Question], results: Path, page: Path) -> None:
    """The page, its pictures beside it in `study/`, and the comparisons as JSON in `results`."""
    sections = []
    for question in questions:
        found = findings.gather(question, results)
        if question.against:
            _write_json(results / f"{question.name}.json", findings.against(*found))
        if len(_there(found)) > 1:
            plots.write(found, page.parent / "study" / f"{question.name}.svg")
        sections.append(section(question, found))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join([_opening(), *sections]), encoding="utf-8")


def section(question: Question, found: Sequence[Found]) -> str:
    """What was asked, what is missing, and what was found."""
    there = _there(found)
    about = textwrap.fill(question.about, WIDTH)
    lines = [f"## {question.title}", "", about, "", *_missing(question, found)]
    if len(there) < 2:
        return "\n".join(lines)
    picture = f"![{question.title}](study/{question.name}.svg)"
    lines += [picture, "", *(_pair(found) if question.against else _table(there)), ""]
    return "\n".join(lines)


def _there(found: Sequence[Found]) -> list[Found]:
    """Arms of which there are trials; a single one answers no question."""
    return [each for each in found if each.results]


def _opening() -> str:
    return f"""# The small world's study

Written by `python -m examples.small_world.study`; nothing here was typed by hand. The base is the small
world's, 13 million weights at 64 x 64 pixels: **what is better here need not be better for Stable
Diffusion.** Subjects: one each of {", ".join(SUBJECTS)}, rendered in eight places, none of
which an evaluation prompt names; five of the photos are trained on, and all trials of a subject are
measured against these five. The recipe is [`trial.yaml`](../examples/small_world/study/trial.yaml), an arm
is an entry of [`arms.py`](../examples/small_world/study/arms.py), and a trial is one arm with one subject
and one seed.

An interval is of {findings.LEVEL:.0%} and over subjects, whose seeds are averaged first. ▲ and ▼
mark what is better and worse than the first arm on the same subjects and seeds: there the interval of the
difference leaves out 0. "base" is the untouched one, on the same seeds. Many differences are looked at and
none is corrected for that: a single mark among many may be luck.

diffusers' side is `{peer.SCRIPT}` of commit `{peer.COMMIT[:7]}`, run from its own source:

```bash
git clone https://github.com/huggingface/diffusers && git -C diffusers checkout {peer.COMMIT}
python -m venv peer && peer/bin/pip install {" ".join(peer.INSTALLED)}
python -m examples.small_world.study --peer diffusers/{peer.SCRIPT} --peer-python peer/bin/python
```

What is there is found again; `--plan` says what is missing and how long it takes.
"""


def _missing(question: Question, found: Sequence[Found]) -> Iterator[str]:
    lacking = [each for each in found if len(each.results) < each.planned]
    seeds = len(question.seeds)
    size = f"{len(question.subjects)} subjects x {seeds} seed{'s' if seeds > 1 else ''}"
    if not lacking:
        yield f"{size} per arm; no trial is missing."
    else:
        told = (f"{each.arm.label} {len(each.results)} of {each.planned}" for each in lacking)
        yield f"{size} per arm were planned. **Trials are missing**; there are: {', '.join(told)}."
    if names := findings.left_out(found):
        yield f"**Left out**, as not every trial has them: {', '.join(names)}."
    yield ""


def _pair(found: Sequence[Found]) -> Iterator[str]:
    ours, theirs = found
    trials = len(findings.both(ours, theirs))
    yield f"Over the trials that both have, {trials}, and in how many of them ours is better:"
    yield ""
    yield f"| metric | base | {ours.arm.label} | {theirs.arm.label} | difference | in | ours is |"
    yield "|---|---|---|---|---|---|---|"
    for metric, row in findings.against(ours, theirs).items():
        better = bool(row["higher_is_better"])
        gain = Estimate(value=row["difference"], low=row["low"], high=row["high"])
        cells = (
            _base(ours, metric),
            f"{row['ours']:.3f}",
            f"{row['peer']:.3f}",
            _shown(gain, "+"),
            f"{findings.wins(ours, theirs, metric)} of {trials}",
            findings.answer(gain, better),
        )
        yield f"| {_titled(metric)} | " + " | ".join(cells) + " |"


def _table(found: Sequence[Found]) -> Iterator[str]:
    first = found[0]
    yield "| metric | base | " + " | ".join(each.arm.label for each in found) + " |"
    yield "|---|---|" + "---|" * len(found)
    for metric in findings.metrics_of(found):
        cells = (_cell(each, first, metric) for each in found)
        yield f"| {_titled(metric)} | {_base(first, metric)} | " + " | ".join(cells) + " |"


def _base(found: Found, metric: str) -> str:
    """What the untouched base scores on the same subjects; a dash where it has no score."""
    mean = findings.of_base(found, metric)
    return "-" if mean is None else f"{mean.value:.3f}"


def _cell(found: Found, first: Found, metric: str) -> str:
    mean = findings.of_arm(found, metric)
    if mean is None:
        return "missing"
    gain = None if found is first else findings.difference(found, first, metric)
    if gain is None:
        return _shown(mean)
    return _shown(mean) + MARKS[findings.answer(gain, catalogue()[metric].higher_is_better)]


def _titled(metric: str) -> str:
    known = catalogue()[metric]
    return f"{known.title} ({'higher' if known.higher_is_better else 'lower'} is better)"


def _shown(mean: Estimate, sign: str = "") -> str:
    ends = "" if mean.low is None else f" [{mean.low:{sign}.3f}, {mean.high:{sign}.3f}]"
    return f"{mean.value:{sign}.3f}{ends}"


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
