"""What Prefect shows of a sweep, of a clean-up, and of the question to a person."""

from dreambooth_core.storage.garbage_collection import SweepResult
from dreambooth_core.training.sweep import TrialScore
from tasks import garbage_collection, sweep


def point(steps: int, subject: float) -> TrialScore:
    return TrialScore(
        settings={"train.steps": steps},
        subject_fidelity=subject,
        prompt_fidelity=0.5,
        base_prompt_fidelity=0.5,
        seconds=steps / 10,
    )


def test_a_sweep_is_a_table_with_its_front_and_its_choice():
    text = sweep.as_markdown([point(100, 0.7), point(200, 0.6), point(300, 0.8)], best=2)
    assert (
        "| train.steps | subject fidelity | prompt fidelity | seconds | on the front | chosen |"
        in text
    )
    assert "| 100 | 0.700 | 0.500 | 10 | yes |  |" in text
    assert "| 200 | 0.600 | 0.500 | 20 |  |  |" in text
    assert "| 300 | 0.800 | 0.500 | 30 | yes | yes |" in text


def test_a_janitor_that_only_looked_says_so():
    swept = SweepResult(
        deleted=False, objects=2, bytes=1500, kinds={"blobs": 1500}, kept_objects=1, kept_bytes=7
    )
    text = garbage_collection.as_markdown(swept)
    assert "# 1,500 bytes in 2 objects could be deleted: nothing was, as `delete` is off" in text
    assert "| blobs | 1,500 |" in text
    assert "deleted\n" in garbage_collection.as_markdown(swept.model_copy(update={"deleted": True}))
