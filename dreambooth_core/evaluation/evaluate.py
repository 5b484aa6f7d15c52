"""Scores: the tuned model and the base model on the same prompts and seeds, by every metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dreambooth_core.config import Config
from dreambooth_core.console import Progress, labelled
from dreambooth_core.diffusion.parallel_sampling import sampling_settings
from dreambooth_core.diffusion.sampling import Request, images_prefix, sample_set
from dreambooth_core.digests import digest_json
from dreambooth_core.evaluation.plan import EvaluationPlan, control_class, options_of, plan_of
from dreambooth_core.evaluation.sanity_checks import noun_warnings, sanity_check
from dreambooth_core.metrics import (
    Choice,
    EmbeddingKey,
    Evidence,
    ImageEmbeddings,
    Values,
    catalogue,
    measure_all,
    measure_photos,
    measurements,
    range_of,
)
from dreambooth_core.metrics.embeddings import ImageEmbedder, images_of_subject
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

ALL_KEYS: tuple[EmbeddingKey, ...] = (
    ("identity", "whole"),
    ("clip", "whole"),
    ("identity", "crop"),
    ("clip", "crop"),
)
CLASS_KEYS: tuple[EmbeddingKey, ...] = (("identity", "whole"), ("identity", "crop"))

Sampler = Callable[[Sequence[Request], str], SampleSet]
"""Generates one model's images of some requests; the second argument is the progress label."""


class EvaluatedImages(NamedTuple):
    """Images of one model by a plan."""

    samples: SampleSet
    classes: SampleSet
    controls: SampleSet | None = None
    """Images of the control class, for the sanity checks; the base model only."""

    @property
    def digests(self) -> tuple[str, str]:
        """Of the scored image sets."""
        return self.samples.digest, self.classes.digest


def evaluate(
    config: Config,
    store: Store,
    instance: ImageSet,
    weights: Weights,
    progress: Progress | None = None,
    *,
    plan_config: Config | None = None,
    seed_set: SeedSet = "confirm",
    round: int = 1,
) -> tuple[Scores, bool]:
    """Scores of `weights` against `instance`, and whether they were stored already.

    Each further round doubles the seeds per prompt and the class images, keeping the first ones;
    stored images are reused, those of the base by every subject with the same prompts. `config` has
    the weights' base, method and identifier; `plan_config` (default: `config`) the plan, the base of
    comparison, the class, encoders and detector. Models that are compared share it. Scores with
    failed judge requests are recomputed, and only those requests repeated. Raises `ModelError` when
    an encoder or the detector is missing.
    """
    plan_config = plan_config or config
    config = with_sampling_of(config, plan_config)
    plan = plan_of(plan_config, instance, seed_set, round)
    control = control_class(plan_config)
    inputs = {
        "plan": plan.digest,
        "images": images_prefix(config, weights),
        "base_images": images_prefix(plan_config, None),
        "requests": plan.requests(config.subject),
        "base_requests": plan.base_requests(plan_config.subject),
        "classes": plan.class_requests(plan_config.subject),
        "nouns": [subject.class_noun for subject in plan_config.subjects],
        "control_class": control,
    }

    def make(key: str) -> Scores:
        classes = plan.class_requests(plan_config.subject)
        sample = _sampler(config, store, weights, progress)
        tuned = EvaluatedImages(
            sample(plan.requests(config.subject), "prompts"), sample(classes, "class")
        )
        sample = _sampler(plan_config, store, None, progress)
        base = EvaluatedImages(
            sample(plan.base_requests(plan_config.subject), "prompts"),
            sample(classes, "class"),
            sample(plan.control_requests(control), "control class") if control else None,
        )
        evidence = _evidence(plan_config, store, plan, instance, (tuned, base), progress)
        return _scored(
            store, f"{store.uri}/scores/{key}/result.json", plan, seed_set, (tuned, base), evidence
        )

    return cached_stage(store, "scores", inputs, Scores, make, lambda scores: not scores.unanswered)


def _scored(
    store: Store,
    uri: str,
    plan: EvaluationPlan,
    seed_set: SeedSet,
    images: tuple[EvaluatedImages, EvaluatedImages],
    evidence: tuple[Evidence, Evidence, tuple[str, ...], int],
) -> Scores:
    """Metrics, intervals and warnings of the tuned model's and the base's images."""
    (tuned, base), (ours, theirs, warnings, unlocated) = images, evidence
    rows = _rows(plan, images, ours, theirs)
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
        "warnings": warnings,
        "unanswered": _unanswered(rows, ours.config) + unlocated,
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


def with_sampling_of(config: Config, other: Config) -> Config:
    """`config` with sampler, resolution, compute, storage, tracking and paths of `other`.

    Base, method and subject stay: a model is sampled exactly as the one it is compared with.
    """
    resolution = {"resolution": other.model.resolution}
    sections = ("sampler", "compute", "storage", "tracking", "paths")
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=resolution),
            **{name: getattr(other, name) for name in sections},
        }
    )


def _sampler(
    config: Config, store: Store, weights: Weights | None, progress: Progress | None
) -> Sampler:
    """The model is loaded once, and only if an image is missing."""
    prefix = images_prefix(config, weights)
    settings = sampling_settings(config, store, weights)
    model = "tuned" if weights else "base"

    def sample(requests: Sequence[Request], what: str) -> SampleSet:
        return sample_set(store, prefix, settings, requests, labelled(progress, f"{model}, {what}"))

    return sample


def _evidence(
    config: Config,
    store: Store,
    plan: EvaluationPlan,
    instance: ImageSet,
    made: tuple[EvaluatedImages, EvaluatedImages],
    progress: Progress | None,
) -> tuple[Evidence, Evidence, tuple[str, ...], int]:
    """Evidence of the tuned model and of the base, the sanity checks' warnings, and the number of
    images without a region because a request of the detector failed."""
    embedder, noun = ImageEmbedder(config, store), config.subject.class_noun
    report = labelled(progress, "embeddings") or (lambda done, total, label: None)
    sets: list[tuple[Sequence[Image], tuple[EmbeddingKey, ...]]] = [
        (made[0].samples.images, ALL_KEYS),
        (made[0].classes.images, CLASS_KEYS),
        (made[1].samples.images, ALL_KEYS),
        (made[1].classes.images, CLASS_KEYS),
        (images_of_subject(instance, 0), ALL_KEYS),
    ]
    embedded: list[ImageEmbeddings] = []
    for images, keys in sets:
        report(len(embedded), len(sets), "")
        embedded.append(embedder.embed(images, noun, keys))
    report(len(sets), len(sets), "")
    texts = plan.texts(config.subject)
    ours = Evidence(
        generated=embedded[0],
        classes=embedded[1],
        base=embedded[2],
        base_classes=embedded[3],
        photos=embedded[4],
        prompts=plan.templates,
        kinds=plan.kinds,
        texts=texts,
        text_rows=embedder.embed_texts(texts),
        choices=_choices(config, embedder),
        config=config,
        store=store,
    )
    theirs = replace(ours, generated=embedded[2], classes=embedded[3])
    other_classes, same_class = _controls(embedder, instance, made[1].controls)
    warnings = sanity_check(ours, other_classes, same_class)
    warnings = (*warnings, *noun_warnings(config, embedded[3].images))
    return ours, theirs, warnings, embedder.unanswered


def _controls(
    embedder: ImageEmbedder, instance: ImageSet, generated: SampleSet | None
) -> tuple[Mapping[str, ImageEmbeddings], Mapping[str, ImageEmbeddings]]:
    """Images of other classes (the further subjects' photos, the base's control class), by a phrase
    for messages; and photos of further subjects of the main subject's class."""
    main, *more = embedder.config.subjects
    other_classes, same_class = dict[str, ImageEmbeddings](), dict[str, ImageEmbeddings]()
    for index, subject in enumerate(more, 1):
        photos = images_of_subject(instance, index)
        group = same_class if subject.class_noun == main.class_noun else other_classes
        name = f"the photos of {subject.fill('{subject}')}"
        group[name] = embedder.embed(photos, subject.class_noun, CLASS_KEYS)
    if generated is not None:
        noun = control_class(embedder.config)
        name = f"the base's {noun} images"
        other_classes[name] = embedder.embed(generated.images, noun, CLASS_KEYS)
    return other_classes, same_class


def _choices(config: Config, embedder: ImageEmbedder) -> Mapping[str, tuple[Choice, ...]]:
    found = {prompt: tuple(options_of(config, prompt)) for prompt in config.evaluation.kinds}
    return {
        prompt: tuple(Choice(embedder.embed_texts(texts), right) for texts, right in options)
        for prompt, options in found.items()
        if options
    }


def _rows(
    plan: EvaluationPlan,
    images: tuple[EvaluatedImages, EvaluatedImages],
    ours: Evidence,
    theirs: Evidence,
) -> tuple[ImageScores, ...]:
    """Prompts x seeds, then class images."""
    tuned, base = images
    (found, answers), of_base = measurements(ours), measure_all(theirs)
    rows = [
        ImageScores(
            prompt=plan.templates[index],
            kind=plan.kinds[index],
            seed=seed,
            image=tuned.samples.images[index].blob.sha256,
            base_image=base.samples.images[index].blob.sha256,
            scores=_scores_of(found, "prompts", index),
            base_scores=_scores_of(of_base, "prompts", index),
            resembles=_copied_photo(ours, found, index),
            judgements={name: each[index] for name, each in answers.items() if each[index]},
        )
        for index, seed in enumerate(plan.seeds)
    ]
    rows += [
        ImageScores(
            prompt=plan.class_template,
            kind="class",
            seed=seed,
            image=tuned.classes.images[index].blob.sha256,
            base_image=base.classes.images[index].blob.sha256,
            scores=_scores_of(found, "class", index),
            base_scores=_scores_of(of_base, "class", index),
        )
        for index, seed in enumerate(plan.class_seeds)
    ]
    return tuple(rows)


def _copied_photo(ours: Evidence, found: Mapping[str, Values], index: int) -> str | None:
    """SHA-256 of the photo that an image is a near copy of; None for no copy."""
    values = found.get("memorisation")
    if values is None or values[index] != 1:
        return None
    return ours.photos.digests[memorisation.copied_photo(ours, index)]


def _scores_of(found: Mapping[str, Values], of: str, index: int) -> dict[str, float]:
    """One image's values, of the metrics of prompts or of the class."""
    return {
        name: float(values[index])
        for name, values in found.items()
        if catalogue()[name].of == of and not np.isnan(values[index])
    }


def _unanswered(rows: Sequence[ImageScores], config: Config | None) -> int:
    """Missing values of remote metrics, over both models' images of prompts that they apply to."""
    known = {name for row in rows for name in row.scores}
    remote = [metric for name, metric in catalogue().items() if metric.remote and name in known]
    return sum(
        metric.name not in found
        for metric in remote
        for row in rows
        if row.kind != "class" and metric.applies_to(row.kind, row.prompt, config)
        for found in (row.scores, row.base_scores)
    )


def _estimates(rows: Sequence[ImageScores]) -> dict[str, Estimate]:
    names = sorted({name for row in rows for name in row.scores})
    return {name: estimate(name, rows, bounds=range_of(name)) for name in names}
