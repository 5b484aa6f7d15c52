import base64
import io

from PIL import Image

from dreambooth_core.data.contact_sheets import SIDE
from dreambooth_core.registry.estimate import CostEstimate
from dreambooth_core.reports.summary import ModelSummary, Summary
from dreambooth_core.storage.records import Comparison, Cost, ImageSet, SampleSet, Stage
from tasks.artifacts import as_markdown, comparison_table, cost_rows, gallery, plan_as_markdown
from tests.registered_by_hand import drawn, verdict

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
FORECAST = CostEstimate(
    photos=4,
    instance="a" * 64,
    base="b" * 64,
    class_images=100,
    class_images_there=40,
    trained=None,
    evaluated_images=36,
    priors_seconds=None,
    training_seconds=None,
    evaluation_seconds=None,
)


def test_the_note_in_prefect_names_numbers_stages_and_the_report():
    text = as_markdown(SUMMARY)
    assert "| clip_i | 0.750 | 0.500 |" in text
    assert "| train | reused | 1.2 |" in text
    assert "- report: `file:///r.html`" in text
    assert "in doubt" not in text
    doubted = as_markdown(SUMMARY.model_copy(update={"warnings": ("the finder is blind",)}))
    assert "The measuring itself is in doubt: the finder is blind" in doubted


def test_the_bill_adds_up_what_was_spent_and_what_was_saved():
    _, train, everything = cost_rows(SUMMARY)
    assert (train["stage"], train["status"], train["saved seconds"]) == ("train", "reused", "100.0")
    assert everything == {
        "stage": "all",
        "status": "done",
        "seconds": "3.2",
        "cpu seconds": "1.0",
        "gpu seconds": "0.0",
        "saved seconds": "100.0",
    }


def test_the_plan_says_what_is_there_and_what_the_rest_may_cost():
    first = plan_as_markdown(FORECAST)
    assert "| training | unknown time: no champion tells |" in first
    assert "| class images | 100, 40 of them reused, unknown time" in first
    assert "pace | unknown time" in first
    seconds = {"priors_seconds": 20.0, "training_seconds": 61.4, "evaluation_seconds": 10.0}
    known = FORECAST.model_copy(update=seconds)
    assert "| training | about 61 s |" in plan_as_markdown(known)
    assert "| in all, at the champion's pace | about 91 s |" in plan_as_markdown(known)
    done = known.model_copy(update={"trained": "c" * 64})
    assert f"| training | reused, `{'c' * 16}`, 61 s saved |" in plan_as_markdown(done)
    assert "| in all, at the champion's pace | about 30 s |" in plan_as_markdown(done)


def test_candidate_and_champion_stand_side_by_side():
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
    said = verdict("2", "promote", "tiny/1").model_copy(update={"comparisons": (compared,)})
    assert comparison_table(said).splitlines() == [
        "| metric | candidate | tiny/1 | difference | images won | p "
        "| smallest effect that would show |",
        "|---|---|---|---|---|---|---|",
        "| prompt fidelity | 0.500 | 0.250 | +0.250 | 75% | 0.010 | 0.125 |",
    ]


def test_the_gallery_has_a_row_of_photos_whatever_their_captions_and_one_per_prompt(file_store):
    photos, samples = drawn(file_store, ImageSet, 0), drawn(file_store, SampleSet, 1)
    captions = [image.model_copy(update={"prompt": image.name}) for image in photos.images]
    captioned = photos.model_copy(update={"images": tuple(captions)})
    head, _, body = gallery(file_store, captioned, samples).partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as sheet:
        assert sheet.size == (2 * SIDE, 2 * SIDE)
