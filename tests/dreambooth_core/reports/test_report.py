"""The report's HTML from small records; see `test_pages` for tests in a browser."""

import json
import re
import time
from pathlib import Path

import pytest

from benchmarks import measured_servers
from dreambooth_core.config import Detector
from dreambooth_core.digests import digest_of
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.reports import report
from dreambooth_core.reports.facts import ReportFacts
from dreambooth_core.reports.image_grids import MAX_IMAGES
from dreambooth_core.reports.summary import StageResults
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.checkpoint_manifests import Checkpoint
from dreambooth_core.storage.code_version import code_digest, code_version
from dreambooth_core.storage.leases import Lease
from dreambooth_core.storage.records import Judgement, Preferences, ScoreTable
from dreambooth_core.tracking import mlflow as tracking
from tests import browser
from tests.page import Page
from tests.reported_by_hand import PROMPTS, SEEDS, STAGES, results_of, run_of, verdict_of

COMMON = len(PROMPTS) * SEEDS
"""Images of one model's grids."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Config, store and results of a run; shared, as rendering does not change them."""
    return run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture
def results(made) -> StageResults:
    return made[2]


@pytest.fixture(scope="module")
def rendered(made):
    config, store, _ = made
    return lambda results: report.render(config, store, results, STAGES)


@pytest.fixture(scope="module")
def text(made, rendered) -> str:
    return rendered(made[2])


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_the_page_is_self_contained(text, page):
    grids = 3 * COMMON + 3 * 2
    worst = 2 * 4
    shown = 3 + grids + worst + 2 + MAX_IMAGES + 2
    images = page.all("img")
    assert len(images) == shown
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in images)
    assert not page.all("link")
    assert not [script for script in page.all("script") if "src" in script]
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", text)
    assert len(text) < 1_000_000


def test_rendering_is_deterministic(rendered, results, text):
    assert rendered(results) == text


def test_decision_and_reasons_come_first(page, results):
    assert list(page.sections)[:3] == ["", "reasons", "pictures"]
    assert "Decision, against tiny/1 Do not promote It is not <better>" in page.sections[""]
    assert "after 2 rounds" in page.sections["reasons"]
    assert "✓ integrity all is there ? superiority identity 0 is inside" in page.sections["reasons"]


def test_images_of_candidate_champion_and_base_are_aligned_by_seed(page, results):
    assert "candidate champion base" in page.sections["pictures"]
    sides = (results.scores.samples, results.verdict.champion.samples, results.scores.base_samples)
    wanted = [made.images[index].blob.sha256 for made in sides for index in (0, 1)]
    shown = [str(image["data-digest"]) for image in page.all("img")]
    first = shown.index(wanted[0])
    assert shown[first : first + 6] == wanted


def test_without_a_champion_the_base_is_the_rival(rendered, made):
    _, store, results = made
    alone = verdict_of(store, results.scores, None)
    page = Page(rendered(results.model_copy(update={"verdict": alone})))
    assert "Decision, against the base" in page.sections[""]
    assert "champion" not in page.sections["pictures"] + page.sections["metrics"]
    assert "against the base, paired by prompt and seed" in page.sections["differences"]


def test_metrics_of_all_models_and_photos_with_intervals(page, results):
    words = page.sections["metrics"]
    ours = results.scores.estimates["identity"]
    assert f"{ours.value:.3f} {ours.low:.3f} to {ours.high:.3f} 0.461" in words
    assert "0.938" in words
    assert "a new metric" in words


def test_differences_with_interval_wins_p_and_smallest_effect(page, results):
    words = page.sections["differences"]
    assert "identity ↑ +0.250 +0.250 to +0.250 100 % 0.250 0.000 6 3 prompts" in words
    assert "near copies ↓" in words


def test_means_per_prompt_with_difference_from_the_champion(page, results):
    words = page.sections["prompts"]
    assert "sks robot on the beach 0.711 +0.250" in words
    assert "sks robot in a hat accessory 0.680 +0.250" in words


def test_worst_images_and_near_copies_with_their_photos(text, results):
    images = [str(image["data-digest"]) for image in Page(text).all("img")]
    photo = results.intake.images.images[2].blob.sha256
    copied = results.scores.samples.images[1].blob.sha256
    index = len(images) - images[::-1].index(photo) - 1
    assert images[index - 1] == copied
    assert "Worst identity 0.672 0.688 0.703 0.719" in Page(text).sections["worst"]


def test_validations_are_charted_with_the_exported_step_marked(page, text):
    assert "exported weights: step 20" in page.sections["training"]
    assert "20 0.050 0.500 0.250 0.125 exported 30" in page.sections["training"]
    validations = ("stable loss", "subject fidelity", "prompt fidelity", "PRES")
    for title in (*validations, "loss", "learning rate"):
        assert f"<h3>{title}</h3>" in text
    assert len(page.all("figure", **{"class": "chart card"})) == 6 + 2


def test_with_a_detector_validation_shows_fidelity_of_the_crop(made):
    config, store, results = made
    detector = Detector(kind="segmenter", model="examples/small_world/detector")
    rules = config.evaluation.model_copy(update={"detector": detector})
    cropped = config.model_copy(update={"evaluation": rules})
    text = report.render(cropped, store, results, STAGES)
    assert "<h3>subject fidelity (crop)</h3>" in text
    assert "<h3>subject fidelity</h3>" not in text


def test_cost_has_seconds_and_savings(page, results):
    words = page.sections["cost"]
    assert "13.2 s of wall time; reused results saved 1 min 15 s" in words
    assert "train done 12.5 s 20.0 s" in words
    assert "evaluate reused 0.2 s 0.0 s 1 min 15 s" in words


def test_lineage_has_every_digest(page, results):
    words = page.sections["lineage"]
    made = (results.intake.images, results.classes, results.weights, results.scores)
    for record in (*made, results.verdict, results.samples):
        assert record.digest in words


def test_lineage_has_code_config_licence_and_consent(made):
    config, store, results = made
    subject = config.subject.model_copy(update={"provenance": "my <own>", "consent": "none"})
    other = subject.model_copy(update={"identifier": "zwx", "consent": "Ann did"})
    changed = config.model_copy(
        update={
            "subject": subject.model_copy(update={"provenance": ""}),
            "more_subjects": (other,),
            "model": config.model.model_copy(update={"licence": "MIT"}),
        }
    )
    words = Page(report.render(changed, store, results, STAGES)).sections["lineage"]
    assert "licence of the base MIT" in words
    assert f"config {records.config_digest(changed)}" in words
    assert f"code {code_digest()} {code_version()}" in words
    assert "training code 3b5c0de-dirty" in words
    assert "provenance of sks robot not given consent for sks robot none" in words
    assert "provenance of zwx robot my <own> consent for zwx robot Ann did" in words


def test_lineage_has_no_licence_if_none_is_given(page):
    assert "licence" not in page.sections["lineage"].split(" Config ")[0]


def test_lineage_has_the_stored_checkpoints(made):
    config, store, results = made
    key, name = "c" * 64, "00000020.1"
    manifest = Checkpoint(step=20, run=key, code="d" * 64, files={}).model_dump_json().encode()
    store.put(f"runs/{key}/checkpoints/{name}/manifest.json", manifest)
    lease = Lease(
        number=1,
        holder="h",
        host="h",
        process=1,
        since="",
        folder="f",
        seconds=60,
        checkpoints=(name,),
    )
    store.put(f"runs/{key}/lease.json", lease.model_dump_json().encode())
    weights = results.weights.model_copy(update={"key": key})
    changed = results.model_copy(update={"weights": weights})
    words = Page(report.render(config, store, changed, STAGES)).sections["lineage"]
    assert f"checkpoint of step 20 {digest_of(manifest)}" in words


def test_passwords_are_removed_from_the_config(made):
    config, store, results = made
    secret = config.tracking.model_copy(update={"uri": "http://me:hunter2@host:5000"})
    text = report.render(config.model_copy(update={"tracking": secret}), store, results, STAGES)
    assert "http://host:5000" in text
    assert "hunter2" not in text


def test_user_text_is_escaped(text, results):
    assert "a &lt;b&gt; photo of sks robot" in text
    assert "<b> photo" not in text
    assert "&lt;x&gt;.png" in text
    assert "not &lt;better&gt;" in text


def test_the_embedded_facts_are_valid(text):
    (found,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text)
    facts = ReportFacts.model_validate(json.loads(found))
    assert facts.model == "tiny/2"
    assert facts.outcome == "keep"
    assert facts.config["subject.class_noun"] == "robot"
    assert facts.rows[0].scores["identity"] == 0.75
    assert len(facts.rows) == COMMON + 2


class TestMissingResults:
    def test_without_a_verdict(self, rendered, results):
        page = Page(rendered(results.model_copy(update={"verdict": None})))
        assert "No decision" in page.sections[""]
        assert "reasons" not in page.sections
        assert "identity ↑" in page.sections["differences"]

    def test_without_image_scores(self, rendered, results):
        lost = {"table": None, "estimates": {}, "plan": "", "warnings": ("<unsure>",)}
        older = results.scores.model_copy(update=lost)
        page = Page(rendered(results.model_copy(update={"verdict": None, "scores": older})))
        assert "stored without image scores" in page.sections["prompts"]
        assert "differences" not in page.sections
        assert "worst" not in page.sections
        assert "candidate base" in page.sections["pictures"]
        assert "identity" in page.sections["metrics"]
        assert "Warnings of the sanity checks <unsure>" in page.sections[""]

    def test_without_prior_preservation(self, rendered, results):
        page = Page(rendered(results.model_copy(update={"classes": None})))
        assert "Class images" not in page.sections["class"]

    def test_without_memorisation_or_curves(self, rendered, results):
        few = results.weights.model_copy(update={"losses": (), "validations": (), "rates": {}})
        bare = results.scores.model_copy(update={"metrics": {"identity": 0.5}, "table": None})
        changed = {"weights": few, "scores": bare, "verdict": None}
        page = Page(rendered(results.model_copy(update=changed)))
        assert "Near copies were not measured" in page.sections["copies"]
        assert "Too few steps for a curve" in page.sections["training"]

    def test_a_missing_result_is_refused(self, rendered, results):
        with pytest.raises(ValueError, match="all other stages"):
            rendered(results.model_copy(update={"scores": None, "verdict": None}))


class TestWriteReport:
    @pytest.fixture(autouse=True)
    def _run_in_mlflow(self, tracked_config, file_store):
        self.client = tracking.open_client(tracked_config)
        experiment = tracking.experiment_of(self.client, tracked_config)
        self.run = self.client.create_run(experiment).info.run_id
        results = results_of(file_store)
        version = results.version.model_copy(update={"run_id": self.run})
        self.results = results.model_copy(update={"version": version})

    def test_written_once_and_restored(self, tracked_config, file_store):
        first, reused = report.write_report(tracked_config, file_store, self.results, STAGES)
        assert not reused
        page = Path(first.path).read_bytes()
        key = first.uri.removeprefix(f"{file_store.uri}/")
        assert file_store.get(key) == page
        kept = self.client.get_run(self.run)
        assert kept.data.tags["dreambooth.report"] == first.uri
        assert [each.path for each in self.client.list_artifacts(self.run)] == [tracking.REPORT]
        assert tracking.report_address(tracked_config, self.run) is None, (
            "a sqlite file has no web pages"
        )
        Path(first.path).unlink()
        again = report.write_report(tracked_config, file_store, self.results, {})
        assert again == (first, True)
        assert Path(first.path).read_bytes() == page

    def test_earlier_aliases_restore_their_page(self, tracked_config, file_store):
        """All pages of a run have the same address."""
        first, _ = report.write_report(tracked_config, file_store, self.results, STAGES)
        page = Path(first.path).read_bytes()
        version = self.results.version.model_copy(update={"aliases": ("previous",)})
        moved = self.results.model_copy(update={"version": version})
        second, reused = report.write_report(tracked_config, file_store, moved, STAGES)
        assert (second.uri, reused) == (first.uri, False)
        assert Path(first.path).read_bytes() != page
        assert report.write_report(tracked_config, file_store, self.results, {}) == (first, True)
        assert Path(first.path).read_bytes() == page
        assert file_store.get(first.uri.removeprefix(f"{file_store.uri}/")) == page
        artifact = self.client.download_artifacts(self.run, tracking.REPORT)
        assert Path(artifact).read_bytes() == page

    def test_another_verdict_makes_another_page(self, tracked_config, file_store):
        first, _ = report.write_report(tracked_config, file_store, self.results, STAGES)
        without = self.results.model_copy(update={"verdict": None})
        second, reused = report.write_report(tracked_config, file_store, without, STAGES)
        assert not reused
        assert second.digest != first.digest


@pytest.mark.slow
def test_the_report_opens_in_mlflow(tracked_config, file_store, tmp_path):
    if browser.executable() is None:
        pytest.skip("needs Chromium")
    with measured_servers.mlflow(tmp_path / "server") as url, browser.browsing(tmp_path) as tab:
        tracking_server = tracked_config.tracking.model_copy(update={"uri": url})
        config = tracked_config.model_copy(update={"tracking": tracking_server})
        run = tracking.open_client(config).create_run("0").info.run_id
        results = results_of(file_store)
        version = results.version.model_copy(update={"run_id": run})
        made = results.model_copy(update={"version": version})
        report.write_report(config, file_store, made, STAGES)
        address = tracking.report_address(config, run)
        assert address is not None
        tab.open(address, 1280, 1000)
        framed = "document.querySelector('iframe')"
        tab.until(f"{framed} !== null", 120)
        # a frame of another origin: its content can only be checked in a screenshot
        time.sleep(3)
        tab.photograph("report-in-mlflow")


def test_answers_of_the_judge_pairs_and_advisory_marks_are_shown(made, rendered):
    _, store, results = made
    verdict = results.verdict
    rows = rows_of(store, verdict.candidate)
    no = Judgement(question="on the beach", value=0.125, reason="There is <no> sand.")
    judged = rows[0].model_copy(
        update={
            "scores": {**rows[0].scores, "checklist": 0.125},
            "judgements": {"checklist": (no,)},
        }
    )
    table = ScoreTable(rows=(judged, *rows[1:])).model_dump_json().encode()
    scores = verdict.candidate.model_copy(
        update={
            "table": put_blob(store, table),
            "metrics": {**verdict.candidate.metrics, "checklist": 0.125},
        }
    )
    pairs = Preferences(
        judge="glm",
        wins=3,
        ties=2,
        losses=1,
        unanswered=1,
        value=2 / 3,
        low=0.5,
        high=0.875,
        pairs=(),
    )
    changes = {
        "candidate": scores,
        "preferences": pairs,
        "advisory": {"checklist": "not calibrated"},
    }
    text = rendered(results.model_copy(update={"verdict": verdict.model_copy(update=changes)}))
    page = Page(text)
    words = page.sections["judgement"]
    assert "in both orders by glm: 3 wins, 2 ties, 1 losses, 1 pairs unanswered" in words
    assert "67 % (50 % to 88 %)" in words
    assert "checklist on the beach 0.125 There is <no> sand." in words
    assert "<no>" not in text
    assert "advisory" in page.sections["metrics"]
    assert "not used by the gate: not calibrated" in page.sections["metrics"]
    (found,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text)
    facts = ReportFacts.model_validate(json.loads(found))
    assert facts.rows[0].judgements == judged.judgements
    assert facts.preferences == pairs
