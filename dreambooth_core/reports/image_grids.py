"""Images of a report: grids per prompt, worst images, near copies of photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreambooth_core.data.contact_sheets import by_prompt, data_url
from dreambooth_core.metrics import Metric
from dreambooth_core.reports.charts import Side
from dreambooth_core.reports.facts import Rows, title_of, worst_rows
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import ImageScores, Judgement, Scores
from dreambooth_core.storage.stores import Store

MAX_IMAGES = 24
"""Photos or class images shown per set."""
SEEDS = 4
"""Images shown per prompt and model."""
MAX_JUDGED = 12
"""Answers of the judge shown."""
CAPTION_METRICS = ("identity", "subject_fidelity", "prompt_fidelity", "memorisation", "prior_drift")
"""Metrics in an image's caption."""


@dataclass(frozen=True)
class PageImage:
    source: str
    """A data URL."""
    prompt: str
    about: str
    """Caption: prompt, seed and scores."""
    digest: str
    """SHA-256 of the full image."""


@dataclass(frozen=True)
class PromptGrid:
    """Images of one prompt by all models, aligned by seed."""

    prompt: str
    kind: str
    sides: Mapping[str, Sequence[PageImage]]
    left_out: int
    """Number of further seeds, not shown."""


@dataclass(frozen=True)
class WorstImages:
    """The images with the worst scores of one metric, the worst first."""

    title: str
    images: Sequence[tuple[PageImage, float]]


@dataclass(frozen=True)
class NearCopy:
    """A generated image and the photo that it nearly copies."""

    image: PageImage
    photo: PageImage


class PageImages:
    """Page images from the store; each is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sources: dict[str, str] = {}

    def one(self, image: records.Image, row: ImageScores | None = None) -> PageImage:
        if image.blob.sha256 not in self._sources:
            self._sources[image.blob.sha256] = data_url(get_blob(self._store, image.blob))
        seed = "" if image.seed is None else f"seed {image.seed}"
        prompt = image.prompt or image.name
        about = " · ".join(word for word in (prompt, seed, *_score_captions(row)) if word)
        return PageImage(self._sources[image.blob.sha256], prompt, about, image.blob.sha256)

    def some(self, images: Sequence[records.Image]) -> list[PageImage]:
        return [self.one(image) for image in images[:MAX_IMAGES]]

    def grid(self, made: records.ImageSet) -> dict[str, list[PageImage]]:
        """Prompt -> images."""
        return {prompt: self.some(images) for prompt, images in by_prompt(made.images).items()}

    def prompts(self, candidate: Scores, champion: Scores | None, sides: Rows) -> list[PromptGrid]:
        """One grid per prompt of the evaluation."""
        shown: dict[Side, Sequence[records.Image]] = {"candidate": candidate.samples.images}
        if champion:
            shown["champion"] = champion.samples.images
        return self._grids({**shown, "base": candidate.base_samples.images}, sides, "scene")

    def classes(self, candidate: Scores, champion: Scores | None, sides: Rows) -> list[PromptGrid]:
        """Grid of the class prompt."""
        shown: dict[Side, Sequence[records.Image]] = {"candidate": candidate.class_samples.images}
        if champion:
            shown["champion"] = champion.class_samples.images
        base = candidate.base_class_samples.images
        return self._grids({**shown, "base": base}, sides, "class")

    def copies(
        self, scores: Scores, rows: Sequence[ImageScores], photos: records.ImageSet
    ) -> list[NearCopy]:
        """Near copies of photos, each with its photo."""
        images = {image.blob.sha256: image for image in scores.samples.images}
        found = {photo.blob.sha256: photo for photo in photos.images}
        return [
            NearCopy(self.one(images[row.image], row), self.one(found[row.resembles]))
            for row in rows
            if row.resembles
        ][:MAX_IMAGES]

    def judged(
        self, scores: Scores, rows: Sequence[ImageScores]
    ) -> list[tuple[PageImage, str, Judgement]]:
        """Image, metric and answer of the lowest answers of the judge."""
        images = {image.blob.sha256: image for image in scores.samples.images}
        found = [
            (answer.value, row, metric, answer)
            for row in rows
            if row.image in images
            for metric, answers in row.judgements.items()
            for answer in answers
        ]
        lowest = sorted(found, key=lambda one: one[0])[:MAX_JUDGED]
        return [(self.one(images[row.image], row), metric, one) for _, row, metric, one in lowest]

    def worst(self, scores: Scores, rows: Sequence[ImageScores], metric: Metric) -> WorstImages:
        images = {image.blob.sha256: image for image in scores.samples.images}
        shown = [row for row in worst_rows(rows, metric) if row.image in images][:SEEDS]
        return WorstImages(
            metric.title,
            [(self.one(images[row.image], row), row.scores[metric.name]) for row in shown],
        )

    def _grids(
        self, shown: Mapping[Side, Sequence[records.Image]], sides: Rows, kind: str
    ) -> list[PromptGrid]:
        """One grid per prompt; images of all models are in the plan's order."""
        rows = {side: _of_kind(sides.get(side, ()), kind == "class") for side in shown}
        groups: dict[str, list[int]] = {}
        for index, image in enumerate(shown["candidate"]):
            groups.setdefault(image.prompt, []).append(index)
        return [
            PromptGrid(
                prompt=prompt,
                kind=rows["candidate"][indices[0]].kind if rows["candidate"] else kind,
                sides={
                    side: [
                        self.one(images[index], rows[side][index] if rows[side] else None)
                        for index in indices[:SEEDS]
                    ]
                    for side, images in shown.items()
                },
                left_out=max(0, len(indices) - SEEDS),
            )
            for prompt, indices in groups.items()
        ]


def _of_kind(rows: Sequence[ImageScores], classes: bool) -> list[ImageScores]:
    return [row for row in rows if (row.kind == "class") == classes]


def _score_captions(row: ImageScores | None) -> list[str]:
    scores = row.scores if row else {}
    return [f"{title_of(name)} {scores[name]:.3f}" for name in CAPTION_METRICS if name in scores]
