"""Metrics on renders with known subjects and prompts: each must rank models by their known quality."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageFilter

from dreambooth_core.config import Paths, load_config
from dreambooth_core.data.images import encode_png
from dreambooth_core.metrics import (
    Choice,
    EmbeddingKey,
    Evidence,
    ImageEmbeddings,
    catalogue,
    measure_all,
    measure_photos,
)
from dreambooth_core.metrics.embeddings import ImageEmbedder
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.records import Image
from dreambooth_core.storage.stores import Store
from dreambooth_core.vision.crops import crop
from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.encoders import ImageEncoder
from examples.small_world.make_photos import PHOTO_BACKGROUNDS, SUBJECTS
from examples.small_world.render import render, subject_mask
from examples.small_world.world import (
    PATTERNS,
    Identity,
    Named,
    Scene,
    random_identity,
    random_scene,
    rgb,
)

PROMPTS = {
    "{subject} on the beach": ("beach", None),
    "{subject} in the snow": ("snow", None),
    "{subject} at night": ("night", None),
    "{subject} wearing a red hat": ("grass", "hat"),
}
SEEDS = 4
BEACH, SNOW, NIGHT, HAT = PROMPTS
HATS = ("red hat", "blue hat", "yellow crown", "white bow")
CLASS_BACKGROUNDS = ("grass", "city", "gray", "wood") * 2
ALL: tuple[EmbeddingKey, ...] = (
    ("identity", "whole"),
    ("identity", "crop"),
    ("clip", "whole"),
    ("clip", "crop"),
)


class Encoders(NamedTuple):
    clip: ImageEncoder
    identity: ImageEncoder


class MaskedRender(NamedTuple):
    """A render and its subject's true mask."""

    picture: Pillow.Image
    mask: np.ndarray


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    home = "examples/small_world/encoders"
    return Encoders(*(ImageEncoder(f"{home}/{name}", None, "own") for name in ("clip", "identity")))


def rendered(identity: Identity, scene: Scene) -> MaskedRender:
    return MaskedRender(render(identity, scene), subject_mask(identity, scene))


def scene_of(seed: object, background: str, accessory: str | None = None) -> Scene:
    scene = random_scene(random.Random(f"test/{seed}"), background, accessory_share=0)
    return scene._replace(accessory=accessory, accessory_color="red")


def embedded(
    encoders: Encoders, renders: Iterable[MaskedRender], sights: Sequence[EmbeddingKey] = ALL
) -> ImageEmbeddings:
    both = list(renders)
    spots = tuple(Region.around(mask) for _, mask in both)
    views = {
        "whole": [picture for picture, _ in both],
        "crop": [crop(one.picture, spot) for one, spot in zip(both, spots, strict=True)],
    }
    embed = {"identity": encoders.identity.identity_images, "clip": encoders.clip.clip_images}
    rows = {(name, view): embed[name](views[view]) for name, view in sights}
    return ImageEmbeddings(rows, views["whole"], ("0" * 64,) * len(both), spots)


def replaced(
    ours: ImageEmbeddings, theirs: ImageEmbeddings, which: Sequence[bool]
) -> ImageEmbeddings:
    """Our images, replaced by theirs where `which` is true."""
    both = zip(which, ours.images, theirs.images, strict=True)
    spots = zip(which, ours.regions, theirs.regions, strict=True)
    return ImageEmbeddings(
        rows={
            sight: np.where(np.array(which)[:, None], theirs.rows[sight], rows)
            for sight, rows in ours.rows.items()
            if sight in theirs.rows
        },
        images=[b if other else a for other, a, b in both],
        digests=ours.digests,
        regions=tuple(b if other else a for other, a, b in spots),
    )


def photos_of(noun: str) -> tuple[Identity, list[MaskedRender]]:
    """A shipped subject and its photos, as rendered by `make_photos`."""
    seed = SUBJECTS[noun]
    identity = random_identity(random.Random(f"photos/{seed}"), noun)
    views = (
        random_scene(random.Random(f"photos/{seed}/{number}"), background, accessory_share=0)
        for number, background in enumerate(PHOTO_BACKGROUNDS)
    )
    return identity, [rendered(identity, view) for view in views]


DOG, PHOTOS = photos_of("dog")
OTHER_DOGS = [
    random_identity(random.Random(f"stranger/{n}"), "dog") for n in range(len(PROMPTS) * SEEDS)
]


def by_prompts(identity: Callable[[int], Identity], first: str) -> list[MaskedRender]:
    """Images of a model that follows every prompt: one per prompt and seed."""
    return [
        rendered(identity(number * SEEDS + seed), scene_of((first, number, seed), *attributes))
        for number, attributes in enumerate(PROMPTS.values())
        for seed in range(SEEDS)
    ]


def class_images(identities: Sequence[Identity]) -> list[MaskedRender]:
    """Images of the class prompt."""
    pairs = enumerate(zip(identities, CLASS_BACKGROUNDS, strict=False))
    return [rendered(one, scene_of(("class", n), background)) for n, (one, background) in pairs]


@pytest.fixture(scope="module")
def perfect(encoders: Encoders) -> Evidence:
    """Evidence of a perfect model: the true subject, every prompt followed, the class unchanged."""
    classes = embedded(encoders, class_images(OTHER_DOGS))
    prompts = [prompt for prompt in PROMPTS for _ in range(SEEDS)]
    texts = [prompt.format(subject="dog") for prompt in prompts]
    embed = encoders.clip.clip_texts
    scenes = embed([prompt.format(subject="dog") for prompt in (BEACH, SNOW, NIGHT)])
    hats = embed([f"dog wearing a {hat}" for hat in HATS])
    return Evidence(
        generated=embedded(encoders, by_prompts(lambda _: DOG, "tuned")),
        photos=embedded(encoders, PHOTOS),
        base=embedded(encoders, by_prompts(lambda n: OTHER_DOGS[n], "base")),
        classes=classes,
        base_classes=classes,
        prompts=tuple(prompts),
        kinds=("scene",) * (3 * SEEDS) + ("accessory",) * SEEDS,
        texts=tuple(texts),
        text_rows=embed(texts),
        choices={
            **{prompt: (Choice(scenes, n),) for n, prompt in enumerate((BEACH, SNOW, NIGHT))},
            HAT: (Choice(hats, 0),),
        },
    )


def means(evidence: Evidence) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in measure_all(evidence).items()}


def means_of(perfect: Evidence, generated: ImageEmbeddings) -> dict[str, float]:
    """Means with `generated` in place of the generated images, without prompt metrics."""
    count = len(generated.images)
    blank = {"prompts": ("p",) * count, "kinds": ("scene",) * count, "texts": (), "text_rows": None}
    return means(replace(perfect, generated=generated, base=ImageEmbeddings(), **blank))


def falls(values: Sequence[float]) -> bool:
    return all(lower < upper for upper, lower in pairwise(values))


SHARES = (0.0, 0.25, 0.5, 1.0)


def by_share(perfect: Evidence, worse: ImageEmbeddings) -> list[dict[str, float]]:
    """Scores with growing shares of each prompt's images replaced by worse ones."""
    found = []
    for share in SHARES:
        which = [n % SEEDS < share * SEEDS for n in range(len(perfect.prompts))]
        found.append(means(replace(perfect, generated=replaced(perfect.generated, worse, which))))
    return found


def test_perfect_model_has_the_best_value_of_every_metric(perfect: Evidence) -> None:
    found = means(perfect)
    assert found["identity"] == pytest.approx(1, abs=0.1)
    assert found["attributes"] >= 0.9
    assert found["prompt_rank"] >= 0.9
    assert found["memorisation"] == 0
    assert found["prior_drift"] == pytest.approx(0, abs=1e-9)
    assert found["class_diversity"] == pytest.approx(1)
    assert found["prompt_gain"] == pytest.approx(0, abs=0.05)
    among = float(measure_photos(perfect)["subject_fidelity_crop"].mean())
    assert found["subject_fidelity_crop"] == pytest.approx(among, abs=0.05)


def test_identity_on_detected_crops_is_close_to_that_on_true_crops(
    perfect: Evidence, file_store: Store, tmp_path: Path
) -> None:
    config = load_config(Path("examples/small_world/config.yaml"))
    config = config.model_copy(update={"paths": Paths(work=tmp_path)})
    viewer, sight = ImageEmbedder(config, file_store), ALL[1]

    def found(pictures: Sequence[Pillow.Image]) -> ImageEmbeddings:
        images = [
            Image(name=f"{n}.png", blob=put_blob(file_store, encode_png(picture)))
            for n, picture in enumerate(pictures)
        ]
        return viewer.embed(images, "dog", [sight])

    detected = replace(
        perfect,
        generated=found(perfect.generated.images),
        photos=found(perfect.photos.images),
        base_classes=found(perfect.base_classes.images),
    )
    near, true = (catalogue()["identity"].measure(one) for one in (detected, perfect))
    assert not np.isnan(near).any()
    assert near.mean() == pytest.approx(true.mean(), abs=0.05)


def between(own: Identity, other: Identity, share: float) -> Identity:
    """An identity interpolated from `own` (share 0) to `other` (share 1)."""

    def colour(a: Named, b: Named) -> Named:
        steps = zip(a.shade, rgb(a), rgb(b), strict=True)
        return Named(a.name, tuple(s + (v - u) * share for s, u, v in steps))  # type: ignore[arg-type]

    pairs = zip(own.proportions, other.proportions, strict=True)
    later = other if share >= 0.5 else own
    return own._replace(
        color=colour(own.color, other.color),
        second=colour(own.second, other.second),
        proportions=tuple(a + (b - a) * share for a, b in pairs),  # type: ignore[arg-type]
        pattern=later.pattern,
        pattern_turn=later.pattern_turn,
        variant=later.variant,
        extra=later.extra,
    )


def test_identity_metrics_fall_with_distance_from_the_true_identity(
    encoders: Encoders, perfect: Evidence
) -> None:
    """Subjects interpolated towards two others of their class, in the same four scenes."""
    scenes = [
        scene_of(("far", n), name) for n, name in enumerate(("beach", "snow", "grass", "red"))
    ]
    groups = [
        [rendered(between(DOG, dog, share), scene) for dog in OTHER_DOGS[:2] for scene in scenes]
        for share in SHARES
    ]
    together = embedded(encoders, [one for group in groups for one in group])
    found = [
        means_of(
            perfect,
            ImageEmbeddings(
                {sight: rows[8 * n : 8 * n + 8] for sight, rows in together.rows.items()},
                [one.picture for one in group],
            ),
        )
        for n, group in enumerate(groups)
    ]
    for name in ("identity", "subject_fidelity", "subject_fidelity_crop"):
        scores = [one[name] for one in found]
        assert falls(scores), f"{name}: {scores}"
        assert scores[3] < scores[0] - 0.25, f"{name}: {scores}"
    # CLIP was trained on captions: it separates subjects of equal attributes less well
    for name in ("clip_i", "clip_i_crop"):
        assert falls([one[name] for one in found[:3]])


def rotated_hue(one: MaskedRender, degrees: float) -> MaskedRender:
    """The render with the subject's hue rotated, its background unchanged."""
    hue, saturation, value = one.picture.convert("HSV").split()
    turned = hue.point([int(h + degrees * 255 / 360) % 256 for h in range(256)])
    changed = Pillow.merge("HSV", (turned, saturation, value)).convert("RGB")
    picture = one.picture.copy()
    picture.paste(changed, mask=Pillow.fromarray(one.mask))
    return one._replace(picture=picture)


def test_identity_falls_with_changed_hues_and_not_with_changed_backgrounds(
    encoders: Encoders, perfect: Evidence
) -> None:
    views = [scene_of(("hue", n), name) for n, name in enumerate(("beach", "snow", "night", "red"))]
    plain = [rendered(DOG, view) for view in views]
    moved = [rendered(DOG, view._replace(background="city")) for view in views]
    groups = [*([rotated_hue(one, turn) for one in plain] for turn in (0, 20, 45, 90)), moved]
    sight: EmbeddingKey = ("identity", "crop")
    rows = embedded(encoders, [one for group in groups for one in group], [sight]).rows[sight]
    found = [
        means_of(
            perfect,
            ImageEmbeddings({sight: rows[4 * n : 4 * n + 4]}, [one.picture for one in group]),
        )
        for n, group in enumerate(groups)
    ]
    for name in ("identity", "subject_fidelity_crop"):
        *scores, elsewhere = (one[name] for one in found)
        assert falls(scores), f"{name}: {scores}"
        assert abs(elsewhere - scores[0]) < (scores[0] - scores[3]) / 4


def test_prompt_metrics_fall_with_the_share_of_ignored_prompts(
    encoders: Encoders, perfect: Evidence
) -> None:
    plain = [rendered(DOG, scene_of(("plain", n), "gray")) for n in range(len(perfect.prompts))]
    found = by_share(perfect, embedded(encoders, plain))
    for name in ("prompt_fidelity", "prompt_gain", "prompt_rank", "attributes"):
        scores = [one[name] for one in found]
        assert falls(scores), f"{name}: {scores}"
    # the subject is unchanged: identity alone would promote this model
    assert found[3]["identity"] > found[0]["identity"] - 0.05


def test_repeated_photos_raise_memorisation_and_lower_diversity(
    encoders: Encoders, perfect: Evidence
) -> None:
    soft = [
        one._replace(picture=one.picture.filter(ImageFilter.GaussianBlur(0.5))) for one in PHOTOS
    ]
    indices = [n // SEEDS for n in range(len(perfect.prompts))]
    photos = embedded(encoders, soft)
    copies = ImageEmbeddings(
        rows={sight: rows[indices] for sight, rows in photos.rows.items()},
        images=[photos.images[index] for index in indices],
        regions=tuple(photos.regions[index] for index in indices),
    )
    found = by_share(perfect, copies)
    assert [one["memorisation"] for one in found] == pytest.approx(SHARES)
    assert found[3]["diversity"] == pytest.approx(0, abs=1e-9)
    assert found[3]["diversity"] < found[0]["diversity"] / 2
    # subject fidelity is maximal: identity alone would promote this model as well
    assert found[3]["subject_fidelity"] > found[0]["subject_fidelity"] - 0.05


def test_prior_drift_rises_with_the_share_of_class_images_of_the_subject(
    encoders: Encoders, perfect: Evidence
) -> None:
    before, drifted = perfect.base_classes, embedded(encoders, class_images([DOG] * 8), ALL[:2])
    found = [
        means(
            replace(perfect, classes=replaced(before, drifted, [n < 8 * share for n in range(8)]))
        )
        for share in SHARES
    ]
    for name in ("prior_drift", "pres"):
        assert falls([-one[name] for one in found])
    assert found[3]["prior_drift"] == pytest.approx(1, abs=0.15)
    assert found[3]["class_diversity"] < 0.1


def test_clip_identifies_the_subject_better_on_crops_than_on_whole_images(
    encoders: Encoders,
) -> None:
    """Triplets: a photo, its subject on another background, another subject on the photo's background."""
    rng = random.Random(5)
    photos, positives, negatives = [], [], []
    for _ in range(32):
        own = random_identity(rng, rng.choice(["robot", "dog", "teapot"]))
        other = own._replace(
            pattern=rng.choice([p for p in PATTERNS if p != own.pattern]),
            second=random_identity(rng, own.class_noun).second,
        )
        view = random_scene(rng, accessory_share=0)
        photos.append(rendered(own, view))
        positives.append(rendered(own, random_scene(rng, accessory_share=0)))
        same = random_scene(rng, view.background, accessory_share=0)._replace(decor=view.decor)
        negatives.append(rendered(other, same))
    found = embedded(encoders, [*photos, *positives, *negatives], ALL[2:])
    right = {}
    for sight, rows in found.rows.items():
        anchor, positive, negative = rows[:32], rows[32:64], rows[64:]
        right[sight] = float((((positive - negative) * anchor).sum(axis=1) > 0).mean())
    assert right["clip", "crop"] >= right["clip", "whole"] + 0.1, right
