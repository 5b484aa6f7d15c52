"""Pictures of a report: who made what of the same prompt and seed, and what resembles a photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreambooth_core.data.contact_sheets import by_prompt, data_url
from dreambooth_core.metrics import Metric
from dreambooth_core.reports.charts import Side
from dreambooth_core.reports.facts import Rows, title_of, worst
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import ImageScores, Scores
from dreambooth_core.storage.stores import Store

MOST = 24
"""Photos or class images shown of one set."""
SEEDS = 4
"""Images shown per prompt and side."""
TOLD = ("identity", "subject_fidelity", "prompt_fidelity", "memorisation", "prior_drift")
"""Metrics that are told of a single picture."""


@dataclass(frozen=True)
class PageImage:
    source: str
    """A data URL."""
    prompt: str
    about: str
    """What it was made from, and what it scores."""
    digest: str
    """SHA-256 of the whole image, of which this may be a thumbnail."""


@dataclass(frozen=True)
class PromptGrid:
    """What all sides made of one prompt, seed under seed."""

    prompt: str
    kind: str
    sides: Mapping[str, Sequence[PageImage]]
    left_out: int
    """Seeds that there are besides."""


@dataclass(frozen=True)
class WorstImages:
    """The images that score worst by one metric, the worst one first."""

    title: str
    images: Sequence[tuple[PageImage, float]]


@dataclass(frozen=True)
class NearCopy:
    """A generated image, and the photo that it is a near copy of."""

    image: PageImage
    photo: PageImage


class PageImages:
    """Makes what a page shows of the images in a store, each of which is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sources: dict[str, str] = {}

    def one(self, image: records.Image, row: ImageScores | None = None) -> PageImage:
        if image.blob.sha256 not in self._sources:
            self._sources[image.blob.sha256] = data_url(get_blob(self._store, image.blob))
        seed = "" if image.seed is None else f"seed {image.seed}"
        prompt = image.prompt or image.name
        about = " · ".join(word for word in (prompt, seed, *_told(row)) if word)
        return PageImage(self._sources[image.blob.sha256], prompt, about, image.blob.sha256)

    def some(self, images: Sequence[records.Image]) -> list[PageImage]:
        return [self.one(image) for image in images[:MOST]]

    def grid(self, made: records.ImageSet) -> dict[str, list[PageImage]]:
        """Prompt -> its images."""
        return {prompt: self.some(images) for prompt, images in by_prompt(made.images).items()}

    def prompts(self, candidate: Scores, champion: Scores | None, sides: Rows) -> list[PromptGrid]:
        """One exhibit per prompt of the evaluation."""
        shown: dict[Side, Sequence[records.Image]] = {"candidate": candidate.samples.images}
        if champion:
            shown["champion"] = champion.samples.images
        return self._exhibits({**shown, "base": candidate.base_samples.images}, sides, "scene")

    def classes(self, candidate: Scores, champion: Scores | None, sides: Rows) -> list[PromptGrid]:
        """What the class prompt, without the identifier token, means to each side."""
        shown: dict[Side, Sequence[records.Image]] = {"candidate": candidate.class_samples.images}
        if champion:
            shown["champion"] = champion.class_samples.images
        base = candidate.base_class_samples.images
        return self._exhibits({**shown, "base": base}, sides, "class")

    def copies(
        self, scores: Scores, rows: Sequence[ImageScores], photos: records.ImageSet
    ) -> list[NearCopy]:
        """The images that are near copies of a photo, each with its photo."""
        images = {image.blob.sha256: image for image in scores.samples.images}
        found = {photo.blob.sha256: photo for photo in photos.images}
        return [
            NearCopy(self.one(images[row.image], row), self.one(found[row.resembles]))
            for row in rows
            if row.resembles
        ][:MOST]

    def weakest(self, scores: Scores, rows: Sequence[ImageScores], metric: Metric) -> WorstImages:
        images = {image.blob.sha256: image for image in scores.samples.images}
        shown = [row for row in worst(rows, metric) if row.image in images][:SEEDS]
        return WorstImages(
            metric.title,
            [(self.one(images[row.image], row), row.scores[metric.name]) for row in shown],
        )

    def _exhibits(
        self, shown: Mapping[Side, Sequence[records.Image]], sides: Rows, kind: str
    ) -> list[PromptGrid]:
        """The sides' images stand in one order: the plan's."""
        rows = {side: _of_kind(sides.get(side, ()), kind == "class") for side in shown}
        groups: dict[str, list[int]] = {}
        for place, image in enumerate(shown["candidate"]):
            groups.setdefault(image.prompt, []).append(place)
        return [
            PromptGrid(
                prompt=prompt,
                kind=rows["candidate"][places[0]].kind if rows["candidate"] else kind,
                sides={
                    side: [
                        self.one(images[place], rows[side][place] if rows[side] else None)
                        for place in places[:SEEDS]
                    ]
                    for side, images in shown.items()
                },
                left_out=max(0, len(places) - SEEDS),
            )
            for prompt, places in groups.items()
        ]


def _of_kind(rows: Sequence[ImageScores], classes: bool) -> list[ImageScores]:
    return [row for row in rows if (row.kind == "class") == classes]


def _told(row: ImageScores | None) -> list[str]:
    scores = row.scores if row else {}
    return [f"{title_of(name)} {scores[name]:.3f}" for name in TOLD if name in scores]
