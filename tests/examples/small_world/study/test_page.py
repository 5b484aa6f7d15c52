"""The study's page, charts and comparisons, from the trials' result files."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from dreambooth_core.metrics import catalogue
from dreambooth_core.training.spec import write_record
from examples.small_world.study import page, trials
from examples.small_world.study.__main__ import main, parser
from examples.small_world.study.arms import QUESTIONS, Arm, Question, Trial
from examples.small_world.study.trials import Result

OURS, THEIRS, THIRD = Arm("ours", "our defaults"), Arm("theirs", "theirs"), Arm("third", "third")
SUBJECTS = ("cat", "mug", "car")
PAIR = Question("pair", "A pair", "About it.", (OURS, THEIRS), SUBJECTS, (0,), against=True)
THREE = Question("three", "Three arms", "About them.", (OURS, THEIRS, THIRD), SUBJECTS, (0,))


def put(
    folder: Path, arm: Arm, subject: str, fidelity: float, pres: float, **others: float
) -> None:
    metrics = {"subject_fidelity": fidelity, "pres": pres, **others}
    result = Result(
        arm=arm.name,
        subject=subject,
        seed=0,
        weights="w",
        plan=subject,
        metrics=metrics,
        base_metrics=metrics,
        reference={},
        seconds=60,
        made_by={},
    )
    path = trials.file_of(folder, Trial(arm, subject, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, result)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """`ours` and `theirs` complete, `third` with one of three trials."""
    folder = tmp_path / "results"
    for index, subject in enumerate(SUBJECTS):
        put(folder, OURS, subject, 0.9 + 0.01 * index, 0.3)
        put(folder, THEIRS, subject, 0.7 + 0.015 * index, 0.2 + 0.1 * index)
    put(folder, THIRD, "cat", 0.5, 0.1)
    return folder


def test_page_has_tables_charts_and_comparisons(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "docs" / "study.md"
    page.write((PAIR, THREE), results, path)
    text = path.read_text()
    written = json.loads((results / "pair.json").read_text())
    assert set(written) == {"subject_fidelity", "pres"}
    assert written["subject_fidelity"]["ours"] == pytest.approx(0.91)
    assert "| 0.910 | 0.715 | +0.195 [" in text
    assert "| better |" in text
    assert "| no difference shown |" in text
    assert not (results / "three.json").exists()
    for name in ("pair", "three"):
        picture = tmp_path / "docs" / "study" / f"{name}.svg"
        assert f"(study/{name}.svg)" in text
        assert picture.read_text().startswith("<svg")
        assert picture.stat().st_size < 60_000
    assert "our defaults" in (tmp_path / "docs" / "study" / "pair.svg").read_text()


def test_charts_have_a_panel_for_each_measured_metric(tmp_path: Path) -> None:
    names = ("identity", "diversity", "class_diversity")
    for arm in (OURS, THEIRS):
        put(tmp_path, arm, "cat", 0.9, 0.3, **dict.fromkeys(names, 0.5))
    page.write((PAIR,), tmp_path, tmp_path / "study.md")
    drawn = (tmp_path / "study" / "pair.svg").read_text()
    titles = [catalogue()[name].title for name in (*names, "subject_fidelity", "pres")]
    assert [title for title in titles if f">{title}</text>" not in drawn] == []


def test_equal_results_give_equal_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        page.write((PAIR, THREE), results, tmp_path / name / "study.md")
    written = [
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*.*")
        }
        for name in ("a", "b")
    ]
    assert written[0] == written[1]
    assert len(written[0]) == 3


def test_missing_trials_are_listed(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.md"
    page.write((PAIR, THREE), results, path)
    first, second = path.read_text().split("## ")[1:]
    assert "no trial is missing" in first
    assert "**Trials are missing**; done: third 1 of 3." in second
    assert "Left out" not in first + second


def test_metric_missing_in_a_trial_is_listed_as_left_out(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.md"
    put(results, OURS, "cat", 0.9, 0.3, identity=0.8)
    page.write((PAIR,), results, path)
    assert "**Left out**, missing in some trials: identity." in path.read_text()


def test_question_with_a_single_arm_has_no_table(results: Path, tmp_path: Path) -> None:
    alone = Question("alone", "One arm", "", (THIRD, Arm("no", "none yet")), SUBJECTS, (0,))
    path = tmp_path / "study.md"
    page.write((alone,), results, path)
    text = path.read_text()
    assert "third 1 of 3, none yet 0 of 3" in text
    assert "|---" not in text
    assert ".svg" not in text
    assert not (tmp_path / "study").exists()


def test_question_without_any_trial_has_no_table(tmp_path: Path) -> None:
    path = tmp_path / "study.md"
    page.write((PAIR,), tmp_path / "results", path)
    text = path.read_text()
    assert "our defaults 0 of 3, theirs 0 of 3" in text
    assert "|---" not in text
    assert ".svg" not in text
    assert json.loads((tmp_path / "results" / "pair.json").read_text()) == {}


def test_arm_is_marked_against_the_first(results: Path, tmp_path: Path) -> None:
    for index, subject in enumerate(SUBJECTS):
        put(results, THIRD, subject, 0.5 + 0.012 * index, 0.1 + 0.002 * index)
    text = page.section(THREE, page.findings.gather(THREE, results))
    fidelity, pres = (line for line in text.splitlines() if " is better)" in line)
    assert fidelity.count("▼") == 2
    assert "▲" not in fidelity
    assert pres.count("▲") == 1
    assert "▼" not in pres


def test_plan_lists_missing_trials_and_their_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, OURS, "cat", 0.9, 0.1)
    narrow = ["--subjects", "cat", "--seeds", "0", "--only", "ours", "--only", "diffusers"]
    assert main(["--plan", "--results", str(tmp_path), *narrow]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ours cat 0: done, 60 s",
        "diffusers cat 0: missing",
        "1 of 2 are missing: about 0.0 hours",
    ]


def test_command_on_the_page_is_valid(tmp_path: Path) -> None:
    page.write((), tmp_path, tmp_path / "study.md")
    (line,) = (
        line
        for line in (tmp_path / "study.md").read_text().splitlines()
        if line.startswith("python -m examples.small_world.study")
    )
    given = parser().parse_args(shlex.split(line)[3:])
    assert given.peer == Path("diffusers") / page.peer.SCRIPT
    assert given.peer_python == Path("peer/bin/python")


def test_shipped_page_and_comparisons_are_those_of_the_result_files(tmp_path: Path) -> None:
    """Charts are only checked for presence: their bytes depend on Vega's version."""
    shipped, copied = Path("examples/small_world/study/results"), tmp_path / "results"
    shutil.copytree(shipped, copied)
    page.write(QUESTIONS, copied, tmp_path / "study.md")
    assert (tmp_path / "study.md").read_text() == Path("docs/study.md").read_text()
    answers = sorted(path.name for path in shipped.glob("*.json"))
    assert answers == sorted(each.name + ".json" for each in QUESTIONS if each.against)
    for name in answers:
        made, kept = (json.loads((folder / name).read_text()) for folder in (copied, shipped))
        assert made.keys() == kept.keys()
        for metric, row in kept.items():
            assert made[metric] == pytest.approx(row), (name, metric)
    drawn = {path.name for path in Path("docs/study").iterdir()}
    assert drawn == {f"{each.name}.svg" for each in QUESTIONS}
