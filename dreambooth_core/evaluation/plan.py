"""What models are measured on: prompts, seeds, sampler, size and who looks, hashed as one plan.

The seeds follow from `evaluation.seed`, the seed set and the prompt, never from a run's seed: all models
are drawn alike and can be compared image by image. Each prompt has seeds of its own, so that no
lucky noise moves all prompts together.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dreambooth_core.config import Config, Kind, Subject
from dreambooth_core.config.inputs import plain
from dreambooth_core.diffusion.sampling import Request, seeds_of
from dreambooth_core.digests import digest_json
from dreambooth_core.metrics import Metric, catalogue
from dreambooth_core.randomness import seed_for
from dreambooth_core.storage.records import ImageSet, SeedSet
from dreambooth_core.vision.crops import MARGIN, detector_digest

STRANGERS = 4
"""Images of another class, at the most, that the self-check holds against the photos."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that is the same for all models that are measured alike; one entry per image."""

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
        """The prompts as this subject's model is to read them."""
        pairs = zip(self.templates, self.seeds, strict=True)
        return [(subject.fill(template), seed) for template, seed in pairs]

    def base_requests(self, subject: Subject) -> list[Request]:
        """The same without the identifier token, which means nothing to the untouched base."""
        return list(zip(self.texts(subject), self.seeds, strict=True))

    def class_requests(self, subject: Subject) -> list[Request]:
        return [(subject.fill(self.class_template), seed) for seed in self.class_seeds]

    def stranger_requests(self, noun: str) -> list[Request]:
        """What nobody would take for the subject: another class, by the seeds of the class images."""
        return [(f"a photo of a {noun}", seed) for seed in self.class_seeds[:STRANGERS]]

    def texts(self, subject: Subject) -> tuple[str, ...]:
        """The prompts as CLIP is to read them."""
        return tuple(plain(subject, template) for template in self.templates)


def plan_of(config: Config, instance: ImageSet, seed_set: SeedSet, round: int) -> EvaluationPlan:
    """The plan of one seed set; each further round doubles the seeds, the first of which stay."""
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
    """The class noun that the self-check draws; empty when all that may be drawn are the subject's own."""
    own = {subject.class_noun for subject in config.subjects}
    return next((noun for noun in config.evaluation.control_classes if noun not in own), "")


def options_of(config: Config, template: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """For each group of `evaluation.choices` with a phrase in the prompt: the prompt with each phrase
    of the group in its place, without the identifier token, and which one of them is its own.
    """
    for phrases in config.evaluation.choices:
        held = [phrase for phrase in phrases if _where(phrase).search(template)]
        if held:
            own = max(held, key=len)  # "party hat" holds "hat" as well
            before, after = _where(own).split(template, maxsplit=1)
            texts = tuple(plain(config.subject, before + phrase + after) for phrase in phrases)
            yield texts, phrases.index(own)


def ids_of(config: Config) -> dict[str, str]:
    """Metric -> `name@encoder@preprocessing@view`; metrics without their model are left out."""
    from dreambooth_core.vision.encoders import encoder_digest

    rules = config.evaluation
    eyes = {
        "clip": encoder_digest(rules.clip, rules.clip_revision)[:12],
        "identity": encoder_digest(rules.identity, rules.identity_revision)[:12],
    }
    finder = (detector_digest(rules.detector) or "nobody")[:12]
    found = {}
    for name, metric in catalogue().items():
        own = metric.model(config) if metric.model else ""
        if own is not None:
            parts = [name, *_seen(metric, eyes, rules.preprocessing, finder), own]
            found[name] = "@".join(part for part in parts if part)
    return found


def _seen(metric: Metric, eyes: dict[str, str], preprocessing: str, finder: str) -> Sequence[str]:
    if metric.sees is None:
        return ()
    eye, view = metric.sees
    where = view if view == "whole" else f"{view}-{MARGIN:g}-{finder}"
    return eyes[eye], preprocessing, where


def _where(phrase: str) -> re.Pattern[str]:
    """The phrase as whole words."""
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)")
