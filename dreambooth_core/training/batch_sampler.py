"""Photos and class images of a micro-batch, as a pure function of its number.

Micro-batch m takes one group, the photos of one subject that train at one size:

    subject   item m of an endless sequence of shuffled epochs over the subjects
    size      size of photo m // subjects in such a sequence over the subject's photos, so that sizes
              are drawn in proportion to their photos
    photos    such a sequence over the group's photos, from (earlier micro-batches of the group) *
              batch size on
    classes   such a sequence over the class images of the same size and class prompt, shared by all
              subjects with that prompt; the first epoch is in order, so that class images can be
              made while training runs
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dreambooth_core.data.buckets import Size
from dreambooth_core.randomness import permutation, shuffled


class MicroBatch(NamedTuple):
    """The group of one micro-batch."""

    subject: int
    size: Size
    drawn: int
    """Earlier micro-batches of the same group."""


@dataclass(frozen=True)
class BatchSampler:
    """Random access to the sequences of photos and class images of a run."""

    seed: int
    batch_size: int
    """Photos per micro-batch over all ranks."""
    subjects: Sequence[int]
    """Photo -> subject, numbered from 0 without gaps."""
    sizes: Sequence[Size]
    """Photo -> size."""
    class_prompts: Sequence[int] = ()
    """Subject -> number of its class prompt, which subjects may share."""
    class_rows: Sequence[int] = ()
    """Class image -> number of its class prompt."""
    class_sizes: Sequence[Size] = ()
    """Class image -> size."""

    def group(self, micro: int) -> MicroBatch:
        """The group of micro-batch `micro`."""
        position, _ = divmod(micro, len(self._photos))
        subject = shuffled(self.seed, "subject", micro, len(self._photos))
        epoch, offset = divmod(position, len(self._photos[subject]))
        size = self._epoch_sizes(subject, epoch)[offset]
        return MicroBatch(subject, size, self._drawn(subject, size, position))

    def photo(self, group: MicroBatch, slot: int) -> int:
        """The photo in a slot, 0 ... `batch_size` - 1, of the micro-batch of `group`."""
        photos = self._groups[group.subject, group.size]
        stream = f"instance.order.{group.subject}.{group.size[0]}x{group.size[1]}"
        position = group.drawn * self.batch_size + slot
        return photos[shuffled(self.seed, stream, position, len(photos))]

    def class_image(self, micro: int, group: MicroBatch, slot: int) -> int:
        """The class image in a slot of micro-batch `micro`, whose group is `group`."""
        prompt = self.class_prompts[group.subject]
        images = self._class_groups[prompt, group.size]
        position = self._class_drawn(micro, prompt, group.size) * self.batch_size + slot
        if position < len(images):
            return images[position]
        stream = f"class.order.{prompt}.{group.size[0]}x{group.size[1]}"
        return images[shuffled(self.seed, stream, position, len(images))]

    def needed(self, micro: int) -> tuple[int, ...]:
        """The class images of micro-batch `micro`, of all ranks; empty without class images."""
        if not self.class_rows:
            return ()
        group = self.group(micro)
        return tuple(self.class_image(micro, group, slot) for slot in range(self.batch_size))

    def _class_drawn(self, micro: int, prompt: int, size: Size) -> int:
        """Number of micro-batches before `micro` with class images of this prompt and size."""
        epoch, offset = divmod(micro, len(self._photos))
        earlier = permutation(self.seed, "subject", epoch, len(self._photos))[:offset]
        return sum(
            self._drawn(subject, size, epoch + (subject in earlier))
            for subject, own in enumerate(self.class_prompts)
            if own == prompt
        )

    def _drawn(self, subject: int, size: Size, position: int) -> int:
        """How many of the subject's first `position` micro-batches were of this size."""
        epochs, offset = divmod(position, len(self._photos[subject]))
        complete = epochs * len(self._groups.get((subject, size), ()))
        return complete + self._epoch_sizes(subject, epochs)[:offset].count(size)

    def _epoch_sizes(self, subject: int, epoch: int) -> list[Size]:
        photos = self._photos[subject]
        epoch_order = permutation(self.seed, f"size.{subject}", epoch, len(photos))
        return [self.sizes[photos[index]] for index in epoch_order]

    @cached_property
    def _photos(self) -> list[list[int]]:
        """The photos of each subject."""
        found: list[list[int]] = [[] for _ in Counter(self.subjects)]
        for photo, subject in enumerate(self.subjects):
            found[subject].append(photo)
        return found

    @cached_property
    def _groups(self) -> dict[tuple[int, Size], list[int]]:
        return _grouped(self.subjects, self.sizes)

    @cached_property
    def _class_groups(self) -> dict[tuple[int, Size], list[int]]:
        return _grouped(self.class_rows, self.class_sizes)


def _grouped(kinds: Sequence[int], sizes: Sequence[Size]) -> dict[tuple[int, Size], list[int]]:
    found: dict[tuple[int, Size], list[int]] = {}
    for index, key in enumerate(zip(kinds, sizes, strict=True)):
        found.setdefault(key, []).append(index)
    return found
