"""Class images: what the base makes of the class noun, so that training does not forget it."""

from itertools import groupby

from dreambooth_core.blobs import image_set
from dreambooth_core.buckets import assigned, class_sizes
from dreambooth_core.config import Config
from dreambooth_core.randomness import seed_for
from dreambooth_core.records import Image, ImageSet, Progress, Record
from dreambooth_core.sampling import base_digest, drawing_of, make_images
from dreambooth_core.stages import stage_key
from dreambooth_core.storage import Store


class ClassImage(Record):
    """A class image as it is planned, whether it has been made or not."""

    prefix: str
    """Where the images of its base, prompt, sampler and size lie in the store."""
    index: int
    """Its number there; it is the record `<prefix>/<index as 6 digits>.json`."""
    prompt: str
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def key(self) -> str:
        return f"{self.prefix}/{self.index:06d}.json"


def class_images(config: Config, instance: ImageSet) -> tuple[ClassImage, ...]:
    """`prior.images` for every class prompt, of the sizes of its subjects' photos; () without any.

    Their places cover base, prompt, sampler and size, but neither their number nor the run's seed:
    every run shares them, and a longer set extends a shorter one.
    """
    prior, resolution = config.prior, config.model.resolution
    if not (prior.enabled and prior.target == "images"):
        return ()
    photos = [image.size or (resolution, resolution) for image in instance.images]
    buckets = assigned(photos, resolution, config.dataset)
    prompts = [subject.fill(subject.class_prompt) for subject in config.subjects]
    made: dict[str, int] = {}
    found = []
    for prompt in dict.fromkeys(prompts):
        theirs = [
            bucket
            for image, bucket in zip(instance.images, buckets, strict=True)
            if prompts[image.subject] == prompt
        ]
        for size in class_sizes(theirs, prior.images):
            prefix = _prefix(config, prompt, size)
            index = made.get(prefix, 0)
            made[prefix] = index + 1
            found.append(ClassImage(prefix=prefix, index=index, prompt=prompt, size=size))
    return tuple(found)


def ensure_class_images(
    config: Config, store: Store, instance: ImageSet, progress: Progress | None = None
) -> tuple[ImageSet | None, bool]:
    """The class images, and whether all were there already; None where there are to be none."""
    planned = class_images(config, instance)
    if not planned:
        return None, True
    images: dict[tuple[str, int], Image] = {}
    made = 0
    for (prefix, size), group in groupby(sorted(planned, key=_place), key=_place):
        requests = [(item.prompt, seed_for(0, "class", index)) for index, item in enumerate(group)]
        drawing = drawing_of(config, store, None, size)
        found, missing = make_images(store, prefix, drawing, requests, progress)
        images |= {(prefix, index): image for index, image in enumerate(found)}
        made += missing
    members = [
        images[item.prefix, item.index].model_copy(update={"name": f"{number:06d}.png"})
        for number, item in enumerate(planned)
    ]
    return image_set(store, f"{planned[0].prefix}/sets", members), made == 0


def _place(item: ClassImage) -> tuple[str, tuple[int, int]]:
    return item.prefix, item.size


def _prefix(config: Config, prompt: str, size: tuple[int, int]) -> str:
    inputs = {
        "base": base_digest(config),
        "prompt": prompt,
        "sampler": config.sampler,
        "size": size,
    }
    return f"priors/{stage_key('priors', inputs)}"
