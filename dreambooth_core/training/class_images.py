"""Class images: what the base makes of the class noun, so that training does not forget it."""

from collections import Counter
from itertools import groupby

from dreambooth_core.config import Config
from dreambooth_core.console import Progress
from dreambooth_core.data.buckets import assigned, class_sizes
from dreambooth_core.diffusion.parallel_sampling import sampling_settings
from dreambooth_core.diffusion.sampling import image_key, images_prefix, make_images
from dreambooth_core.digests import digest_json
from dreambooth_core.randomness import seed_for
from dreambooth_core.storage import leases
from dreambooth_core.storage.blobs import image_set
from dreambooth_core.storage.records import Image, ImageSet, Record
from dreambooth_core.storage.stores import Store


class ClassImage(Record):
    """A class image as it is planned, whether it has been made or not."""

    prefix: str
    """Where the images of its base, sampler and size lie in the store."""
    prompt: str
    seed: int
    size: tuple[int, int]
    """Height and width in pixels."""

    @property
    def key(self) -> str:
        """Of its record in the store."""
        return image_key(self.prefix, (self.prompt, self.seed))


def class_images(config: Config, instance: ImageSet) -> tuple[ClassImage, ...]:
    """`prior.num_class_images` for every class prompt, of the sizes of its subjects' photos; () without any.

    Their seeds count up from 0 for each prompt and size, and depend neither on their number nor on
    the run's seed: every run shares them, and a longer set extends a shorter one.
    """
    prior, resolution = config.prior, config.model.resolution
    if config.prior_target != "images":
        return ()
    photos = [image.size or (resolution, resolution) for image in instance.images]
    buckets = assigned(photos, resolution, config.dataset)
    prompts = [subject.fill(subject.class_prompt) for subject in config.subjects]
    found = []
    for prompt in dict.fromkeys(prompts):
        theirs = [
            bucket
            for image, bucket in zip(instance.images, buckets, strict=True)
            if prompts[image.subject] == prompt
        ]
        drawn: Counter[tuple[int, int]] = Counter()
        for size in class_sizes(theirs, prior.num_class_images):
            seed = seed_for(0, "class", drawn[size])
            drawn[size] += 1
            prefix = images_prefix(config, None, size)
            found.append(ClassImage(prefix=prefix, prompt=prompt, seed=seed, size=size))
    return tuple(found)


def ensure_class_images(
    config: Config, store: Store, instance: ImageSet, progress: Progress | None = None
) -> tuple[ImageSet | None, bool]:
    """The class images, and whether all were there already; None where there are to be none.

    Waits while another process draws for the same class prompts, and takes what that one has made.
    """
    planned = class_images(config, instance)
    if not planned:
        return None, True
    images: dict[str, Image] = {}
    made = 0
    for (prefix, size), group in groupby(sorted(planned, key=_place), key=_place):
        items = list(group)
        requests = [(item.prompt, item.seed) for item in items]
        drawing = sampling_settings(config, store, None, size)
        # each image is made for good by itself; the lease saves others from drawing it as well
        place = f"{prefix}/priors/{digest_json(sorted({item.prompt for item in items}))}"
        with leases.exclusive(store, place, config.paths.work.resolve() / place, lambda: None):
            found, missing = make_images(store, prefix, drawing, requests, progress)
        images |= {item.key: image for item, image in zip(items, found, strict=True)}
        made += missing
    members = [
        images[item.key].model_copy(update={"name": f"{number:06d}.png"})
        for number, item in enumerate(planned)
    ]
    return image_set(store, f"{planned[0].prefix}/sets", members), made == 0


def _place(item: ClassImage) -> tuple[str, tuple[int, int]]:
    return item.prefix, item.size
