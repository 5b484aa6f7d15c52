"""Protocol of the DreamBooth paper (Ruiz et al. 2023, arXiv:2208.12242, section 4.1) on any config.

Per subject, a model is trained and evaluated on 25 prompts with 4 images each: DINO, CLIP-I and CLIP-T
over all images, PRES over images of the class prompt, DIV as LPIPS between images of a prompt. Trainings
and evaluations are cached, so the same command resumes a stopped bench.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from dreambooth_core import console
from dreambooth_core.cli.bench.subjects import BenchSubject, chosen, subjects_in
from dreambooth_core.config import Config
from dreambooth_core.config.base import as_name
from dreambooth_core.config.prompts import SETS
from dreambooth_core.config.refusals import wrong_fields
from dreambooth_core.digests import digest_json, digest_of
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import interval
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.blobs import put_record
from dreambooth_core.storage.records import Estimate, Record, Scores
from dreambooth_core.storage.stores import open_store, written_beside
from dreambooth_core.vision.identity_encoders import PREFIX

SUBJECTS, IMAGES_PER_PROMPT, PIXELS = 30, 4, 512
CLASS_PROMPT = "a {class_noun}"
"""Prompt of the class images, and of the images for PRES and prior drift."""
CLIP, IDENTITY = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
LEVEL = 0.95

__all__ = [
    "Bench",
    "BenchSubject",
    "SubjectScores",
    "chosen",
    "config_for",
    "run",
    "subjects_in",
    "table",
]

MEASURES: Mapping[str, str] = {
    "subject_fidelity": "DINO",
    "clip_i": "CLIP-I",
    "prompt_fidelity": "CLIP-T",
    "pres": "PRES",
    "lpips_diversity": "DIV",
}
"""Metric -> its name in the paper, in the order of the paper's tables."""
LOWER_IS_BETTER = frozenset({"PRES"})

PAPER: Mapping[str, Mapping[str, float]] = {
    "real photos": {"DINO": 0.774, "CLIP-I": 0.885},
    "DreamBooth, Imagen": {"DINO": 0.696, "CLIP-I": 0.812, "CLIP-T": 0.306},
    "DreamBooth, SD": {"DINO": 0.668, "CLIP-I": 0.803, "CLIP-T": 0.305},
    "Textual Inversion, SD": {"DINO": 0.569, "CLIP-I": 0.780, "CLIP-T": 0.255},
    "Imagen, prior kept": {
        "DINO": 0.684,
        "CLIP-I": 0.815,
        "CLIP-T": 0.308,
        "PRES": 0.493,
        "DIV": 0.391,
    },
    "Imagen, prior not kept": {
        "DINO": 0.712,
        "CLIP-I": 0.828,
        "CLIP-T": 0.306,
        "PRES": 0.664,
        "DIV": 0.371,
    },
}
"""Means over 30 subjects (main table) and over 15 (ablation of prior preservation)."""
CAUTION = (
    "The paper's numbers are for orientation only: absolute values depend on the implementation. Real "
    "photos of these subjects score a DINO of 0.774, 0.764 and 0.703 in three papers; compare only rows "
    "that were measured by the same code."
)


class SubjectScores(Record):
    """Scores of one subject's model, under the paper's names of the metrics."""

    subject: str
    class_noun: str
    photos: int
    weights: str
    """URI of the trained weights' record."""
    scores: str
    """URI of the record with all metrics and the table of images."""
    ours: dict[str, float]
    base: dict[str, float]
    """The base's, on the same prompts and seeds."""
    real: dict[str, float]
    """The photos', compared with each other."""


class Bench(Record):
    """Results of a bench, as printed by `--json`."""

    recipe: str
    subjects: tuple[SubjectScores, ...]
    ours: dict[str, Estimate]
    """Mean over subjects with its 95 % interval."""
    base: dict[str, Estimate]
    real: dict[str, Estimate]
    paper: dict[str, dict[str, float]]
    deviations: tuple[str, ...]
    """Deviations from the paper's protocol, a sentence each."""
    caution: str = CAUTION


def config_for(recipe: Config, subject: BenchSubject, prompts: int | None = None) -> Config:
    """The config for one subject, with the paper's prompts or the first `prompts` of them.

    Raises `ConfigError` if the result is invalid.
    """
    published = [prompt for kind in SETS[subject.prompts].values() for prompt in kind]
    document = recipe.model_dump()
    document["name"] = _name(recipe, subject)
    document["more_subjects"] = ()
    document["subject"] |= {
        "images": subject.folder,
        "class_noun": subject.class_noun,
        "class_prompt": CLASS_PROMPT,
    }
    # all as scenes: the paper's DINO and CLIP-I include prompts that change the subject
    document["evaluation"] |= {
        "prompts": tuple(published[:prompts]),
        "accessories": (),
        "properties": (),
        "prompt_set": None,
        "choices": (),
    }
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(
            f"the config is invalid for {subject.folder}: {wrong_fields(error, Config)}"
        ) from error


def run(recipe: Config, subjects: Sequence[BenchSubject], prompts: int | None = None) -> Bench:
    """Train and evaluate every subject; the results are stored and returned. Raises what the stages raise."""
    configs = [config_for(recipe, subject, prompts) for subject in subjects]
    scores = []
    with local_services(recipe):
        for number, config in enumerate(configs, 1):
            console.say(f"{subjects[number - 1].name}, {number} of {len(configs)}")
            scores.append(_evaluate_subject(config, subjects[number - 1]))
        bench = Bench(
            recipe=recipe.name,
            subjects=tuple(scores),
            ours=_means(one.ours for one in scores),
            base=_means(one.base for one in scores),
            real=_means(one.real for one in scores),
            paper={name: dict(values) for name, values in PAPER.items()},
            deviations=tuple(deviations(recipe, len(configs), prompts)),
        )
        _save(recipe, bench)
    return bench


def deviations(recipe: Config, subjects: int, prompts: int | None) -> list[str]:
    """One sentence per deviation from the paper's protocol."""
    rules, side, found = recipe.evaluation, recipe.model.resolution, list[str]()
    if subjects != SUBJECTS:
        found.append(f"{subjects} of the {SUBJECTS} subjects")
    if prompts is not None and prompts < 25:
        found.append(f"{prompts} of the 25 prompts")
    if rules.seeds != IMAGES_PER_PROMPT:
        found.append(f"{rules.seeds} images per prompt, not {IMAGES_PER_PROMPT}")
    if side != PIXELS:
        found.append(f"images of {side} pixels per side, not {PIXELS}")
    if rules.preprocessing != "paper":
        found.append(f"evaluation.preprocessing is {rules.preprocessing}, not paper")
    if rules.identity != IDENTITY:
        found.append(
            f"no DINO: {rules.identity} is another encoder"
            if rules.identity.startswith(PREFIX)
            else f"DINO is measured by {rules.identity}, not by {IDENTITY}"
        )
    if rules.clip != CLIP:
        found.append(f"CLIP-I and CLIP-T are measured by {rules.clip}, not by {CLIP}")
    if rules.lpips is None:
        found.append("no DIV: evaluation.lpips is not set")
    elif rules.seeds == 1:
        found.append("no DIV: it needs two images per prompt")
    return found


def table(bench: Bench) -> list[list[str]]:
    """Rows of the printed table: column names, subjects, means with intervals, the paper's values."""
    columns = [f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in MEASURES.values()]
    return [
        ["", *columns],
        *(_row(one.subject, one.ours) for one in bench.subjects),
        _row("mean", _values(bench.ours, "value")),
        _row("  95 % from", _values(bench.ours, "low")),
        _row("  to", _values(bench.ours, "high")),
        _row("untouched base", _values(bench.base, "value")),
        _row("real photos", _values(bench.real, "value")),
        _row("in the paper", {}),
        *(_row(f"  {title}", values) for title, values in bench.paper.items()),
    ]


def _evaluate_subject(config: Config, subject: BenchSubject) -> SubjectScores:
    """Train and evaluate one subject; both are cached."""
    from dreambooth_core.data.ingest import ingest
    from dreambooth_core.evaluation.evaluate import evaluate
    from dreambooth_core.training.standalone import train_alone, weights_of

    train_alone(config)
    store = open_store(config.storage)
    weights, instance = weights_of(config), ingest(config, store)[0].images
    with console.progress_bar("evaluate") as progress:
        scores, _ = evaluate(config, store, instance, weights, progress)
    if config.evaluation.identity.startswith(PREFIX):
        scores = without_identity(scores)
    return subject_scores(subject, instance.count, weights.uri, scores)


def _name(recipe: Config, subject: BenchSubject) -> str:
    """`<config>-<subject>`, with a digest if the folder's name has characters that a name must not have."""
    wanted = f"{recipe.name}-{subject.name}"
    valid = as_name(wanted)
    return valid if valid == wanted else f"{valid[:57]}-{digest_of(wanted.encode())[:6]}"


def subject_scores(
    subject: BenchSubject, photos: int, weights: str, scores: Scores
) -> SubjectScores:
    """Scores under the paper's names; metrics that were not measured are left out."""
    return SubjectScores(
        subject=subject.name,
        class_noun=subject.class_noun,
        photos=photos,
        weights=weights,
        scores=scores.uri,
        ours=_renamed(scores.metrics),
        base=_renamed(scores.base_metrics),
        real=_renamed(scores.reference),
    )


def without_identity(scores: Scores) -> Scores:
    """Scores without those of the identity encoder, which is not DINO."""
    kinds = ("metrics", "base_metrics", "reference")
    kept = {
        kind: {
            name: value
            for name, value in getattr(scores, kind).items()
            if (embedding := catalogue()[name].embedding) is None or embedding[0] != "identity"
        }
        for kind in kinds
    }
    return scores.model_copy(update=kept)


def _renamed(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[metric] for metric, name in MEASURES.items() if metric in values}


def _means(values: Iterable[Mapping[str, float]]) -> dict[str, Estimate]:
    """Means over subjects of the metrics that all subjects have."""
    rows = list(values)
    found = {}
    for name in MEASURES.values():
        column = np.array([row[name] for row in rows if name in row])
        if len(column) == len(rows):
            low, high = interval(column, LEVEL)
            found[name] = Estimate(value=float(column.mean()), low=low, high=high)
    return found


def _save(recipe: Config, bench: Bench) -> None:
    """Store the results under their digest, and in the work folder."""
    store = open_store(recipe.storage)
    put_record(store, f"benches/dreambench/{digest_json(bench)}.json", bench)
    path = results_path(recipe)
    with written_beside(path) as unfinished:
        unfinished.write_text(bench.model_dump_json(indent=2), encoding="utf-8")


def results_path(recipe: Config) -> Path:
    """Local path of the config's latest results."""
    return recipe.paths.work / "benches" / f"dreambench-{recipe.name}.json"


def _row(title: str, values: Mapping[str, float | None]) -> list[str]:
    found = (values.get(name) for name in MEASURES.values())
    return [title, *("" if value is None else f"{value:.3f}" for value in found)]


def _values(
    estimates: Mapping[str, Estimate], end: Literal["value", "low", "high"]
) -> dict[str, float | None]:
    return {name: getattr(found, end) for name, found in estimates.items()}
