import json
import time

import pytest

from dreambooth_core.cli import run_output
from dreambooth_core.config import Config
from dreambooth_core.data.dataset import Validation
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.errors import DatasetRefused, Preempted
from dreambooth_core.reports.summary import LAST_RUN, STAGES, RunRecorder, Summary
from dreambooth_core.storage.records import (
    Cost,
    Document,
    Estimate,
    ImageSet,
    ModelVersion,
    Reason,
    SampleSet,
    Scores,
    Verdict,
    Weights,
)

DIGEST = "0" * 64
SAMPLES = SampleSet(uri="file:///x", digest=DIGEST, images=())
VERSION = ModelVersion(name="robot", version="3", aliases=("candidate",), run_id="r")
SCORES = Scores(
    uri="file:///s",
    digest="2" * 64,
    metrics={"clip_i": 0.5},
    base_metrics={"clip_i": 0.25},
    estimates={"clip_i": Estimate(value=0.5, low=0.375, high=0.625)},
    warnings=("the detector found nothing",),
    samples=SAMPLES,
    base_samples=SAMPLES,
    class_samples=SAMPLES,
    base_class_samples=SAMPLES,
)

REASON = Reason(
    rule="superiority", metric="clip_i", outcome="passed", sentence="clip i is 0.500 against 0.250"
)


@pytest.fixture
def config(tmp_path):
    return Config.model_validate(
        {
            "name": "robot",
            "subject": {"images": tmp_path / "photos", "class_noun": "robot"},
            "storage": {"uri": f"file://{tmp_path / 'store'}", "endpoint": None},
            "paths": {"work": tmp_path / "work"},
        }
    )


def result_of(name: str):
    images = {"uri": "file:///x", "digest": DIGEST, "images": ()}
    found = Validation(folder="x", findings=(), accepted=(), digest=DIGEST)
    return {
        "validate": IngestedPhotos(images=ImageSet(**images), validation=found),
        "priors": ImageSet(**images),
        "train": Weights(uri="file:///w", digest="1" * 64, method="full", files={}, steps=3),
        "evaluate": SCORES,
        "register": VERSION,
        "gate": Verdict(
            uri="file:///v",
            digest="3" * 64,
            outcome="promote",
            sentence="It is better than the base.",
            reasons=(REASON,),
            comparisons=(),
            against="base",
            rounds=1,
            candidate=SCORES,
            champion=None,
        ),
        "promote": VERSION.model_copy(update={"aliases": ("candidate", "champion")}),
        "sample": SAMPLES,
        "report": Document(uri="file:///r", digest=DIGEST, path="/r"),
    }[name]


def run_stages(config, reused=False) -> Summary:
    with RunRecorder(config) as run:
        for name in STAGES:
            run.stage(name, lambda name=name: (result_of(name), reused))
    return run.summary


def test_summary_of_a_finished_run(config, capsys):
    document = json.loads(run_stages(config).model_dump_json())
    assert list(document) == [
        *("run_id", "status", "stages", "metrics", "base_metrics", "model", "gate"),
        *("warnings", "artifacts", "digests", "estimates"),
    ]
    assert document["status"] == "done"
    assert list(document["stages"]) == list(STAGES)
    assert {"status", "seconds"} <= set(document["stages"]["train"])
    assert document["metrics"] == {"clip_i": 0.5}
    assert document["warnings"] == ["the detector found nothing"]
    assert document["base_metrics"] == {"clip_i": 0.25}
    assert document["model"] == {
        "name": "robot",
        "version": "3",
        "aliases": ["candidate", "champion"],
    }
    assert document["gate"] == {
        "outcome": "promote",
        "sentence": "It is better than the base.",
        "against": "base",
        "reasons": [REASON.model_dump()],
    }
    assert document["estimates"] == {"clip_i": {"value": 0.5, "low": 0.375, "high": 0.625}}
    assert document["digests"] == {"dataset": DIGEST, "class_images": DIGEST, "weights": "1" * 64}
    assert capsys.readouterr().out == ""


def test_summary_without_evaluation(config):
    with RunRecorder(config) as run:
        run.stage("validate", lambda: (result_of("validate"), False))
    assert run.summary.estimates == {}
    assert run.summary.gate is None


def test_a_summary_of_an_earlier_version_is_read(config):
    document = json.loads(run_stages(config).model_dump_json())
    del document["estimates"], document["gate"]["reasons"]
    found = Summary.model_validate(document)
    assert found.estimates == {}
    assert found.gate is not None
    assert found.gate.reasons == ()


def test_intervals_and_reasons_are_printed(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run_output.show_summary(run_stages(config))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "metric tuned 95 % interval base" in lines
    assert "clip i 0.500 0.375 to 0.625 0.250" in lines
    decided = lines.index("Gate promote: It is better than the base.")
    assert lines[decided + 1] == f"passed, superiority: {REASON.sentence}"


def test_a_missing_interval_is_printed_empty(config, capsys):
    alone = run_stages(config).model_copy(update={"estimates": {"clip_i": Estimate(value=0.5)}})
    run_output.show_summary(alone)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "clip i 0.500 0.250" in lines


def test_it_is_written_beside_the_report_and_to_the_store(config, tmp_path):
    summary = run_stages(config)
    beside = config.paths.work / "reports" / summary.run_id / "summary.json"
    stored = tmp_path / "store" / "reports" / summary.run_id / "summary.json"
    for path in (beside, stored, config.paths.work / LAST_RUN):
        assert Summary.model_validate_json(path.read_bytes()) == summary
    assert summary.artifacts["summary"] == beside.resolve().as_uri()


def test_the_run_id_does_not_depend_on_the_work_folder(config, tmp_path):
    moved = config.model_copy(
        update={"paths": config.paths.model_copy(update={"work": tmp_path / "elsewhere"})}
    )
    other = config.model_copy(update={"seed": 1})
    assert (
        run_stages(config).run_id
        == run_stages(config, reused=True).run_id
        == run_stages(moved).run_id
    )
    assert run_stages(other).run_id != run_stages(config).run_id


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatasetRefused("no"), "failed"),
        (RuntimeError("no"), "failed"),
        (Preempted("later"), "preempted"),
        (KeyboardInterrupt(), "preempted"),
    ],
)
def test_summary_of_a_failed_run(config, error, status):
    def fail():
        raise error

    def run_until_failure():
        with RunRecorder(config) as run:
            run.stage("validate", lambda: (result_of("validate"), True))
            run.stage("priors", fail)

    with pytest.raises(type(error)):
        run_until_failure()
    summary = Summary.model_validate_json((config.paths.work / LAST_RUN).read_bytes())
    assert summary.status == status
    assert {name: stage.status for name, stage in summary.stages.items()} == {
        "validate": "reused",
        "priors": "failed",
    }
    assert summary.digests == {"dataset": DIGEST, "class_images": None, "weights": None}
    assert not (config.paths.work / "reports").exists()


def test_a_stage_without_a_result_is_skipped(config):
    with RunRecorder(config) as run:
        run.stage("priors", lambda: (None, True))
    assert run.summary.stages["priors"].status == "skipped"


def test_reuse_saves_the_cost_of_making(config):
    def evaluate():
        sum(range(2_000_000))
        return SCORES, False

    with RunRecorder(config) as first:
        first.stage("evaluate", evaluate)
    spent = first.stages["evaluate"]
    assert spent.cpu_seconds > 0
    assert spent.saved is None
    with RunRecorder(config) as again:
        again.stage("evaluate", lambda: (SCORES, True))
    assert again.stages["evaluate"].saved == Cost(
        seconds=spent.seconds, cpu_seconds=spent.cpu_seconds, gpu_seconds=spent.gpu_seconds
    )


def test_gpu_seconds_count_for_stages_on_the_gpu(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with RunRecorder(config) as run:
        run.stage("evaluate", lambda: (SCORES, False))
        run.stage("register", lambda: (VERSION, False))
    assert run.stages["evaluate"].gpu_seconds == pytest.approx(run.stages["evaluate"].seconds)
    assert run.stages["register"].gpu_seconds == 0


def test_the_first_cost_of_a_result_is_kept(config):
    for seconds in (0.05, 0.0):  # made twice at once by two runs
        with RunRecorder(config) as run:
            run.stage("evaluate", lambda seconds=seconds: (time.sleep(seconds), (SCORES, False))[1])
    with RunRecorder(config) as again:
        again.stage("evaluate", lambda: (SCORES, True))
    assert again.stages["evaluate"].saved.seconds >= 0.05
