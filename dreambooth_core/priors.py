"""Class images: what the base makes of the class noun, so that training does not forget it."""

from dreambooth_core.blobs import image_set
from dreambooth_core.config import Config
from dreambooth_core.randomness import seed_for
from dreambooth_core.records import ImageSet, Progress
from dreambooth_core.sampling import base_digest, loader, make_images
from dreambooth_core.stages import stage_key
from dreambooth_core.storage import Store


def ensure_class_images(
    config: Config, store: Store, progress: Progress | None = None
) -> tuple[ImageSet | None, bool]:
    """`prior.images` class images, and whether all were there already; None without a prior.

    They lie at `priors/<key>/<index>.json`. The key covers base, prompt, sampler and size, but
    neither their number nor the run's seed: every run shares them, and a longer set extends a
    shorter one.
    """
    if not config.prior.enabled:
        return None, True
    prompt = config.subject.fill(config.subject.class_prompt)
    inputs = {
        "base": base_digest(config),
        "prompt": prompt,
        "sampler": config.sampler,
        "resolution": config.model.resolution,
    }
    prefix = f"priors/{stage_key('priors', inputs)}"
    requests = [(prompt, seed_for(0, "class", index)) for index in range(config.prior.images)]
    load = loader(config, store, None)
    resolution = config.model.resolution
    images, made = make_images(store, prefix, load, requests, config.sampler, resolution, progress)
    return image_set(store, f"{prefix}/sets", images), made == 0
