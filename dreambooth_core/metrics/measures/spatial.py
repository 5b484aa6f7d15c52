"""Spatial relations and counts in the prompt, checked by the boxes of a vision-language model.

The model only locates nouns; whether a relation or a count holds is computed (see `metrics/spatial.py`).
"""

import numpy as np

from dreambooth_core.config import Config, Kind
from dreambooth_core.config.inputs import without_identifier
from dreambooth_core.config.vision_profiles import model_profile
from dreambooth_core.errors import Unanswered
from dreambooth_core.metrics import Evidence, Values, vlm_judge
from dreambooth_core.metrics.spatial import RULES_VERSION, holds, statements
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.vision.language.boxes import Box
from dreambooth_core.vision.language.concurrency import answers_or_failures
from dreambooth_core.vision.language.model import VisionLanguageModel

TITLE = "placement and count"
ABOUT = "share of the prompt's spatial relations and counts that the boxes satisfy, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = True
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING = None
REMOTE = True
GATES = "calibrated"

Located = dict[tuple[int, str], tuple[Box, ...] | Unanswered]
"""Image, noun -> its boxes."""


def measure(evidence: Evidence) -> Values | None:
    """Share of satisfied statements of each image's prompt, [0, 1].

    nan without a statement in the prompt, and if one of its nouns was not answered. Raises
    `StageFailed` when no request was answered.
    """
    config, store = evidence.config, evidence.store
    if config is None or config.judge is None or store is None or model(config) is None:
        return None
    noun, images = config.subject.class_noun, evidence.generated.images
    stated = [statements(text, noun) for text in evidence.texts]
    wanted = sorted(
        {(index, one) for index, found in enumerate(stated) for each in found for one in each.nouns}
    )
    with VisionLanguageModel(config.judge, StoredAnswers(store)) as judge:
        answers = answers_or_failures(
            lambda one: judge.locate(images[one[0]], one[1]).value, wanted, config.judge.at_once
        )
    vlm_judge.report_unanswered(config.judge.model, answers, "requests for boxes")
    located: Located = dict(zip(wanted, answers, strict=True))
    values = np.full(len(evidence.texts), np.nan)
    for index, found in enumerate(stated):
        boxes = {one: located[index, one] for each in found for one in each.nouns}
        known = {one: each for one, each in boxes.items() if not isinstance(each, Unanswered)}
        if found and len(known) == len(boxes):
            width, height = images[index].size
            values[index] = np.mean([holds(each, known, width / height) for each in found])
    return values


def model(config: Config) -> str | None:
    """Judge model and a digest of its settings and the rules.

    None without a judge, without a prompt that states a relation or count, and for a model whose
    coordinate style is unknown.
    """
    judge = config.judge
    if judge is None or model_profile(judge.model).boxes is None:
        return None
    if not any(applies(config, template) for template in config.evaluation.kinds):
        return None
    return vlm_judge.name_of(judge, f"locate, rules {RULES_VERSION}")


def applies(config: Config, template: str) -> bool:
    """Whether a prompt states a relation or count."""
    text = without_identifier(config.subject, template)
    return bool(statements(text, config.subject.class_noun))
