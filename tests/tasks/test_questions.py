"""Tasks with a vision-language model on a temporary Prefect server: captions, prompts, questions."""

import json

import pytest

from dreambooth_core.config import Config
from dreambooth_core.config.subject_card import SubjectCard
from dreambooth_core.evaluation.prompt_repair import RepairLimits
from dreambooth_core.registry.listing import VersionDetails
from dreambooth_core.storage.records import ModelVersion
from tasks.artifacts import publish_findings
from tasks.data import caption_instance_images, collect_instance_images
from tasks.questions import ask_run, repair_prompts, write_prompts
from tests.chat_server import Reply, serving
from tests.moved_weights import weights_of
from tests.registered_by_hand import stored_inputs

DOCUMENT = {
    "reason": "r",
    "scene": "on a table",
    "phrases": [],
    "answer": "All is well.",
    "prompts": ["a {subject} at sea"],
    "unfit": [],
    "live": False,
    "requirements": ["the sea"],
    "checks": [{"requirement": 1, "reason": "waves", "visible": True}],
}
"""One answer that fits the schemas of all questions but those about a run's prompts."""


def answer(number, request):
    about_a_run = "Question: " in str(request["messages"][-1]["content"])
    return Reply(json.dumps({**DOCUMENT, "prompts": ["P1"]} if about_a_run else DOCUMENT))


@pytest.mark.slow
def test_tasks_with_a_vision_language_model(tiny_config, tiny_base, file_store):
    from prefect import flow
    from prefect.artifacts import Artifact
    from prefect.testing.utilities import prefect_test_harness

    with serving(answer) as server:
        vision = {"backend": "openai_compatible", "url": server.url, "model": "m", "attempts": 1}
        changes = {"vision": vision, "dataset": {"auto_captions": True}}
        config = Config.model_validate({**tiny_config.model_dump(), **changes})
        inputs = stored_inputs(file_store)
        details = VersionDetails(
            config=config,
            version=ModelVersion(name="tiny", version="1", aliases=(), run_id="0"),
            instance=inputs.instance,
            weights=weights_of(tiny_base, file_store, 0.01),
            scores=inputs.scores,
            verdict=None,
            champion=None,
            report=None,
        )

        @flow
        def all_flow():
            photos, _ = collect_instance_images(config)
            captioned, reused = caption_instance_images(config, photos)
            publish_findings(config, captioned.validation.findings, 3)
            card = SubjectCard(class_noun="robot")
            return (
                (captioned, reused),
                write_prompts(config, card, 1),
                ask_run(details, ["Did it work?"]),
                repair_prompts(details, ["{subject} at sea"], RepairLimits(seeds=1)),
            )

        with prefect_test_harness(server_startup_timeout=240):
            (captioned, reused), written, answers, repairs = all_flow()
            artifact = Artifact.get("dataset")
    prompts = {image.prompt for image in captioned.images.images}
    assert (prompts, reused) == ({"a photo of sks robot, on a table"}, False)
    assert written.templates == ("a {subject} at sea",)
    assert [(one.answer, one.prompts[0].label) for one in answers] == [("All is well.", "P1")]
    assert [one.passed for one in repairs] == [True]
    assert artifact.description.endswith("3 questions to m were not answered")
