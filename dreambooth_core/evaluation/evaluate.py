"""Scores: the tuned model and the untouched base on the same prompts and seeds, by every metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dreambooth_core.config import Config
from dreambooth_core.console import Progress
from dreambooth_core.diffusion.parallel_sampling import sampling_settings
from dreambooth_core.diffusion.sampling import Request, images_prefix, sample_set
from dreambooth_core.digests import digest_json
from dreambooth_core.evaluation.plan import EvaluationPlan, control_class, options_of, plan_of
from dreambooth_core.evaluation.sanity_checks import sanity_check
from dreambooth_core.metrics import (
    Choice,
    Evidence,
    ImageEmbeddings,
    Sight,
    Values,
    catalogue,
    measure_all,
    measure_photos,
    range_of,
)
from dreambooth_core.metrics.embeddings import ImageEmbedder, _members
from dreambooth_core.metrics.measures import memorisation
from dreambooth_core.metrics.statistics import estimate, of_base
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.records import (
    Estimate,
    Image,
    ImageScores,
    ImageSet,
    SampleSet,
    Scores,
    ScoreTable,
    SeedSet,
    Weights,
)
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store

ALL_SIGHTS: tuple[Sight, ...] = (
    ("identity", "whole"),
    ("clip", "whole"),
    ("identity", "crop"),
    ("clip", "crop"),
)
OF_CLASSES: tuple[Sight, ...] = (("identity", "whole"), ("identity", "crop"))

Hand = Callable[[Sequence[Request], str], SampleSet]
"""Draws what is asked of one model, under a word for people."""


class EvaluatedImages(NamedTuple):
    """What one model made by a plan."""

    samples: SampleSet
    classes: SampleSet
    strangers: SampleSet | None = None
    """Of another class, for the self-check; the base's alone."""

    @property
    def digests(self) -> tuple[str, str]:
        """Of what the scores are about."""
        return self.samples.digest, self.classes.digest


def evaluate(
    config: Config,
    store: Store,
    instance: ImageSet,
    weights: Weights,
    progress: Progress | None = None,
    *,
    by: Config | None = None,
    seed_set: SeedSet = "confirm",
    round: int = 1,
) -> tuple[Scores, bool]:
    """Scores of `weights` against `instance`, and whether they were there already.

    Each further round doubles the seeds per prompt and the class images; the first ones stay, and
    are found again. The base's images do not depend on the weights: a second subject with the same
    prompts finds them. `config` says how the weights draw and what they call their subject, `by`
    all else: the plan, the base, the class and who looks. It is `config` itself when left out;
    models that are to be compared are measured by one. Scores for which a judge
    left something unanswered are made anew, with its answers to what is asked again. Raises
    `ModelError` when an encoder or the finder is missing.
    """
    by = by or config
    config = drawn_like(config, by)
    plan = plan_of(by, instance, seed_set, round)
    inputs = {
        "plan": plan.digest,
        "images": images_prefix(config, weights),
        "base_images": images_prefix(by, None),
        "requests": plan.requests(config.subject),
        "base_requests": plan.base_requests(by.subject),
        "classes": plan.class_requests(by.subject),
        "nouns": [subject.class_noun for subject in by.subjects],
        "stranger": control_class(by),
    }

    def make(key: str) -> Scores:
        tuned = _draw_tuned(_hand(config, store, weights, progress), plan, config, by)
        base = _draw_base(_hand(by, store, None, progress), plan, by)
        seen = _look(by, store, plan, instance, (tuned, base), progress)
        return _scored(
            store, f"{store.uri}/scores/{key}/result.json", plan, seed_set, (tuned, base), seen
        )

    return cached_stage(store, "scores", inputs, Scores, make, lambda scores: not scores.unanswered)


def _scored(
    store: Store,
    uri: str,
    plan: EvaluationPlan,
    seed_set: SeedSet,
    drawn: tuple[EvaluatedImages, EvaluatedImages],
    seen: tuple[Evidence, Evidence, tuple[str, ...]],
) -> Scores:
    """What was seen of the tuned model's images and the base's, as numbers."""
    (tuned, base), (ours, theirs, doubts) = drawn, seen
    rows = _rows(plan, drawn, ours, theirs)
    estimates, reference = _estimates(rows), measure_photos(ours)
    values = {
        "plan": plan.digest,
        "seed_set": seed_set,
        "ids": {name: plan.ids.get(name, name) for name in estimates},
        "metrics": {name: found.value for name, found in estimates.items()},
        "base_metrics": {name: one.value for name, one in _estimates(of_base(rows)).items()},
        "reference": {name: float(np.nanmean(found)) for name, found in reference.items()},
        "estimates": estimates,
        "table": put_blob(store, ScoreTable(rows=rows).model_dump_json().encode()),
        "warnings": doubts,
        "unanswered": _unanswered(rows),
    }
    return Scores(
        uri=uri,
        digest=digest_json([values, *tuned.digests, *base.digests]),
        samples=tuned.samples,
        class_samples=tuned.classes,
        base_samples=base.samples,
        base_class_samples=base.classes,
        **values,
    )


def drawn_like(config: Config, by: Config) -> Config:
    """The config by which a model's weights are drawn as those of `by` are, and in the same place.

    Base, method and what it calls its subject stay its own; sampler, size and places are those of `by`.
    """
    places = ("compute", "storage", "tracking", "paths")
    size = {"resolution": by.model.resolution}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=size),
            **{name: getattr(by, name) for name in ("sampler", *places)},
        }
    )


def _draw_tuned(hand: Hand, plan: EvaluationPlan, config: Config, by: Config) -> EvaluatedImages:
    """Prompts with the weights' own name for the subject, and the class as `by` calls it."""
    return EvaluatedImages(
        hand(plan.requests(config.subject), "prompts"),
        hand(plan.class_requests(by.subject), "class images"),
    )


def _draw_base(hand: Hand, plan: EvaluationPlan, by: Config) -> EvaluatedImages:
    noun = control_class(by)
    return EvaluatedImages(
        hand(plan.base_requests(by.subject), "prompts"),
        hand(plan.class_requests(by.subject), "class images"),
        hand(plan.stranger_requests(noun), "another class") if noun else None,
    )


def _hand(config: Config, store: Store, weights: Weights | None, progress: Progress | None) -> Hand:
    """Draws images of one model, which is loaded once, and only if one is missing."""
    prefix, drawing = images_prefix(config, weights), sampling_settings(config, store, weights)
    who = "tuned" if weights else "base"

    def draw(requests: Sequence[Request], what: str) -> SampleSet:
        told = _labelled(progress, f"{who}: {what}")
        return sample_set(store, prefix, drawing, requests, told)

    return draw


def _look(
    config: Config,
    store: Store,
    plan: EvaluationPlan,
    instance: ImageSet,
    drawn: tuple[EvaluatedImages, EvaluatedImages],
    progress: Progress | None,
) -> tuple[Evidence, Evidence, tuple[str, ...]]:
    """What the metrics see of the tuned model and of the base, and what is suspicious about it."""
    viewer, noun = ImageEmbedder(config, store), config.subject.class_noun
    told = _labelled(progress, "looking") or (lambda done, total, label: None)
    sets: list[tuple[Sequence[Image], tuple[Sight, ...]]] = [
        (drawn[0].samples.images, ALL_SIGHTS),
        (drawn[0].classes.images, OF_CLASSES),
        (drawn[1].samples.images, ALL_SIGHTS),
        (drawn[1].classes.images, OF_CLASSES),
        (_members(instance, 0), ALL_SIGHTS),
    ]
    seen: list[ImageEmbeddings] = []
    for images, sights in sets:
        told(len(seen), len(sets), "")
        seen.append(viewer.see(images, noun, sights))
    told(len(sets), len(sets), "")
    texts = plan.texts(config.subject)
    ours = Evidence(
        generated=seen[0],
        classes=seen[1],
        base=seen[2],
        base_classes=seen[3],
        photos=seen[4],
        prompts=plan.templates,
        kinds=plan.kinds,
        texts=texts,
        text_rows=viewer.read(texts),
        choices=_choices(config, viewer),
        config=config,
        store=store,
    )
    theirs = replace(ours, generated=seen[2], classes=seen[3])
    others, kin = _others(viewer, instance, drawn[1].strangers)
    return ours, theirs, sanity_check(ours, others, kin)


def _others(
    viewer: ImageEmbedder, instance: ImageSet, strangers: SampleSet | None
) -> tuple[Mapping[str, ImageEmbeddings], Mapping[str, ImageEmbeddings]]:
    """What is not the main subject: of another class, drawn by the base or photographed; and of its own."""
    main, *more = viewer.config.subjects
    others, kin = dict[str, ImageEmbeddings](), dict[str, ImageEmbeddings]()
    for place, subject in enumerate(more, 1):
        seen = viewer.see(_members(instance, place), subject.class_noun, OF_CLASSES)
        among = kin if subject.class_noun == main.class_noun else others
        among[f"the photos of {subject.fill('{subject}')}"] = seen
    if strangers is not None:
        noun = control_class(viewer.config)
        others[f"the base's {noun} images"] = viewer.see(strangers.images, noun, OF_CLASSES)
    return others, kin


def _choices(config: Config, viewer: ImageEmbedder) -> Mapping[str, tuple[Choice, ...]]:
    asked = {prompt: tuple(options_of(config, prompt)) for prompt in config.evaluation.kinds}
    return {
        prompt: tuple(Choice(viewer.read(texts), right) for texts, right in options)
        for prompt, options in asked.items()
        if options
    }


def _rows(
    plan: EvaluationPlan,
    drawn: tuple[EvaluatedImages, EvaluatedImages],
    ours: Evidence,
    theirs: Evidence,
) -> tuple[ImageScores, ...]:
    """Prompts x seeds, then class images."""
    tuned, base = drawn
    found, of_base = measure_all(ours), measure_all(theirs)
    rows = [
        ImageScores(
            prompt=plan.templates[place],
            kind=plan.kinds[place],
            seed=seed,
            image=tuned.samples.images[place].blob.sha256,
            base_image=base.samples.images[place].blob.sha256,
            scores=_said(found, "prompts", place),
            base_scores=_said(of_base, "prompts", place),
            resembles=_copied(ours, found, place),
        )
        for place, seed in enumerate(plan.seeds)
    ]
    rows += [
        ImageScores(
            prompt=plan.class_template,
            kind="class",
            seed=seed,
            image=tuned.classes.images[place].blob.sha256,
            base_image=base.classes.images[place].blob.sha256,
            scores=_said(found, "class", place),
            base_scores=_said(of_base, "class", place),
        )
        for place, seed in enumerate(plan.class_seeds)
    ]
    return tuple(rows)


def _copied(ours: Evidence, found: Mapping[str, Values], place: int) -> str | None:
    """Digest of the photo that an image is a near copy of."""
    values = found.get("memorisation")
    if values is None or values[place] != 1:
        return None
    return ours.photos.digests[memorisation.copied_photo(ours, place)]


def _said(found: Mapping[str, Values], of: str, place: int) -> dict[str, float]:
    """What the metrics of prompts, or of the class, say of one image."""
    return {
        name: float(values[place])
        for name, values in found.items()
        if catalogue()[name].of == of and not np.isnan(values[place])
    }


def _unanswered(rows: Sequence[ImageScores]) -> int:
    """How many answers are missing of those who are asked (`Metric.asks`), of both models' images."""
    known = {name for row in rows for name in row.scores}
    asked = [metric for name, metric in catalogue().items() if metric.asks and name in known]
    return sum(
        metric.name not in found
        for metric in asked
        for row in rows
        if row.kind != "class" and row.kind not in metric.skips
        for found in (row.scores, row.base_scores)
    )


def _estimates(rows: Sequence[ImageScores]) -> dict[str, Estimate]:
    names = sorted({name for row in rows for name in row.scores})
    return {name: estimate(name, rows, bounds=range_of(name)) for name in names}


def _labelled(progress: Progress | None, label: str) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    return lambda done, total, _: progress(done, total, label)
