"""Measures of the small vision-language model: `python -m examples.small_world.language_model.check`.

The model is asked through the project's interface, as a config with `backend: local_transformers` does.
Prints shares with 95 % Wilson intervals, and the mean overlap of boxes with a normal interval.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from scipy.stats import binomtest

from dreambooth_core.config import Vision
from dreambooth_core.data.captioning import MAX_WORDS, OWN, SCENE, Scene
from dreambooth_core.errors import Unanswered
from dreambooth_core.vision.language.answers import Answer
from dreambooth_core.vision.language.boxes import Box
from dreambooth_core.vision.language.messages import Picture as Sent
from dreambooth_core.vision.language.messages import question, quoted
from dreambooth_core.vision.language.model import VisionLanguageModel
from dreambooth_core.vision_checks import questions
from dreambooth_core.vision_checks.capabilities import overlap
from examples.small_world.language_model.pictures import Picture, another, card, pair, photo
from examples.small_world.language_model.questions import (
    DESCRIBE,
    Description,
    requirement_of,
    worn,
)
from examples.small_world.render import SIZE
from examples.small_world.world import BACKGROUNDS

HERE = Path(__file__).parent
T = TypeVar("T")
Z = 1.96


class Measures:
    """Right and wrong answers per measure, and how many requests were valid at once."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = {}
        self.overlaps: list[float] = []

    def ask(self, request: Callable[[], Answer[T]]) -> T | None:
        """The answer; None without a valid one."""
        try:
            answer = request()
        except Unanswered:
            self.add("valid at once", False)
            self.add("valid", False)
            return None
        self.add("valid at once", answer.requests == 1)
        self.add("valid", True)
        return answer.value

    def add(self, measure: str, right: bool) -> None:
        self.right.setdefault(measure, []).append(right)

    def table(self) -> dict[str, dict[str, float]]:
        """Measure -> value, lower and upper end of its 95 % interval, number."""
        rows = {}
        for name, results in self.right.items():
            found = binomtest(sum(results), len(results))
            ends = found.proportion_ci(method="wilson")
            rows[name] = _row(found.statistic, ends.low, ends.high, len(results))
        if self.overlaps:
            mean = float(np.mean(self.overlaps))
            half = Z * float(np.std(self.overlaps, ddof=1)) / len(self.overlaps) ** 0.5
            rows["box overlap"] = _row(mean, mean - half, mean + half, len(self.overlaps))
        return rows


def measure(model: VisionLanguageModel, each: int) -> dict[str, dict[str, float]]:
    """All measures, on `each` held-out images or pairs of them."""
    measures = Measures()
    for index in range(each):
        rng = random.Random(f"check glm/{index}")
        shown = photo(rng)
        _describe(measures, model, shown)
        _scene(measures, model, shown)
        _box(measures, model, shown)
        _requirement(measures, model, rng, shown, "requirements")
        _same_subject(measures, model, rng, shown)
        _requirement(measures, model, rng, pair(rng), "spatial")
        _card(measures, model, card(rng))
    return measures.table()


def _describe(measures: Measures, model: VisionLanguageModel, shown: Picture) -> None:
    found = measures.ask(lambda: model.ask([question(DESCRIBE, [_image(shown)])], Description))
    identity, scene = shown.subjects[0].identity, shown.scene
    assert scene is not None
    truth = {
        "class_noun": identity.class_noun,
        "colour": identity.color.name,
        "pattern": identity.pattern,
        "accessory": worn(scene, "") or "none",
        "background": BACKGROUNDS[scene.background],
    }
    for name, true in truth.items():
        measures.add(name, found is not None and getattr(found, name) == true)


def _scene(measures: Measures, model: VisionLanguageModel, shown: Picture) -> None:
    noun = shown.subjects[0].identity.class_noun
    text = SCENE.format(noun=noun, own=OWN, words=MAX_WORDS)
    found = measures.ask(lambda: model.ask([question(text, [_image(shown)])], Scene))
    assert shown.scene is not None
    place = BACKGROUNDS[shown.scene.background]
    measures.add("place in caption", found is not None and found.scene.startswith(place))


def _box(measures: Measures, model: VisionLanguageModel, shown: Picture) -> None:
    subject = shown.subjects[0]
    found = measures.ask(lambda: model.locate(_image(shown), subject.identity.class_noun))
    left, top, right, bottom = (edge / SIZE for edge in subject.box)
    true = Box(left, top, right, bottom)
    measures.overlaps.append(overlap(found[0], true) if found else 0.0)


def _requirement(
    measures: Measures, model: VisionLanguageModel, rng: random.Random, shown: Picture, name: str
) -> None:
    """By the probability of yes, averaged over both orders."""
    true = rng.random() < 0.5
    requirement, prompt = requirement_of(rng, shown, true)
    text = questions.CHECKLIST.format(prompt=prompt, requirement=requirement)
    chance = 0.0
    for order in (("yes", "no"), ("no", "yes")):
        choice = model.choose([question(text, [_image(shown)])], order)
        assert choice is not None
        chance += choice.probabilities["yes"] / 2
    measures.add(name, (chance > 0.5) == true)


def _same_subject(
    measures: Measures, model: VisionLanguageModel, rng: random.Random, first: Picture
) -> None:
    identity = first.subjects[0].identity
    same = rng.random() < 0.5
    last = photo(rng, identity if same else another(rng, identity))
    text = questions.LATER.format(noun=identity.class_noun)
    asked = [question(text, [_image(first), _image(last)])]
    found = measures.ask(lambda: model.ask(asked, questions.FrameVerdict))
    measures.add("same subject", found is not None and found.same_subject == same)


def _card(measures: Measures, model: VisionLanguageModel, shown: Picture) -> None:
    printed = shown.card
    assert printed is not None
    text = questions.CARD.format(pages=quoted("card.png"), text="")
    asked = [question(text, [Sent(_image(shown), "Document 1:")])]
    found = measures.ask(lambda: model.ask(asked, questions.CardAnswer))
    read = None if found is None else (found.card.class_noun, *found.card.colours)
    measures.add("card", read == (printed.class_noun, printed.color.name))


def _image(shown: Picture) -> Image.Image:
    return Image.fromarray(shown.pixels)


def _row(value: float, low: float, high: float, count: int) -> dict[str, float]:
    return {"value": round(value, 3), "low": round(low, 3), "high": round(high, 3), "n": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent / "glm")
    parser.add_argument("--each", type=int, default=100, help="images per measure")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    config = Vision(backend="local_transformers", model=str(options.model), max_tokens=128)
    with VisionLanguageModel(config) as model:
        found: dict[str, Any] = measure(model, options.each)
    for name, row in found.items():
        print(f"{name:18} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n']}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
