"""Which images a micro-batch shows, as a function of its number: nothing is remembered or counted.

Micro-batch m shows one group, the photos of one subject that train at one size:

    subject   an endless shuffled walk over the subjects, at m: exactly as often each
    size      an endless shuffled walk over the subject's photos, at m // subjects: the photo's size,
              so that sizes come up in proportion to their photos
    photos    an endless shuffled walk over the group, from (its earlier draws) * batch size on
    classes   a walk over the class images of the same size and class prompt, as far as all subjects
              with that prompt have come: in order the first time, so that class images can be made
              while training runs, shuffled from then on
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dreambooth_core.data.buckets import Size
from dreambooth_core.randomness import permutation, shuffled


class MicroBatch(NamedTuple):
    """What one micro-batch is made of."""

    subject: int
    size: Size
    drawn: int
    """Earlier micro-batches of the same group."""


@dataclass(frozen=True)
class BatchSampler:
    """The walks over photos and class images of a run."""

    seed: int
    batch_size: int
    """Photos per micro-batch, of all ranks together."""
    subjects: Sequence[int]
    """Photo -> subject; all of 0, 1 ... occur."""
    sizes: Sequence[Size]
    """Photo -> size."""
    class_prompts: Sequence[int] = ()
    """Subject -> number of its class prompt; some may share one."""
    class_rows: Sequence[int] = ()
    """Class image -> number of its class prompt."""
    class_sizes: Sequence[Size] = ()
    """Class image -> size."""

    def group(self, micro: int) -> MicroBatch:
        """The subject and the size of micro-batch `micro`."""
        position, _ = divmod(micro, len(self._photos))
        subject = shuffled(self.seed, "subject", micro, len(self._photos))
        epoch, place = divmod(position, len(self._photos[subject]))
        size = self._epoch_sizes(subject, epoch)[place]
        return MicroBatch(subject, size, self._drawn(subject, size, position))

    def photo(self, group: MicroBatch, place: int) -> int:
        """The photo at a place of the micro-batch that `group` was asked for."""
        members = self._members[group.subject, group.size]
        stream = f"instance.order.{group.subject}.{group.size[0]}x{group.size[1]}"
        position = group.drawn * self.batch_size + place
        return members[shuffled(self.seed, stream, position, len(members))]

    def class_image(self, micro: int, group: MicroBatch, place: int) -> int:
        """The class image at a place of micro-batch `micro`, whose group is given."""
        prompt = self.class_prompts[group.subject]
        members = self._class_members[prompt, group.size]
        position = self._class_drawn(micro, prompt, group.size) * self.batch_size + place
        if position < len(members):
            return members[position]
        stream = f"class.order.{prompt}.{group.size[0]}x{group.size[1]}"
        return members[shuffled(self.seed, stream, position, len(members))]

    def needed(self, micro: int) -> tuple[int, ...]:
        """The class images that micro-batch `micro` shows, of all ranks; none without any."""
        if not self.class_rows:
            return ()
        group = self.group(micro)
        return tuple(self.class_image(micro, group, place) for place in range(self.batch_size))

    def _class_drawn(self, micro: int, prompt: int, size: Size) -> int:
        """Micro-batches before `micro` that showed class images of this prompt and size."""
        round_, place = divmod(micro, len(self._photos))
        earlier = permutation(self.seed, "subject", round_, len(self._photos))[:place]
        return sum(
            self._drawn(subject, size, round_ + (subject in earlier))
            for subject, own in enumerate(self.class_prompts)
            if own == prompt
        )

    def _drawn(self, subject: int, size: Size, position: int) -> int:
        """How often the subject's first `position` micro-batches were of this size."""
        epochs, place = divmod(position, len(self._photos[subject]))
        whole = epochs * len(self._members.get((subject, size), ()))
        return whole + self._epoch_sizes(subject, epochs)[:place].count(size)

    def _epoch_sizes(self, subject: int, epoch: int) -> list[Size]:
        photos = self._photos[subject]
        walk = permutation(self.seed, f"size.{subject}", epoch, len(photos))
        return [self.sizes[photos[index]] for index in walk]

    @cached_property
    def _photos(self) -> list[list[int]]:
        """The photos of each subject."""
        found: list[list[int]] = [[] for _ in Counter(self.subjects)]
        for photo, subject in enumerate(self.subjects):
            found[subject].append(photo)
        return found

    @cached_property
    def _members(self) -> dict[tuple[int, Size], list[int]]:
        return _grouped(self.subjects, self.sizes)

    @cached_property
    def _class_members(self) -> dict[tuple[int, Size], list[int]]:
        return _grouped(self.class_rows, self.class_sizes)


def _grouped(kinds: Sequence[int], sizes: Sequence[Size]) -> dict[tuple[int, Size], list[int]]:
    found: dict[tuple[int, Size], list[int]] = {}
    for index, key in enumerate(zip(kinds, sizes, strict=True)):
        found.setdefault(key, []).append(index)
    return found
