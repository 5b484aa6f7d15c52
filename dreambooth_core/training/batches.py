"""Training batches as a pure function of the micro-batch's number: no state to save or restore."""

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
    """Encoded images by index."""

    def get(self, index: int, view: int) -> View:
        """View `view` of image `index`: views 0 ... `train.crops` - 1 are upright, the next ones mirrored.

        May block until the image is generated.
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
    """Photo -> row of the prompt table."""


@dataclass(frozen=True)
class ClassData:
    """Prior preservation: class images, or the base's prediction if `source` is None."""

    prompts: tuple[int, ...]
    """Subject -> row of its class prompt in the prompt table."""
    source: LatentSource | None = None
    rows: tuple[int, ...] = ()
    """Class image -> row of its class prompt."""
    sizes: tuple[Size, ...] = ()
    """Class image -> height and width in pixels."""


@dataclass(frozen=True)
class BatchPlan:
    """All that determines a batch apart from the images."""

    seed: int
    train: Train
    loss: Loss
    empty: int | None = None
    """Row of the empty prompt in the prompt table, for `train.caption_dropout`."""
    rank: int = 0
    ranks: int = 1


class _Example(NamedTuple):
    kind: str
    """Stream of its random numbers: `instance` or `class`."""
    number: int
    """Index among all examples of its kind in the training."""
    source: LatentSource
    image: int
    prompt: int


class MicroBatches(torch.utils.data.Dataset[Batch]):
    """Micro-batches by number, `step * gradient_accumulation_steps + micro`, in any order.

    Raises `ConfigError` if photos train at a size without class images.
    """

    def __init__(self, plan: BatchPlan, photos: InstanceData, classes: ClassData | None) -> None:
        self.plan, self.photos, self.classes = plan, photos, classes
        self.sampler = BatchSampler(
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
        """The class images of micro-batch `micro` on all ranks; loads none."""
        return self.sampler.needed(micro)

    def __getitem__(self, micro: int) -> Batch:
        """This rank's instance examples, then as many class examples, all of one size.

        `step`, `micro`: numbers of the step and of the micro-batch within it; `latents`, `noise`:
        (batch, channels, h, w); `times`: (batch,) in [0, 1); `is_class`: (batch,) bool; `prompts`: the
        distinct rows of the prompt table; `prompt_of`: (batch,) indices into `prompts`; `sizes`:
        (batch, 6), see `View.numbers`; `class_indices`: the class images; with `loss.masks` also
        `mask`: (batch, 1, h, w) in [0, 1].
        """
        examples = self._examples(micro)
        tensors = [self._tensors(example) for example in examples]
        rows = torch.tensor([example.prompt for example in examples])
        prompts, prompt_of = torch.unique(rows, return_inverse=True)
        has_images = self.classes is not None and self.classes.source is not None
        step, within = divmod(micro, self.plan.train.gradient_accumulation_steps)
        return {
            "step": step,
            "micro": within,
            **{name: torch.stack([one[name] for one in tensors]) for name in tensors[0]},
            "is_class": torch.tensor([example.kind == "class" for example in examples]),
            "prompts": prompts,
            "prompt_of": prompt_of,
            "class_indices": tuple(
                example.image for example in examples if has_images and example.kind == "class"
            ),
        }

    def _examples(self, micro: int) -> list[_Example]:
        """Image and prompt of each of this rank's slots."""
        train, group = self.plan.train, self.sampler.group(micro)
        share = train.batch_size // self.plan.ranks
        slots = range(self.plan.rank * share, (self.plan.rank + 1) * share)
        examples = []
        for slot in slots:
            number = micro * train.batch_size + slot
            photo = self.sampler.photo(group, slot)
            prompt = self._with_dropout(number, self.photos.prompts[photo])
            examples.append(_Example("instance", number, self.photos.source, photo, prompt))
        if self.classes is not None:
            examples += [self._class_example(self.classes, micro, group, slot) for slot in slots]
        return examples

    def _with_dropout(self, number: int, prompt: int) -> int:
        """The prompt, or the empty one with probability `train.caption_dropout`."""
        rate, empty = self.plan.train.caption_dropout, self.plan.empty
        dropped = rate > 0 and uniform(self.plan.seed, "instance.dropout", number) < rate
        if not dropped:
            return prompt
        if empty is None:
            raise ValueError("caption dropout needs the empty prompt's row in the prompt table")
        return empty

    def _class_example(
        self, classes: ClassData, micro: int, group: MicroBatch, slot: int
    ) -> _Example:
        number = micro * self.plan.train.batch_size + slot
        prompt = classes.prompts[group.subject]
        if classes.source is None:
            photo = self.sampler.photo(group, slot)
            return _Example("class", number, self.photos.source, photo, prompt)
        image = self.sampler.class_image(micro, group, slot)
        return _Example("class", number, classes.source, image, prompt)

    def _tensors(self, example: _Example) -> dict[str, Tensor]:
        """The example's tensors, without a batch axis."""
        seed, train, loss = self.plan.seed, self.plan.train, self.plan.loss
        kind, number = example.kind, example.number
        crop = integer(seed, f"{kind}.crop", number, train.crops)
        mirrored = train.flip and integer(seed, f"{kind}.flip", number, 2) == 1
        view = example.source.get(example.image, crop + train.crops * mirrored)
        shape = tuple(view.latents.mean.shape)
        noise = normal(seed, f"{kind}.noise", number, shape)
        if loss.offset_noise:
            offset = normal(seed, f"{kind}.offset", number, (shape[0], 1, 1))
            noise = noise + loss.offset_noise * offset
        # one element at a time: the last bit can depend on a vector's length
        draw = torch.tensor([uniform(seed, f"{kind}.time", number)], dtype=torch.float64)
        found = {
            "latents": view.latents.draw(normal(seed, f"{kind}.latent", number, shape)),
            "noise": noise,
            "times": draw_times(loss, draw)[0],
            "sizes": torch.tensor(view.numbers, dtype=torch.float32),
        }
        if loss.masks:
            # prior preservation counts the whole image, also of a masked photo
            mask = view.mask if kind == "instance" else None
            found["mask"] = torch.ones(1, *shape[1:]) if mask is None else mask
        return found


def _check_class_images(photos: InstanceData, classes: ClassData) -> None:
    available = set(zip(classes.rows, classes.sizes, strict=True))
    for subject, size in zip(photos.subjects, photos.sizes, strict=True):
        if (classes.prompts[subject], size) not in available:
            raise ConfigError(
                f"photos of subject {subject} train at {size[0]} x {size[1]} pixels, where none of "
                f"the {len(classes.rows)} class images is: set prior.num_class_images higher, or "
                "dataset.buckets: false"
            )
