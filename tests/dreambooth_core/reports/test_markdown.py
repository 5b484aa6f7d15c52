"""Markdown and table rows of a run's summary, estimate, verdict, sweep, sampling job and clean-up."""

from dreambooth_core.reports.markdown import (
    comparison_table,
    cost_rows,
    estimate_markdown,
    garbage_markdown,
    job_markdown,
    summary_markdown,
    sweep_markdown,
)
from dreambooth_core.reports.summary import ModelSummary, Summary
from dreambooth_core.storage.garbage_collection import SweepResult
from dreambooth_core.storage.records import (
    Comparison,
    Cost,
    CostEstimate,
    PublishedJob,
    ShardResult,
    Stage,
    TrialScore,
)
from dreambooth_core.training.sweep import pareto_front
from tests.registered_by_hand import verdict

SUMMARY = Summary(
    run_id="tiny-1",
    status="done",
    stages={
        "validate": Stage(status="done", seconds=2, cpu_seconds=1),
        "train": Stage(status="reused", seconds=1.25, saved=Cost(seconds=100)),
    },
    metrics={"clip_i": 0.75},
    base_metrics={"clip_i": 0.5},
    model=ModelSummary(name="tiny", version="1", aliases=()),
    artifacts={"report": "file:///r.html"},
    digests={"weights": None},
)
ESTIMATE = CostEstimate(
    photos=4,
    instance="a" * 64,
    base="b" * 64,
    class_images=100,
    stored_class_images=40,
    trained=None,
    evaluated_images=36,
    priors_seconds=None,
    training_seconds=None,
    evaluation_seconds=None,
)


def test_a_summary_lists_metrics_stages_artifacts_and_warnings():
    text = summary_markdown(SUMMARY)
    assert "| clip_i | 0.750 | 0.500 |" in text
    assert "| train | reused | 1.2 |" in text
    assert "- report: `file:///r.html`" in text
    assert "Warning" not in text
    warned = SUMMARY.model_copy(update={"warnings": ("the detector finds no subject",)})
    assert "Warning: the detector finds no subject" in summary_markdown(warned)


def test_cost_rows_end_with_the_sum_of_all_stages():
    _, train, total = cost_rows(SUMMARY)
    assert (train["stage"], train["status"], train["saved seconds"]) == ("train", "reused", "100.0")
    assert total == {
        "stage": "all",
        "status": "done",
        "seconds": "3.2",
        "cpu seconds": "1.0",
        "gpu seconds": "0.0",
        "saved seconds": "100.0",
    }


def test_an_estimate_lists_reuse_and_expected_cost():
    first = estimate_markdown(ESTIMATE)
    assert "| training | unknown time: no champion to compare with |" in first
    assert "| class images | 100, 40 of them reused, unknown time" in first
    assert "speed | unknown time" in first
    seconds = {"priors_seconds": 20.0, "training_seconds": 61.4, "evaluation_seconds": 10.0}
    known = ESTIMATE.model_copy(update=seconds)
    assert "| training | about 61 s |" in estimate_markdown(known)
    assert "| total, at the champion's speed | about 91 s |" in estimate_markdown(known)
    done = known.model_copy(update={"trained": "c" * 64})
    assert f"| training | reused, `{'c' * 16}`, 61 s saved |" in estimate_markdown(done)
    assert "| total, at the champion's speed | about 30 s |" in estimate_markdown(done)


def test_a_comparison_has_candidate_and_champion_in_one_row():
    compared = Comparison(
        metric="prompt_fidelity",
        higher_is_better=True,
        challenger=0.5,
        champion=0.25,
        difference=0.25,
        low=0.125,
        high=None,
        level=0.9,
        win_rate=0.75,
        p=0.01,
        smallest_effect=0.125,
        prompts=2,
        images=8,
    )
    assert comparison_table(verdict("2", "keep", "tiny/1")) == "Nothing could be compared."
    promoted = verdict("2", "promote", "tiny/1").model_copy(update={"comparisons": (compared,)})
    assert comparison_table(promoted).splitlines() == [
        "| metric | candidate | tiny/1 | difference | images won | p | smallest detectable effect |",
        "|---|---|---|---|---|---|---|",
        "| prompt fidelity | 0.500 | 0.250 | +0.250 | 75% | 0.010 | 0.125 |",
    ]


def _score(steps: int, subject: float) -> TrialScore:
    return TrialScore(
        settings={"train.steps": steps},
        subject_fidelity=subject,
        prompt_fidelity=0.5,
        base_prompt_fidelity=0.5,
        seconds=steps / 10,
    )


def test_a_sweep_marks_the_front_and_the_chosen_trial():
    scores = [_score(100, 0.7), _score(200, 0.6), _score(300, 0.8)]
    text = sweep_markdown(scores, pareto_front(scores), best=2)
    assert (
        "| train.steps | subject fidelity | prompt fidelity | seconds | on the front | chosen |"
        in text
    )
    assert "| 100 | 0.700 | 0.500 | 10 | yes |  |" in text
    assert "| 200 | 0.600 | 0.500 | 20 |  |  |" in text
    assert "| 300 | 0.800 | 0.500 | 30 | yes | yes |" in text


def test_a_finished_job_lists_its_files():
    shard = ShardResult(made=3, found=1, missing=0, seconds=2.0, images_per_second=1.5)
    files = {"gallery.html": "s3://b/jobs/x/gallery.html"}
    published = PublishedJob(job="x", count=4, near_duplicates=1, unsafe=0, files=files)
    text = job_markdown(shard, published)
    assert text.startswith("# x: 4 images\n")
    assert "3 images drawn, 1 found in 2.0 s, 1.50 images/s." in text
    assert "- gallery.html: `s3://b/jobs/x/gallery.html`" in text


def test_an_unfinished_job_gives_the_number_of_missing_images():
    shard = ShardResult(made=0, found=2, missing=6, seconds=0.1, images_per_second=0)
    assert job_markdown(shard, None).endswith("6 images are left to other shards.")


def test_a_dry_run_of_garbage_collection_deletes_nothing():
    result = SweepResult(
        deleted=False, objects=2, bytes=1500, kinds={"blobs": 1500}, kept_objects=1, kept_bytes=7
    )
    text = garbage_markdown(result)
    assert "# 1,500 bytes in 2 objects could be deleted: nothing was, as `delete` is off" in text
    assert "| blobs | 1,500 |" in text
    assert "deleted\n" in garbage_markdown(result.model_copy(update={"deleted": True}))
