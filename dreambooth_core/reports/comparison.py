"""Comparison page of two runs: metrics in one table, images of the same seeds side by side.

Reads the runs' HTML reports only, so that it needs neither store nor MLflow.
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
"""Maximum size of a report, with its embedded images."""
_NAMES = ("subject.identifier", "subject.class_noun")


@dataclass(frozen=True)
class ReadReport:
    """A report's facts, and its images by digest."""

    facts: ReportFacts
    images: dict[str, PageImage]


def compare_runs(left: Path, right: Path, out: Path) -> Path:
    """Write the comparison page to `out`.

    `left` and `right`: the folder of a finished run, or its report or summary. Raises `ConfigError`
    without a report.
    """
    page = render(read_report(left), read_report(right))
    if out.exists() and any(out.samefile(_file(given)) for given in (left, right)):
        raise ConfigError(f"--out {out} is one of the two reports: name another file")
    with written_beside(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def read_report(path: Path) -> ReadReport:
    """Read an HTML report; raises `ConfigError` if it has no facts."""
    reader = _Reader()
    try:
        reader.feed(read_text(_file(path), "report", REPORT_BYTES))
        facts = ReportFacts.model_validate(parse_json(reader.facts, "the report's facts"))
        _check(facts)
    except (AssertionError, ConfigError, OSError, ValueError) as error:
        raise ConfigError(
            f"{path} has no report that can be compared: name the folder reports/<run id> of a finished "
            "run; to renew a report of an older version, run its config again"
        ) from error
    return ReadReport(facts, reader.images)


def _file(path: Path) -> Path:
    """Path of the report's file; raises `OSError` for a name that is too long."""
    if path.suffix == ".html":
        return path
    return path / "report.html" if path.is_dir() else path.parent / "report.html"


def _check(facts: ReportFacts) -> None:
    """Raise `ValueError` for missing config keys and invalid prompts."""
    missing = {"model.resolution", *_NAMES} - facts.config.keys()
    if missing or not facts.config["model.resolution"].isdecimal():
        raise ValueError("config keys of the run are missing")
    for row in facts.rows:
        check_template(row.prompt)


def render(left: ReadReport, right: ReadReport) -> str:
    """The page as HTML: `left` is A, `right` is B."""
    ours, theirs = right.facts, left.facts
    same_plan = bool(ours.plan) and ours.plan == theirs.plan
    found = _compared(ours, theirs) if same_plan else {}
    titles = {line.metric: line.title for facts in (theirs, ours) for line in facts.lines}
    return reports.render(
        "comparison.html.j2",
        charts=bool(found),
        a=theirs,
        b=ours,
        same_plan=same_plan,
        lines=_lines(theirs, ours),
        comparisons=found,
        gains=charts.gain_chart([*found.values()], titles) if found else None,
        grids=_grids(left, right),
        settings=_settings(theirs.config, ours.config),
        small=int(ours.config["model.resolution"]) <= EMBEDDED_SIDE // 2,
    )


class _Reader(HTMLParser):
    """Parser of a report's facts and images."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = ""
        self.images: dict[str, PageImage] = {}
        self._in_facts = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._in_facts = tag == "script" and found.get("id") == "facts"
        if tag == "img" and "data-digest" in found:
            digest, about = found["data-digest"], found.get("alt", "")
            self.images[digest] = PageImage(found.get("src", ""), "", about, digest)

    def handle_endtag(self, tag: str) -> None:
        self._in_facts = False

    def handle_data(self, data: str) -> None:
        if self._in_facts:
            self.facts += data


def _compared(ours: ReportFacts, theirs: ReportFacts) -> dict[str, Comparison]:
    """Metric -> paired comparison of `ours` with `theirs`."""
    shared = shared_metrics(ours.rows, theirs.rows)
    return {
        line.metric: compare(line.metric, ours.rows, theirs.rows, LEVEL, line.higher_is_better)
        for line in ours.lines
        if line.metric in shared
    }


def _lines(a: ReportFacts, b: ReportFacts) -> list[tuple[MetricLine | None, MetricLine | None]]:
    """Lines of both runs per metric; None for a metric that was not measured."""
    first, second = ({line.metric: line for line in facts.lines} for facts in (a, b))
    return [(first.get(name), second.get(name)) for name in {**first, **second}]


def _grids(left: ReadReport, right: ReadReport) -> list[PromptGrid]:
    """Images of the same prompts and seeds that both reports show."""
    theirs = {image_key(row): row for row in left.facts.rows}
    pairs = [(theirs[image_key(row)], row) for row in right.facts.rows if image_key(row) in theirs]
    groups: defaultdict[tuple[str, str], list[dict[str, PageImage]]] = defaultdict(list)
    for a, b in pairs:
        shown = {
            "A": left.images.get(a.image),
            "B": right.images.get(b.image),
            "base": right.images.get(b.base_image),
        }
        if shown["A"] and shown["B"]:
            groups[b.kind, b.prompt].append({side: each for side, each in shown.items() if each})
    return [
        PromptGrid(
            prompt=_filled(left.facts, right.facts, prompt),
            kind=kind,
            sides={side: [each[side] for each in columns if side in each] for side in columns[0]},
            left_out=0,
        )
        for (kind, prompt), columns in groups.items()
    ]


def _filled(a: ReportFacts, b: ReportFacts, prompt: str) -> str:
    """The filled prompt if both runs have the same subject, else the template."""
    if a.title != b.title:
        return prompt
    named = {name.removeprefix("subject."): b.config[name] for name in _NAMES}
    return Subject(images=Path(), **named).fill(prompt)


def _settings(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Config keys that differ, with both values."""
    return [
        (name, a.get(name, ""), b.get(name, ""))
        for name in {**a, **b}
        if a.get(name) != b.get(name)
    ]
