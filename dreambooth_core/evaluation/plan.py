"""Evaluation plan: prompts, seeds, sampler, resolution and encoders, hashed together.

Seeds follow from `evaluation.seed`, the seed set and the prompt, not from a run's seed, so that models
are comparable image by image. Each prompt has seeds of its own, so that one noise does not affect all
prompts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dreambooth_core.config import Config, Kind, Subject
from dreambooth_core.config.inputs import without_identifier
from dreambooth_core.diffusion.sampling import Request, seeds_of
from dreambooth_core.digests import digest_json
from dreambooth_core.metrics import catalogue
from dreambooth_core.randomness import seed_for
from dreambooth_core.storage.records import ImageSet, SeedSet
from dreambooth_core.vision.crops import MARGIN, detector_digest

MAX_CONTROL_IMAGES = 4
"""Images of the control class for the sanity checks."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Settings shared by all comparable models; tuples have one entry per image."""

    templates: tuple[str, ...]
    """Prompts x seeds, prompt by prompt."""
    kinds: tuple[Kind, ...]
    seeds: tuple[int, ...]
    class_template: str
    class_seeds: tuple[int, ...]
    ids: dict[str, str]
    """Metric -> its name with encoder, preprocessing and view."""
    digest: str

    def requests(self, subject: Subject) -> list[Request]:
        """Prompts with the subject's identifier, and seeds."""
        pairs = zip(self.templates, self.seeds, strict=True)
        return [(subject.fill(template), seed) for template, seed in pairs]

    def base_requests(self, subject: Subject) -> list[Request]:
        """Prompts without the identifier token, for the base model."""
        return list(zip(self.texts(subject), self.seeds, strict=True))

    def class_requests(self, subject: Subject) -> list[Request]:
        return [(subject.fill(self.class_template), seed) for seed in self.class_seeds]

    def control_requests(self, noun: str) -> list[Request]:
        """Prompts of the control class, with seeds of the class images."""
        return [(f"a photo of a {noun}", seed) for seed in self.class_seeds[:MAX_CONTROL_IMAGES]]

    def texts(self, subject: Subject) -> tuple[str, ...]:
        """The prompts without the identifier token, as encoded by CLIP."""
        return tuple(without_identifier(subject, template) for template in self.templates)


def plan_of(config: Config, instance: ImageSet, seed_set: SeedSet, round: int) -> EvaluationPlan:
    """The plan of one seed set; each further round doubles the seeds, keeping the first ones."""
    rules, template = config.evaluation, config.subject.class_prompt
    times = 2 ** (round - 1)
    pairs = [pair for pair in rules.kinds.items() for _ in range(rules.seeds * times)]
    seeds = [
        seed
        for prompt in rules.kinds
        for seed in seeds_of(config, prompt, rules.seeds * times, seed_set)
    ]
    class_seeds = [
        seed_for(rules.seed, f"evaluate class {seed_set}", index)
        for index in range(rules.class_images * times)
    ]
    ids = ids_of(config)
    decisive = {
        "images": [(*pair, seed) for pair, seed in zip(pairs, seeds, strict=True)],
        "classes": [template, class_seeds],
        "sampler": config.sampler,
        "resolution": config.model.resolution,
        "choices": rules.choices,
        "photos": instance.digest,
        "metrics": ids,
    }
    return EvaluationPlan(
        templates=tuple(prompt for prompt, _ in pairs),
        kinds=tuple(kind for _, kind in pairs),
        seeds=tuple(seeds),
        class_template=template,
        class_seeds=tuple(class_seeds),
        ids=ids,
        digest=digest_json(decisive),
    )


def control_class(config: Config) -> str:
    """The first of `evaluation.control_classes` that is no subject's class noun; empty if none."""
    own = {subject.class_noun for subject in config.subjects}
    return next((noun for noun in config.evaluation.control_classes if noun not in own), "")


def options_of(config: Config, template: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Alternatives of a prompt, for each group of `evaluation.choices` with a phrase in it.

    Yields the prompt with each of the group's phrases, without the identifier token, and the index
    of the prompt's own phrase.
    """
    for phrases in config.evaluation.choices:
        held = [phrase for phrase in phrases if _as_words(phrase).search(template)]
        if held:
            own = max(held, key=len)  # "party hat" contains "hat"
            before, after = _as_words(own).split(template, maxsplit=1)
            texts = tuple(
                without_identifier(config.subject, before + phrase + after) for phrase in phrases
            )
            yield texts, phrases.index(own)


def ids_of(config: Config) -> dict[str, str]:
    """Metric -> `name@encoder@preprocessing@view`; metrics without their model are left out."""
    from dreambooth_core.vision.encoders import encoder_digest

    rules = config.evaluation
    encoders = {
        "clip": encoder_digest(rules.clip, rules.clip_revision)[:12],
        "identity": encoder_digest(rules.identity, rules.identity_revision)[:12],
    }
    views = {
        "whole": "whole",
        "crop": f"crop-{MARGIN:g}-{(detector_digest(rules.detector, config.vision) or 'none')[:12]}",
    }
    found = {}
    for name, metric in catalogue().items():
        own = metric.model(config) if metric.model else ""
        if own is None:
            continue
        parts = [name]
        if metric.embedding is not None:
            encoder, view = metric.embedding
            parts += [encoders[encoder], rules.preprocessing, views[view]]
        found[name] = "@".join([*parts, own] if own else parts)
    return found


def _as_words(phrase: str) -> re.Pattern[str]:
    """The phrase as whole words."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
