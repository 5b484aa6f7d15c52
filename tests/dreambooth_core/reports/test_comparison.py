"""Comparison page of two report files."""

import pytest

from dreambooth_core.errors import ConfigError
from dreambooth_core.reports import report
from dreambooth_core.reports.comparison import compare_runs
from dreambooth_core.storage.records import ModelVersion
from tests.page import Page
from tests.reported_by_hand import PROMPTS, SEEDS, STAGES, run_of, scores_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs: `a`; `b` with other weights and seed, of one plan; `c` by another plan."""
    folder = tmp_path_factory.mktemp("reports")
    config, store, first = run_of(folder)
    version = ModelVersion(name="tiny", version="3", aliases=(), run_id="1" * 32)
    scores = scores_of(store, 9, identity=0.5)
    second = first.model_copy(update={"scores": scores, "verdict": None, "version": version})
    third = second.model_copy(
        update={"scores": scores.model_copy(update={"plan": "q" * 64, "table": None})}
    )
    for seed, (name, results) in enumerate({"a": first, "b": second, "c": third}.items()):
        (folder / name).mkdir()
        page = report.render(config.model_copy(update={"seed": seed}), store, results, STAGES)
        (folder / name / "report.html").write_text(page)
    return folder, first, second


@pytest.fixture(scope="module")
def page(runs) -> Page:
    folder, _, _ = runs
    out = folder / "both.html"
    assert compare_runs(folder / "a", folder / "b" / "summary.json", out) == out
    return Page(out.read_text())


def test_both_decisions_come_first(page):
    assert "A · tiny/2 Do not promote It is not <better>" in page.sections[""]
    assert "B · tiny/3 No decision" in page.sections[""]


def test_metrics_are_compared_pairwise(page):
    words = page.sections["metrics"]
    assert "identity ↑ 0.711" in words
    assert "−0.250 −0.250 to −0.250 0 % 0.250" in words
    assert "a new metric" in words


def test_images_are_aligned_by_seed(page, runs):
    _, first, second = runs
    shown = [str(image["data-digest"]) for image in page.all("img")]
    sides = (first.scores.samples, second.scores.samples, first.scores.base_samples)
    wanted = [made.images[index].blob.sha256 for made in sides for index in range(SEEDS)]
    assert shown[: 3 * SEEDS] == wanted
    assert len(shown) == 3 * (len(PROMPTS) * SEEDS + 2)


def test_differing_config_keys_are_listed(page):
    assert page.sections["settings"].endswith("with different values. key A B seed 0 1 × ")


def test_different_plans_have_no_comparison(runs):
    folder, _, _ = runs
    words = Page(compare_runs(folder / "b", folder / "c", folder / "out.html").read_text()).sections
    assert "evaluation plans differ" in words["metrics"]
    assert "difference interval" not in words["metrics"]
    assert "no prompt and seed in common" in words["pictures"]


def test_a_report_may_be_moved(runs, tmp_path):
    folder, _, _ = runs
    moved = tmp_path / "moved report.html"
    moved.write_bytes((folder / "a" / "report.html").read_bytes())
    out = compare_runs(moved, folder / "a", tmp_path / "out.html")
    assert "None: the configs are equal." in out.read_text()


@pytest.mark.parametrize("text", ["", "<html></html>", '<script id="facts">{"run": 1}</script>'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.html").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.html has no report that can be compared"):
        compare_runs(tmp_path / "x.html", tmp_path, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="name the folder reports/<run id>"):
        compare_runs(tmp_path, tmp_path, tmp_path / "out.html")
