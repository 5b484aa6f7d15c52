"""Training data as a function of the micro-batch's number: nothing is remembered or restored."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dreambooth_core.config import Loss, Train
from dreambooth_core.data.buckets import Size
from dreambooth_core.diffusion.objectives import draw_times
from dreambooth_core.errors import ConfigError
from dreambooth_core.randomness import integer, normal, uniform
from dreambooth_core.training.batch_sampler import BatchSampler, MicroBatch
from dreambooth_core.training.latents import View

Batch = dict[str, Any]


class LatentSource(Protocol):
    """Images by number."""

    def get(self, index: int, view: int) -> View:
        """View `view` of image `index`: `train.crops` upright ones, then as many mirrored ones.

        May wait until the image is there.
        """
        ...


@dataclass(frozen=True)
class InstanceData:
    """The instance images of all subjects."""

    source: LatentSource
    subjects: tuple[int, ...]
    """Photo -> subject."""
    sizes: tuple[Size, ...]
    """Photo -> height and width in pixels at which it trains."""
    prompts: tuple[int, ...]
    """Photo -> row in the table of prompts."""


@dataclass(frozen=True)
class ClassData:
    """What keeps the class noun: class images, or without a source the base's own prediction."""

    prompts: tuple[int, ...]
    """Subject -> row of its class prompt in the table of prompts."""
    source: LatentSource | None = None
    rows: tuple[int, ...] = ()
    """Class image -> row of its class prompt."""
    sizes: tuple[Size, ...] = ()
    """Class image -> height and width in pixels."""


@dataclass(frozen=True)
class BatchPlan:
    """What decides a batch, beside the images."""

    seed: int
    train: Train
    loss: Loss
    empty: int | None = None
    """Row of the empty prompt, for `train.caption_dropout`."""
    rank: int = 0
    ranks: int = 1


class _Example(NamedTuple):
    kind: str
    """Stream of its random numbers: `instance` or `class`."""
    number: int
    """Place among all examples of its kind."""
    source: LatentSource
    image: int
    prompt: int


class MicroBatches(torch.utils.data.Dataset[Batch]):
    """Micro-batches by number, `step * accumulate + micro`; any can be had at any time.

    Raises `ConfigError` when a subject's photos of some size have no class images of that size.
    """

    def __init__(self, plan: BatchPlan, photos: InstanceData, classes: ClassData | None) -> None:
        self.plan, self.photos, self.classes = plan, photos, classes
        self.walks = BatchSampler(
            seed=plan.seed,
            batch_size=plan.train.batch_size,
            subjects=photos.subjects,
            sizes=photos.sizes,
            class_prompts=() if classes is None else classes.prompts,
            class_rows=() if classes is None else classes.rows,
            class_sizes=() if classes is None else classes.sizes,
        )
        if classes is not None and classes.source is not None:
            _check_class_images(photos, classes)

    def __len__(self) -> int:
        return self.plan.train.steps * self.plan.train.gradient_accumulation_steps

    def needed(self, micro: int) -> tuple[int, ...]:
        """The class images that micro-batch `micro` shows on all ranks; none is asked for here."""
        return self.walks.needed(micro)

    def __getitem__(self, micro: int) -> Batch:
        """Instance examples, then as many class examples; this rank's share, all of one size.

        `step`, `micro` (place within the step), `latents`, `noise`: (batch, channels, h, w);
        `times`: (batch,) in [0, 1); `is_class`, `prompt_of`: (batch,); `prompts`: rows of the table
        of prompts that occur, to which `prompt_of` points; `sizes`: (batch, 6), see `View.numbers`;
        `class_indices`: class images shown; with `loss.masks` also `mask`: (batch, 1, h, w).
        """
        examples = self._examples(micro)
        drawn = [self._drawn(example) for example in examples]
        rows = torch.tensor([example.prompt for example in examples])
        prompts, prompt_of = torch.unique(rows, return_inverse=True)
        made = self.classes is not None and self.classes.source is not None
        step, place = divmod(micro, self.plan.train.gradient_accumulation_steps)
        return {
            "step": step,
            "micro": place,
            **{name: torch.stack([one[name] for one in drawn]) for name in drawn[0]},
            "is_class": torch.tensor([example.kind == "class" for example in examples]),
            "prompts": prompts,
            "prompt_of": prompt_of,
            "class_indices": tuple(
                example.image for example in examples if made and example.kind == "class"
            ),
        }

    def _examples(self, micro: int) -> list[_Example]:
        """Which image with which prompt stands at each of this rank's places."""
        train, group = self.plan.train, self.walks.group(micro)
        share = train.batch_size // self.plan.ranks
        places = range(self.plan.rank * share, (self.plan.rank + 1) * share)
        examples = []
        for place in places:
            number = micro * train.batch_size + place
            photo = self.walks.photo(group, place)
            prompt = self._shown(number, self.photos.prompts[photo])
            examples.append(_Example("instance", number, self.photos.source, photo, prompt))
        if self.classes is not None:
            examples += [self._class_example(self.classes, micro, group, at) for at in places]
        return examples

    def _shown(self, number: int, prompt: int) -> int:
        """The photo's prompt, or now and then the empty one."""
        rate, empty = self.plan.train.caption_dropout, self.plan.empty
        dropped = rate > 0 and uniform(self.plan.seed, "instance.dropout", number) < rate
        if not dropped:
            return prompt
        if empty is None:
            raise ValueError("caption dropout needs the empty prompt's row in the table of prompts")
        return empty

    def _class_example(
        self, classes: ClassData, micro: int, group: MicroBatch, place: int
    ) -> _Example:
        number = micro * self.plan.train.batch_size + place
        prompt = classes.prompts[group.subject]
        if classes.source is None:
            photo = self.walks.photo(group, place)
            return _Example("class", number, self.photos.source, photo, prompt)
        image = self.walks.class_image(micro, group, place)
        return _Example("class", number, classes.source, image, prompt)

    def _drawn(self, example: _Example) -> dict[str, Tensor]:
        """The example's own tensors, without a batch axis."""
        seed, train, loss = self.plan.seed, self.plan.train, self.plan.loss
        kind, number = example.kind, example.number
        cut = integer(seed, f"{kind}.crop", number, train.crops)
        mirrored = train.flip and integer(seed, f"{kind}.flip", number, 2) == 1
        view = example.source.get(example.image, cut + train.crops * mirrored)
        shape = tuple(view.latents.mean.shape)
        noise = normal(seed, f"{kind}.noise", number, shape)
        if loss.offset_noise:
            offset = normal(seed, f"{kind}.offset", number, (shape[0], 1, 1))
            noise = noise + loss.offset_noise * offset
        # a draw of its own shape, since a vector's length can decide the last bit
        draw = torch.tensor([uniform(seed, f"{kind}.time", number)], dtype=torch.float64)
        found = {
            "latents": view.latents.draw(normal(seed, f"{kind}.latent", number, shape)),
            "noise": noise,
            "times": draw_times(loss, draw)[0],
            "sizes": torch.tensor(view.numbers, dtype=torch.float32),
        }
        if loss.masks:
            # what keeps the class noun looks at all of an image, also of a masked photo
            mask = view.mask if kind == "instance" else None
            found["mask"] = torch.ones(1, *shape[1:]) if mask is None else mask
        return found


def _check_class_images(photos: InstanceData, classes: ClassData) -> None:
    there = set(zip(classes.rows, classes.sizes, strict=True))
    for subject, size in zip(photos.subjects, photos.sizes, strict=True):
        if (classes.prompts[subject], size) not in there:
            raise ConfigError(
                f"photos of subject {subject} train at {size[0]} x {size[1]} pixels, where none of "
                f"the {len(classes.rows)} class images is: set prior.num_class_images higher, or "
                "dataset.buckets: false"
            )
