from dreambooth_core.records import Stage
from dreambooth_core.summary import Model, Summary
from tasks.papers import as_markdown


def test_the_note_in_prefect_names_numbers_stages_and_the_report():
    summary = Summary(
        run_id="tiny-1",
        status="done",
        stages={"train": Stage(status="reused", seconds=1.25)},
        metrics={"clip_i": 0.75},
        base_metrics={"clip_i": 0.5},
        model=Model(name="tiny", version="1", aliases=()),
        artifacts={"report": "file:///r.html"},
        digests={"weights": None},
    )
    text = as_markdown(summary)
    assert "| clip_i | 0.750 | 0.500 |" in text
    assert "| train | reused | 1.2 |" in text
    assert "(file:///r.html)" in text
