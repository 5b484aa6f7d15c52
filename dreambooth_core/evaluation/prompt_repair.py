"""Repair of prompts: draw, ask which requirements are visible, rewrite, for a limited number of rounds.

Images are drawn by the tuned model; the vision-language model writes requirements, checks and new
prompts. Requirements are those of the original prompt in all rounds.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import PIL.Image as Pillow
from pydantic import BaseModel, Field, StringConstraints, field_validator

from dreambooth_core.config import Config, Subject
from dreambooth_core.config.inputs import without_identifier
from dreambooth_core.config.subject_card import SubjectCard
from dreambooth_core.console import Progress
from dreambooth_core.diffusion.parallel_sampling import sampling_settings
from dreambooth_core.diffusion.sampling import grid, images_prefix, make_images
from dreambooth_core.errors import ConfigError, Unanswered
from dreambooth_core.evaluation.prompt_writing import Template, template_fault
from dreambooth_core.storage.answer_cache import StoredAnswers
from dreambooth_core.storage.blobs import blob_key, get_blob
from dreambooth_core.storage.records import Image, ImageScores, Record, Weights
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.language.messages import question, quoted
from dreambooth_core.vision.language.model import Conversation, VisionLanguageModel

MAX_REQUIREMENTS = 8
PROMPT_METRICS = ("judged_prompt", "prompt_fidelity")
"""Metrics by which prompts fail, the preferred one first."""

REQUIREMENTS = """\
An image model draws a {noun} by this prompt: {prompt}
List what an image must visibly show to follow the prompt: one short statement for each thing, place, \
action, changed property, number and spatial relation, at most {most}, the {noun} itself first. Do not add \
anything that the prompt does not ask for. First give the `reason` in one sentence."""
CHECK = """\
Which of these requirements does the image meet? {numbered}
`checks` has one entry per requirement, in this order, with its number as `requirement`, the `reason` in one \
sentence (what the image shows), and then `visible`, true if the image clearly shows it."""
REWRITE = """\
An image model draws a {noun} by this prompt, in which {{subject}} is the {noun}: {prompt}
The images must meet these requirements: {requirements}
The best image failed on: {failed}
Write the prompt again so that the image model follows it better, without changing what it asks for: name \
the missing things first, use plain and common words, leave out what distracts. Write {{subject}} exactly \
once, without brackets. First give the `reason` in one sentence."""
AGAIN = "The best image of this prompt failed on: {failed} Write another one."

Statement = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Draw = Callable[[str], Sequence[Image]]
"""Template -> images drawn by the tuned model."""


class Requirements(BaseModel):
    """What an image must show to follow a prompt."""

    reason: str
    requirements: tuple[Statement, ...] = Field(min_length=1, max_length=MAX_REQUIREMENTS)


class Check(BaseModel):
    """Whether an image meets one requirement."""

    requirement: int
    reason: str
    visible: bool


class Checklist(BaseModel):
    """One check per requirement, validated by `_checklist`."""

    checks: tuple[Check, ...]


class Rewrite(BaseModel):
    """A new prompt, validated by `_rewrite`."""

    reason: str
    prompt: Template


class MetRequirement(Record):
    """The answer about one requirement of an image."""

    requirement: str
    reason: str
    visible: bool


class CheckedImage(Record):
    """A drawn image with its checks."""

    image: Image
    uri: str
    checks: tuple[MetRequirement, ...]
    """Empty without a usable answer."""

    @property
    def met(self) -> float:
        """Share of the requirements that are visible, in [0, 1]; -1 without an answer."""
        if not self.checks:
            return -1.0
        return sum(check.visible for check in self.checks) / len(self.checks)


class RepairRound(Record):
    """A prompt and its images."""

    template: str
    reason: str
    """Why it was written; empty for the original prompt."""
    images: tuple[CheckedImage, ...]


class PromptRepair(Record):
    """All rounds of one prompt, and the best image of all."""

    template: str
    """The original prompt."""
    requirements: tuple[str, ...]
    rounds: tuple[RepairRound, ...]
    best_template: str
    """The prompt of the best image; the original without checked images."""
    best: CheckedImage | None
    """The image that meets most requirements, of several the earliest; None without a checked image."""
    unanswered: int
    """Questions without a usable answer."""

    @property
    def passed(self) -> bool:
        """Whether the best image meets all requirements."""
        return self.best is not None and self.best.met == 1


@dataclass(frozen=True)
class RepairLimits:
    """Rounds per prompt and images per round."""

    rounds: int = 3
    seeds: int = 2


def repair_prompts(
    config: Config,
    store: Store,
    weights: Weights,
    templates: Sequence[str],
    limits: RepairLimits,
    card: SubjectCard | None = None,
    progress: Progress | None = None,
) -> tuple[PromptRepair, ...]:
    """Repair each prompt with the model of `weights` and that of `vision`; the former loads once.

    Raises `ConfigError` for a template that cannot be filled, and the errors of
    `VisionLanguageModel.ask` except `Unanswered`.
    """
    card = card or SubjectCard(class_noun=config.subject.class_noun)
    for template in templates:
        try:
            config.subject.fill(template)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    draw = drawing(config, store, weights, limits.seeds, progress)
    with VisionLanguageModel(config.vision, StoredAnswers(store)) as model:
        repair = PromptRepairer(model, store, draw, config.subject, card)
        return tuple(repair.repaired(template, limits.rounds) for template in templates)


def drawing(
    config: Config, store: Store, weights: Weights, seeds: int, progress: Progress | None = None
) -> Draw:
    """Draws `seeds` images per template, with the seeds of a run's samples."""
    prefix, settings = images_prefix(config, weights), sampling_settings(config, store, weights)

    def draw(template: str) -> Sequence[Image]:
        requests = grid(config, [template], seeds, "sample")
        return make_images(store, prefix, settings, requests, progress)[0]

    return draw


def lowest_prompts(rows: Iterable[ImageScores], count: int) -> list[str]:
    """The `count` templates with the lowest mean prompt metric, the lowest first.

    Empty when no image has a metric of `PROMPT_METRICS`.
    """
    scored = [row for row in rows if row.kind != "class"]
    measured = [name for name in PROMPT_METRICS if any(name in row.scores for row in scored)]
    values: defaultdict[str, list[float]] = defaultdict(list)
    for row in scored:
        for name in measured[:1]:
            if name in row.scores:
                values[row.prompt].append(row.scores[name])
    return sorted(values, key=lambda prompt: sum(values[prompt]) / len(values[prompt]))[:count]


class PromptRepairer:
    """Repairs prompts of one subject."""

    def __init__(
        self,
        model: VisionLanguageModel,
        store: Store,
        draw: Draw,
        subject: Subject,
        card: SubjectCard,
    ) -> None:
        self._model, self._store, self._draw = model, store, draw
        self._subject, self._card = subject, card

    def repaired(self, template: str, rounds: int) -> PromptRepair:
        """At most `rounds` rounds, until an image meets all requirements or a rewrite has no answer."""
        self._unanswered = 0
        requirements = self._requirements(template)
        done: list[RepairRound] = []
        rewriting = Conversation(self._model)
        current, reason = template, ""
        while requirements:
            images = tuple(self._checked(image, requirements) for image in self._draw(current))
            done.append(RepairRound(template=current, reason=reason, images=images))
            best = max(images, key=lambda image: image.met)
            if best.met == 1 or len(done) == rounds:
                break
            rewrite = self._rewritten(rewriting, done, requirements, best)
            if rewrite is None:
                break
            current, reason = rewrite.prompt, rewrite.reason
        checked = [(image, one.template) for one in done for image in one.images if image.checks]
        best_image, best_template = max(
            checked, key=lambda pair: pair[0].met, default=(None, template)
        )
        return PromptRepair(
            template=template,
            requirements=requirements,
            rounds=tuple(done),
            best_template=best_template,
            best=best_image,
            unanswered=self._unanswered,
        )

    def _requirements(self, template: str) -> tuple[str, ...]:
        """Empty without a usable answer."""
        text = REQUIREMENTS.format(
            noun=self._card.class_noun,
            prompt=quoted(without_identifier(self._subject, template)),
            most=MAX_REQUIREMENTS,
        )
        try:
            return self._model.ask([question(text)], Requirements).value.requirements
        except Unanswered:
            self._unanswered += 1
            return ()

    def _checked(self, image: Image, requirements: Sequence[str]) -> CheckedImage:
        text = CHECK.format(numbered=_numbered(requirements))
        checks: tuple[Check, ...] = ()
        with Pillow.open(io.BytesIO(get_blob(self._store, image.blob))) as pixels:
            try:
                schema = _checklist(len(requirements))
                checks = self._model.ask([question(text, [pixels])], schema).value.checks
            except Unanswered:
                self._unanswered += 1
        return CheckedImage(
            image=image,
            uri=f"{self._store.uri}/{blob_key(image.blob)}",
            checks=tuple(
                MetRequirement(requirement=words, reason=check.reason, visible=check.visible)
                for words, check in zip(requirements, checks, strict=False)
            ),
        )

    def _rewritten(
        self,
        conversation: Conversation,
        done: Sequence[RepairRound],
        requirements: Sequence[str],
        best: CheckedImage,
    ) -> Rewrite | None:
        failed = [
            f"{quoted(c.requirement)}: {quoted(c.reason)}" for c in best.checks if not c.visible
        ]
        missing = "; ".join(failed) or "not known, since the images could not be checked."
        text = AGAIN.format(failed=missing)
        if not conversation.messages:
            text = REWRITE.format(
                noun=self._card.class_noun,
                prompt=quoted(done[0].template),
                requirements=_numbered(requirements),
                failed=missing,
            )
        schema = _rewrite(partial(template_fault, card=self._card), {one.template for one in done})
        try:
            return conversation.ask(text, schema).value
        except Unanswered:
            self._unanswered += 1
            return None


def _numbered(requirements: Sequence[str]) -> str:
    return " ".join(f"{number}: {quoted(one)}" for number, one in enumerate(requirements, 1))


def _checklist(count: int) -> type[Checklist]:
    """The schema of checks of `count` requirements."""

    class ChecksInOrder(Checklist):
        """One check per requirement, in the order of the requirements."""

        @field_validator("checks")
        @classmethod
        def _are_complete(cls, checks: tuple[Check, ...]) -> tuple[Check, ...]:
            if [check.requirement for check in checks] != list(range(1, count + 1)):
                raise ValueError(f"write one check for each requirement, 1 to {count}, in order")
            return checks

    return ChecksInOrder


def _rewrite(fault_of: Callable[[str], str], earlier: set[str]) -> type[Rewrite]:
    """The schema of a usable prompt that was not tried before."""

    class NewPrompt(Rewrite):
        """A prompt that was not tried before."""

        @field_validator("prompt")
        @classmethod
        def _is_usable(cls, prompt: str) -> str:
            if fault := fault_of(prompt):
                raise ValueError(fault)
            if prompt in earlier:
                raise ValueError("write another prompt than before")
            return prompt

    return NewPrompt
