"""Two runs on one page: their numbers in one table, their pictures of the same seeds side by side.

All of it is read from the runs' reports, so that reports can be compared wherever they were sent.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from dreambooth_core import reports
from dreambooth_core.config import Subject
from dreambooth_core.config.documents import parse_json, read_text
from dreambooth_core.config.inputs import check_template
from dreambooth_core.data.contact_sheets import EMBEDDED_SIDE
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics.statistics import compare, image_key, shared_metrics
from dreambooth_core.reports import charts
from dreambooth_core.reports.facts import LEVEL, MetricLine, ReportFacts
from dreambooth_core.reports.image_grids import PageImage, PromptGrid
from dreambooth_core.storage.records import Comparison
from dreambooth_core.storage.stores import written_beside

REPORT_BYTES = 256 * 1024 * 1024
"""Of a report, whose pictures are in it."""
_NAMES = ("subject.identifier", "subject.class_noun")


@dataclass(frozen=True)
class ReadReport:
    """What a report says, and the pictures in it by their digests."""

    facts: ReportFacts
    pictures: dict[str, PageImage]


def compare_runs(left: Path, right: Path, out: Path) -> Path:
    """Write the page to `out`.

    `left` and `right`: a run's folder, or the report or the summary in it. Raises `ConfigError` for
    what is no report of a finished run.
    """
    page = render(read_report(left), read_report(right))
    if out.exists() and any(out.samefile(_file(given)) for given in (left, right)):
        raise ConfigError(f"--out {out} is one of the two reports: name another file")
    with written_beside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def read_report(path: Path) -> ReadReport:
    """Raises `ConfigError` for anything but a report that says what it shows."""
    reader = _Reader()
    try:
        reader.feed(read_text(_file(path), "report", REPORT_BYTES))
        facts = ReportFacts.model_validate(parse_json(reader.facts, "its facts"))
        _check(facts)
    except (AssertionError, ConfigError, OSError, ValueError) as error:
        raise ConfigError(
            f"{path} has no report that can be compared: name the folder reports/<run id> of a run "
            "that is done; a report of an older version is written anew by running its config again"
        ) from error
    return ReadReport(facts, reader.pictures)


def _file(path: Path) -> Path:
    """The report's own file; raises `OSError` for a name that is too long."""
    if path.suffix == ".html":
        return path
    return path / "report.html" if path.is_dir() else path.parent / "report.html"


def _check(facts: ReportFacts) -> None:
    """Raises `ValueError` for options and prompts that a page cannot be made of."""
    missing = {"model.resolution", *_NAMES} - facts.config.keys()
    if missing or not facts.config["model.resolution"].isdecimal():
        raise ValueError("options of the run are missing")
    for row in facts.rows:
        check_template(row.prompt)


def render(left: ReadReport, right: ReadReport) -> str:
    """The page as HTML: the right one against the left one, A and B."""
    ours, theirs = right.facts, left.facts
    alike = bool(ours.plan) and ours.plan == theirs.plan
    found = _compared(ours, theirs) if alike else {}
    titles = {line.metric: line.title for facts in (theirs, ours) for line in facts.lines}
    return reports.render(
        "comparison.html.j2",
        charts=bool(found),
        a=theirs,
        b=ours,
        alike=alike,
        lines=_lines(theirs, ours),
        comparisons=found,
        gains=charts.gain_chart([*found.values()], titles) if found else None,
        exhibits=_exhibits(left, right),
        settings=_settings(theirs.config, ours.config),
        small=int(ours.config["model.resolution"]) <= EMBEDDED_SIDE // 2,
    )


class _Reader(HTMLParser):
    """Takes facts and pictures out of a report."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = ""
        self.pictures: dict[str, PageImage] = {}
        self._in_facts = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._in_facts = tag == "script" and found.get("id") == "facts"
        if tag == "img" and "data-digest" in found:
            digest, about = found["data-digest"], found.get("alt", "")
            self.pictures[digest] = PageImage(found.get("src", ""), "", about, digest)

    def handle_endtag(self, tag: str) -> None:
        self._in_facts = False

    def handle_data(self, data: str) -> None:
        if self._in_facts:
            self.facts += data


def _compared(ours: ReportFacts, theirs: ReportFacts) -> dict[str, Comparison]:
    """Metric -> what `ours` has over `theirs`, image by image."""
    shared = shared_metrics(ours.rows, theirs.rows)
    return {
        line.metric: compare(line.metric, ours.rows, theirs.rows, LEVEL, line.higher_is_better)
        for line in ours.lines
        if line.metric in shared
    }


def _lines(a: ReportFacts, b: ReportFacts) -> list[tuple[MetricLine | None, MetricLine | None]]:
    """Each metric's line of both; None where one has not been measured by it."""
    first, second = ({line.metric: line for line in facts.lines} for facts in (a, b))
    return [(first.get(name), second.get(name)) for name in {**first, **second}]


def _exhibits(left: ReadReport, right: ReadReport) -> list[PromptGrid]:
    """Prompt by prompt, what both pages show of the same seeds."""
    theirs = {image_key(row): row for row in left.facts.rows}
    pairs = [(theirs[image_key(row)], row) for row in right.facts.rows if image_key(row) in theirs]
    groups: defaultdict[tuple[str, str], list[dict[str, PageImage]]] = defaultdict(list)
    for a, b in pairs:
        shown = {
            "A": left.pictures.get(a.image),
            "B": right.pictures.get(b.image),
            "base": right.pictures.get(b.base_image),
        }
        if shown["A"] and shown["B"]:
            groups[b.kind, b.prompt].append({side: each for side, each in shown.items() if each})
    return [
        PromptGrid(
            prompt=_words(left.facts, right.facts, prompt),
            kind=kind,
            sides={side: [each[side] for each in columns if side in each] for side in columns[0]},
            left_out=0,
        )
        for (kind, prompt), columns in groups.items()
    ]


def _words(a: ReportFacts, b: ReportFacts, prompt: str) -> str:
    """The prompt with its subject, when both are of the same one."""
    if a.title != b.title:
        return prompt
    named = {name.removeprefix("subject."): b.config[name] for name in _NAMES}
    return Subject(images=Path(), **named).fill(prompt)


def _settings(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Options that differ, with their values."""
    return [
        (name, a.get(name, ""), b.get(name, ""))
        for name in {**a, **b}
        if a.get(name) != b.get(name)
    ]
