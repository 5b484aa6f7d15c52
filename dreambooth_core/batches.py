"""Training data as a function of the step: nothing is remembered, nothing must be restored."""

from dataclasses import dataclass
from typing import Any

import torch

from dreambooth_core.config import Train
from dreambooth_core.latents import LatentDistribution
from dreambooth_core.randomness import integer, normal, shuffled

Batch = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """Instance images or class images, ready for drawing batches."""

    latents: LatentDistribution
    """Mirror images follow the upright ones when `train.flip` is on."""
    prompts: tuple[int, ...]
    """Image -> row in the table of prompts."""


@dataclass(frozen=True)
class Plan:
    """What decides a batch, beside the images."""

    run_seed: int
    train: Train
    timesteps: int
    rank: int = 0
    ranks: int = 1


class Steps(torch.utils.data.Dataset[Batch]):
    """Whole batches by their step; nothing is remembered, so any step can be had at any time."""

    def __init__(self, plan: Plan, instance: Images, classes: Images | None) -> None:
        self.plan, self.instance, self.classes = plan, instance, classes

    def __len__(self) -> int:
        return self.plan.train.steps

    def __getitem__(self, step: int) -> Batch:
        """Instance examples, then as many class examples; this rank's share.

        `latents`, `noise`: (batch, channels, h, w); `timesteps`, `is_class`, `prompt_of`: (batch,);
        `prompts`: rows of the table of prompts that occur, to which `prompt_of` points.
        """
        share = self.plan.train.batch_size // self.plan.ranks
        first = step * self.plan.train.batch_size + self.plan.rank * share
        kinds = [("instance", self.instance)]
        if self.classes is not None:
            kinds.append(("class", self.classes))
        examples = [
            self._example(kind, images, first + place)
            for kind, images in kinds
            for place in range(share)
        ]
        rows = torch.tensor([example["prompt"] for example in examples])
        prompts, prompt_of = torch.unique(rows, return_inverse=True)
        return {
            "step": step,
            "latents": torch.cat([example["latents"] for example in examples]),
            "noise": torch.cat([example["noise"] for example in examples]),
            "timesteps": torch.tensor([example["timestep"] for example in examples]),
            "is_class": torch.tensor([example["is_class"] for example in examples]),
            "prompts": prompts,
            "prompt_of": prompt_of,
        }

    def _example(self, kind: str, images: Images, index: int) -> Batch:
        """The example at a place in the endless walk over the images of one kind."""
        seed, count = self.plan.run_seed, len(images.prompts)
        item = shuffled(seed, f"{kind}.order", index, count)
        mirrored = self.plan.train.flip and integer(seed, f"{kind}.flip", index, 2) == 1
        row = torch.tensor([item + count if mirrored else item])
        shape = (1, *images.latents.mean.shape[1:])
        return {
            "latents": images.latents.draw(row, normal(seed, f"{kind}.latent", index, shape)),
            "noise": normal(seed, f"{kind}.noise", index, shape),
            "timestep": integer(seed, f"{kind}.timestep", index, self.plan.timesteps),
            "is_class": kind == "class",
            "prompt": images.prompts[item],
        }
