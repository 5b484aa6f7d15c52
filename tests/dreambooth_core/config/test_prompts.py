"""The DreamBooth paper's prompts: counts per kind, wording and order as published."""

import os
import re
from pathlib import Path

import pytest

from dreambooth_core.config import Config, Evaluation
from dreambooth_core.config.prompts import SETS

DEFAULT_FOLDER = Path(__file__).parents[4] / "shared" / "dreambench"
PUBLISHED = Path(os.environ.get("DREAMBENCH_DIR", DEFAULT_FOLDER)) / "prompts_and_classes.txt"


def every(name):
    return [prompt for prompts in SETS[name].values() for prompt in prompts]


def test_counts_per_kind_are_the_papers():
    counts = {name: [len(prompts) for prompts in kinds.values()] for name, kinds in SETS.items()}
    assert counts == {"objects": [20, 0, 5], "live": [10, 10, 5]}
    assert [len(set(every(name))) for name in SETS] == [25, 25]


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="set DREAMBENCH_DIR to the published folder")
def test_wording_and_order_are_as_published():
    found = re.findall(r"^'(.+)'\.format\(", PUBLISHED.read_text(), re.MULTILINE)
    published = [prompt.replace("{0} {1}", "{subject}") for prompt in found]
    assert every("objects") + every("live") == published


def test_a_prompt_set_replaces_the_prompts():
    kinds = Evaluation(prompt_set="live", properties=("{subject} made of glass",)).kinds
    assert list(kinds) == every("live")
    assert kinds["a {subject} in a chef outfit"] == "accessory"
    assert kinds["a wet {subject}"] == "property"
    assert "{subject} made of glass" in Evaluation(properties=("{subject} made of glass",)).kinds


def test_every_published_prompt_can_be_filled():
    for name in SETS:
        config = Config.model_validate(
            {
                "name": "x",
                "subject": {"images": "x", "class_noun": "dog"},
                "evaluation": {"prompt_set": name},
            }
        )
        filled = [config.subject.fill(prompt) for prompt in config.evaluation.kinds]
        assert filled[0] == "a sks dog in the jungle"
        assert len(set(filled)) == 25
