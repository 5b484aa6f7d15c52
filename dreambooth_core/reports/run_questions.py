"""Questions about a finished run, answered by a vision-language model from its tables and images.

The first request has the decision, the metrics, the scores per prompt, and contact sheets of the
photos and of the evaluation images. Prompts have labels P1, P2, ..., their images P1.1, P1.2, ...; an
answer can name only labels of the run.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import PIL.Image as Pillow
from pydantic import BaseModel, Field, StringConstraints, ValidationInfo, field_validator

from dreambooth_core.config import Config
from dreambooth_core.data.contact_sheets import by_prompt, sheet_of
from dreambooth_core.metrics.statistics import rows_of
from dreambooth_core.reports.charts import Side
from dreambooth_core.reports.facts import Rows, lines_of, prompt_means, sides_of
from dreambooth_core.storage.blobs import blob_key, get_blob
from dreambooth_core.storage.records import (
    Estimate,
    Image,
    ImageScores,
    ImageSet,
    Record,
    Scores,
    Verdict,
)
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.messages import Picture, quoted
from dreambooth_core.vision.language.model import Conversation, VisionLanguageModel

ROWS = 4
"""Prompts per contact sheet."""
COLUMNS = 4
"""Images per prompt on a contact sheet, and photos."""
MAX_SHEETS = 9
"""Images of the first request: one of photos and one per `ROWS` prompts."""
LABELS = 200
"""Most labels in an answer."""

ABOUT = """\
You answer questions about a finished training run, in which an image model learned one {noun} from photos \
as {subject}. Use only the data and images of this message. If they do not answer the question, write so in \
`answer`. `prompts` and `images` list the labels that the answer is about.

Run {run}. Decision of the quality gate: {decision}
Warnings: {warnings}

Metrics of the whole run, with 95 % intervals:
{metrics}

Prompts, with means over their images:
{prompts}

{shown}

Question: {question}"""
SHEET = """\
Contact sheet. Rows from the top: {rows}. Columns from the left: images 1 to {columns} of the row's prompt, \
such as {rows_first}.1 at the top left:"""
MORE = "Question: {question}"


@dataclass(frozen=True)
class FinishedRun:
    """What questions about a run are answered from."""

    name: str
    """NAME/version."""
    config: Config
    photos: ImageSet
    scores: Scores
    verdict: Verdict | None


@dataclass(frozen=True)
class LabelledPrompt:
    """An evaluation prompt with its images."""

    label: str
    """`P3`."""
    text: str
    """The filled prompt."""
    images: Sequence[Image]

    def image_label(self, number: int) -> str:
        """`P3.2` for number 1."""
        return f"{self.label}.{number + 1}"


class NamedPrompt(Record):
    """A prompt that an answer is about."""

    label: str
    prompt: str


class NamedImage(Record):
    """An image that an answer is about."""

    label: str
    prompt: str
    seed: int | None
    uri: str


class AnsweredQuestion(Record):
    """An answer with its reason, and the prompts and images that it is about."""

    question: str
    reason: str
    answer: str
    prompts: tuple[NamedPrompt, ...]
    images: tuple[NamedImage, ...]
    cached: bool


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
Labels = Annotated[tuple[str, ...], Field(max_length=LABELS)]


class RunAnswer(BaseModel):
    """An answer about the run; labels are validated by `_schema`."""

    reason: Text
    answer: Text
    prompts: Labels = ()
    images: Labels = ()


class RunConversation:
    """Questions about one run; later ones refer to earlier answers."""

    def __init__(self, model: VisionLanguageModel, store: Store, run: FinishedRun) -> None:
        self._model, self._store, self._run = model, store, run
        self._scores = run.verdict.candidate if run.verdict else run.scores
        self._prompts = [
            LabelledPrompt(f"P{number}", text, images)
            for number, (text, images) in enumerate(
                by_prompt(self._scores.samples.images).items(), 1
            )
        ]
        self._schema = _schema(self._prompts)
        self._conversation = Conversation(model)

    def ask(self, question: str) -> AnsweredQuestion:
        """The answer; raises `Unanswered` and the other errors of `VisionLanguageModel.ask`."""
        if self._conversation.messages:
            answer = self._conversation.ask(MORE.format(question=question), self._schema)
        else:
            sheets, shown = self._sheets()
            text = self._first_text(question, shown)
            answer = self._conversation.ask(text, self._schema, sheets)
        named = answer.value
        return AnsweredQuestion(
            question=question,
            reason=named.reason,
            answer=named.answer,
            prompts=tuple(
                NamedPrompt(label=one.label, prompt=one.text)
                for one in self._prompts
                if one.label in named.prompts
            ),
            images=tuple(self._named_images(named.images)),
            cached=answer.cached,
        )

    def _named_images(self, labels: Sequence[str]) -> Iterator[NamedImage]:
        for prompt in self._prompts:
            for number, image in enumerate(prompt.images):
                if (label := prompt.image_label(number)) in labels:
                    uri = f"{self._store.uri}/{blob_key(image.blob)}"
                    yield NamedImage(label=label, prompt=prompt.text, seed=image.seed, uri=uri)

    def _first_text(self, question: str, shown: str) -> str:
        run, scores, subject = self._run, self._scores, self._run.config.subject
        verdict = run.verdict
        champion = verdict.champion if verdict else None
        rows = rows_of(self._store, scores)
        sides = sides_of(rows, rows_of(self._store, champion) if champion else ())
        lines = [
            f"- {line.metric} ({'higher' if line.higher_is_better else 'lower'} is better): "
            f"{_sides(line.sides)}"
            for line in lines_of(scores, champion, sides)
        ]
        decision = f"{verdict.outcome}, against {verdict.against}: " if verdict else "none"
        return ABOUT.format(
            noun=subject.class_noun,
            subject=quoted(subject.fill("{subject}")),
            run=run.name,
            decision=decision + (quoted(verdict.sentence) if verdict else ""),
            warnings=quoted("; ".join(scores.warnings)) if scores.warnings else "none",
            metrics="\n".join(lines),
            prompts="\n".join(self._prompt_lines(rows, sides)),
            shown=shown,
            question=question,
        )

    def _prompt_lines(self, rows: Sequence[ImageScores], sides: Rows) -> Iterator[str]:
        templates = {row.image: (row.kind, row.prompt) for row in rows}
        means = prompt_means(sides)
        for one in self._prompts:
            key = templates.get(one.images[0].blob.sha256, ("scene", ""))
            values = "; ".join(
                f"{name} {_sides(found)}" for name, found in means.get(key, {}).items()
            )
            yield f"- {one.label} ({key[0]}, {len(one.images)} images) {quoted(one.text)}: {values}"

    def _sheets(self) -> tuple[list[Picture], str]:
        """Contact sheets within the model's number of images, and a sentence about them."""
        limit = min(MAX_SHEETS, self._model.max_images or MAX_SHEETS)
        photos = [image for image in self._run.photos.images if image.subject == 0][:COLUMNS]
        sheets = []
        if photos and limit > 1:
            sheets.append(Picture(self._sheet([photos]), "Photos of the subject:"))
        prompts = self._prompts[: ROWS * (limit - len(sheets))]
        for start in range(0, len(prompts), ROWS):
            rows = prompts[start : start + ROWS]
            labels = ", ".join(one.label for one in rows)
            text = SHEET.format(rows=labels, columns=COLUMNS, rows_first=rows[0].label)
            sheets.append(Picture(self._sheet([one.images[:COLUMNS] for one in rows]), text))
        left = self._prompts[len(prompts) :]
        return (
            sheets,
            f"Prompts without shown images: {', '.join(p.label for p in left) or 'none'}.",
        )

    def _sheet(self, rows: Sequence[Sequence[Image]]) -> Pillow.Image:
        cells = [[_opened(get_blob(self._store, image.blob)) for image in row] for row in rows]
        return _opened(sheet_of(cells))


def _opened(data: bytes) -> Pillow.Image:
    with Pillow.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _sides(values: Mapping[Side, Estimate]) -> str:
    """`candidate 0.612 [0.5, 0.7], base 0.210`."""
    return ", ".join(f"{side} {_number(value)}" for side, value in values.items())


def _number(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _schema(prompts: Sequence[LabelledPrompt]) -> type[RunAnswer]:
    """`RunAnswer`, whose labels must be those of these prompts and their images."""
    known = {
        "prompts": {one.label for one in prompts},
        "images": {one.image_label(at) for one in prompts for at in range(len(one.images))},
    }

    class AnswerAboutTheRun(RunAnswer):
        """An answer about the run, with the labels of prompts (P1) and images (P1.1) it is about."""

        @field_validator(*known)
        @classmethod
        def _exist(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
            found = known[str(info.field_name)]
            if missing := [label for label in labels if label not in found]:
                raise ValueError(f"the run has no {missing[0]!r}; labels are like {min(found)}")
            return labels

    return AnswerAboutTheRun
