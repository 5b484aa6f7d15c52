"""Report of a run as one self-contained HTML page."""

from typing import Any

import yaml

from dreambooth_core import reports
from dreambooth_core.config import Config
from dreambooth_core.config.credentials import without_password
from dreambooth_core.data.contact_sheets import EMBEDDED_SIDE
from dreambooth_core.diffusion.base_model import base_digest
from dreambooth_core.diffusion.exports import possible
from dreambooth_core.digests import digest_of
from dreambooth_core.errors import NotFound
from dreambooth_core.metrics import catalogue
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.reports import charts
from dreambooth_core.reports.facts import (
    ReportFacts,
    Rows,
    facts_of,
    prompt_literal,
    prompt_means,
    sides_of,
)
from dreambooth_core.reports.image_grids import PageImages
from dreambooth_core.reports.summary import StageResults, run_id
from dreambooth_core.storage.blobs import blob_key, put_blob
from dreambooth_core.storage.checkpoint_manifests import checkpoints_of
from dreambooth_core.storage.code_version import code_digest, code_version
from dreambooth_core.storage.records import (
    Blob,
    Document,
    ImageScores,
    Permission,
    Scores,
    Stage,
    Weights,
    config_digest,
    permissions_of,
)
from dreambooth_core.storage.stage_cache import cached_stage
from dreambooth_core.storage.stores import Store, written_beside
from dreambooth_core.tracking.learning_curves import curves_of
from dreambooth_core.tracking.mlflow import log_report
from dreambooth_core.vision.detectors import is_remote

TILES = ("prompt_fidelity", "prior_drift", "memorisation")
"""Metrics in the header, after the gate's primary metric."""
WORST = ("identity", "subject_fidelity", "prompt_fidelity")
"""Metrics whose worst images are shown; the second only without the first."""


def write_report(
    config: Config, store: Store, results: StageResults, stages: dict[str, Stage]
) -> tuple[Document, bool]:
    """Write the report of a run whose other stages are finished, to the store and the work folder.

    Cached by the results: the same results return the stored page, with its timings.
    """
    name = run_id(config, results)
    key = f"reports/{name}/report.html"
    path = config.paths.work.resolve() / "reports" / name / "report.html"
    found = (results.classes, results.samples, results.verdict)
    inputs = {
        "run": name,
        "storage": config.storage.uri,
        "results": [made.digest if made else None for made in found],
        "version": results.version,
        "form": 2,  # version of the stored format
    }
    uri = f"{store.uri}/{key}"

    def make(_: str) -> Document:
        page = render(config, store, results, stages).encode()
        return Document(uri=uri, digest=put_blob(store, page).sha256, path=str(path))

    document, reused = cached_stage(store, "report", inputs, Document, make)
    page = store.get(blob_key(Blob(sha256=document.digest, size=0)))
    if digest_of(_stored(store, key)) != document.digest:
        # a new page, or one of the same run with other aliases
        if results.version:
            log_report(config, results.version.run_id, page.decode(), uri, str(path))
        store.put(key, page)  # last: a stored page counts as sent to MLflow
    if not path.is_file() or digest_of(path.read_bytes()) != document.digest:
        with written_beside(path) as temporary:
            temporary.write_bytes(page)
    return document.model_copy(update={"path": str(path)}), reused


def render(config: Config, store: Store, results: StageResults, stages: dict[str, Stage]) -> str:
    """The page as HTML; raises `ValueError` if a result other than verdict and class images is missing."""
    scores, champion = _shown_scores(results)
    if not (results.intake and results.weights and scores and results.samples and results.version):
        raise ValueError("a report needs the results of all other stages")
    sides = sides_of(_rows(store, scores), _rows(store, champion))
    facts = facts_of(config, results, scores, champion, sides)
    return reports.render(
        "report.html.j2",
        charts=True,
        small=config.model.resolution <= EMBEDDED_SIDE // 2,
        config=config,
        results=results,
        scores=scores,
        champion=results.verdict.against if results.verdict and champion else None,
        advisory=facts.advisory,
        preferences=facts.preferences,
        facts=facts,
        numbers=_numbers(config, facts, sides),
        images=_images(store, results, scores, champion, sides),
        training=_training(config, results.weights),
        stages=stages,
        prompt=prompt_literal(config),
        formats=possible(config.model.family, results.weights.method),
        lineage=_lineage(config, store, results),
        document=without_password(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)),
    )


def _shown_scores(results: StageResults) -> tuple[Scores | None, Scores | None]:
    """Scores of the candidate, from the gate's last round if any, and of the champion."""
    verdict = results.verdict
    return (verdict.candidate, verdict.champion) if verdict else (results.scores, None)


def _rows(store: Store, scores: Scores | None) -> tuple[ImageScores, ...]:
    return rows_of(store, scores) if scores else ()


def _numbers(config: Config, facts: ReportFacts, sides: Rows) -> dict[str, Any]:
    """Values of tables and charts."""
    lines = {line.metric: line for line in facts.lines}
    titles = {name: line.title for name, line in lines.items()}
    deciding = [name for name in config.gate.primary if name in lines][:1]
    first = list(dict.fromkeys([*deciding, *(name for name in TILES if name in lines), *lines]))
    means = prompt_means(sides)
    return {
        "tiles": [lines[name] for name in first[:4]],
        "titles": titles,
        "shown": [side for side in charts.SIDES if any(side in line.sides for line in facts.lines)],
        "gains": charts.gain_chart(facts.comparisons, titles) if facts.comparisons else None,
        "means": means,
        "measured": [name for name in titles if any(name in found for found in means.values())],
        "dots": charts.prompt_chart(means, titles, config.subject.fill),
    }


def _images(
    store: Store, results: StageResults, scores: Scores, champion: Scores | None, sides: Rows
) -> dict[str, Any]:
    show, rows = PageImages(store), sides.get("candidate", ())
    photos = results.intake.images if results.intake else None
    named = dict.fromkeys(name for name in WORST if name in scores.metrics)
    if "identity" in named:
        named.pop("subject_fidelity", None)
    return {
        "photos": show.some(photos.images) if photos else [],
        "prompts": show.prompts(scores, champion, sides),
        "class": show.classes(scores, champion, sides),
        "copies": show.copies(scores, rows, photos) if photos else [],
        "worst": [show.worst(scores, rows, catalogue()[name]) for name in named] if rows else [],
        "judged": show.judged(scores, rows),
        "class_images": show.some(results.classes.images) if results.classes else [],
        "samples": show.grid(results.samples) if results.samples else {},
    }


def _training(config: Config, weights: Weights) -> dict[str, Any]:
    """Learning curves, and the values of the validations."""
    curves = curves_of(weights)
    validations = {
        name: dict(points) for name, points in curves.items() if name.startswith("validation/")
    }
    titles = {name: _title(config, name.removeprefix("validation/")) for name in validations}
    found: dict[str, charts.Chart | None] = {
        titles[name]: charts.validation_chart(titles[name], curves[name], weights.chosen_step)
        for name in validations
    }
    found |= {"loss": charts.loss_chart(curves), "learning rate": charts.rate_chart(curves)}
    steps = sorted({step for points in validations.values() for step in points})
    return {
        "curves": {title: chart for title, chart in found.items() if chart},
        "titles": list(titles.values()),
        "validations": {
            step: [points.get(step) for points in validations.values()] for step in steps
        },
    }


def _title(config: Config, name: str) -> str:
    """Title of a validation curve; with a local detector, subject fidelity is that of the crop."""
    detector = config.evaluation.detector
    local = detector.kind is not None and not is_remote(detector)
    cropped = name == "subject_fidelity" and local
    metric = catalogue().get("subject_fidelity_crop" if cropped else name)
    return metric.title if metric else name.replace("_", " ")


def _lineage(config: Config, store: Store, results: StageResults) -> list[tuple[str, str, str]]:
    """Inputs and results of the run: name, digest or value, URI."""
    base = config.model.base + (f" @ {config.model.revision}" if config.model.revision else "")
    named = {
        "instance images": results.intake.images if results.intake else None,
        "class images": results.classes,
        "weights": results.weights,
        "scores": results.scores,
        "verdict": results.verdict,
        "samples": results.samples,
    }
    weights = results.weights
    steps = checkpoints_of(store, weights.key) if weights else ()
    return [
        ("base", base_digest(config.model), base),
        *([("licence of the base", config.model.licence, "")] if config.model.licence else []),
        *(row for subject in permissions_of(config) for row in _permission(subject)),
        ("config", config_digest(config), ""),
        ("code", code_digest(), code_version()),
        *((name, made.digest, made.uri) for name, made in named.items() if made),
        *([("training code", weights.code, "")] if weights and weights.code else []),
        *((f"checkpoint of step {step.step}", step.digest, "") for step in steps),
        *([("MLflow run", results.version.run_id, "")] if results.version else []),
    ]


def _permission(subject: Permission) -> list[tuple[str, str, str]]:
    return [
        (f"provenance of {subject.subject}", subject.provenance or "not given", ""),
        (f"consent for {subject.subject}", subject.consent or "not given", ""),
    ]


def _stored(store: Store, key: str) -> bytes:
    """The stored object; empty if there is none."""
    try:
        return store.get(key)
    except NotFound:
        return b""
