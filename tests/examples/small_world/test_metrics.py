"""The metrics on pictures whose truth is known: with the shipped encoders each moves as it must."""

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
    Evidence,
    ImageEmbeddings,
    Sight,
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
from examples.small_world.make_photos import PLACES, SUBJECTS
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
CLASS_PLACES = ("grass", "city", "gray", "wood") * 2
ALL: tuple[Sight, ...] = (
    ("identity", "whole"),
    ("identity", "crop"),
    ("clip", "whole"),
    ("clip", "crop"),
)


class Eyes(NamedTuple):
    clip: ImageEncoder
    identity: ImageEncoder


class Shown(NamedTuple):
    """A picture, and where its subject really is."""

    picture: Pillow.Image
    mask: np.ndarray


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    home = "examples/small_world/encoders"
    return Eyes(*(ImageEncoder(f"{home}/{name}", None, "own") for name in ("clip", "identity")))


def shown(identity: Identity, scene: Scene) -> Shown:
    return Shown(render(identity, scene), subject_mask(identity, scene))


def scene_of(seed: object, background: str, worn: str | None = None) -> Scene:
    scene = random_scene(random.Random(f"test/{seed}"), background, accessory_share=0)
    return scene._replace(accessory=worn, accessory_color="red")


def seen(eyes: Eyes, pictures: Iterable[Shown], sights: Sequence[Sight] = ALL) -> ImageEmbeddings:
    both = list(pictures)
    spots = tuple(Region.around(mask) for _, mask in both)
    views = {
        "whole": [picture for picture, _ in both],
        "crop": [crop(one.picture, spot) for one, spot in zip(both, spots, strict=True)],
    }
    look = {"identity": eyes.identity.identity_images, "clip": eyes.clip.clip_images}
    rows = {(eye, view): look[eye](views[view]) for eye, view in sights}
    return ImageEmbeddings(rows, views["whole"], ("0" * 64,) * len(both), spots)


def picked(
    ours: ImageEmbeddings, theirs: ImageEmbeddings, which: Sequence[bool]
) -> ImageEmbeddings:
    """Image by image one of ours, or of theirs where `which` is true."""
    both = zip(which, ours.pictures, theirs.pictures, strict=True)
    spots = zip(which, ours.spots, theirs.spots, strict=True)
    return ImageEmbeddings(
        rows={
            sight: np.where(np.array(which)[:, None], theirs.rows[sight], rows)
            for sight, rows in ours.rows.items()
            if sight in theirs.rows
        },
        pictures=[b if other else a for other, a, b in both],
        digests=ours.digests,
        spots=tuple(b if other else a for other, a, b in spots),
    )


def photos_of(noun: str) -> tuple[Identity, list[Shown]]:
    """A shipped subject with its photos, as `make_photos` renders them."""
    seed = SUBJECTS[noun]
    identity = random_identity(random.Random(f"photos/{seed}"), noun)
    views = (
        random_scene(random.Random(f"photos/{seed}/{number}"), place, accessory_share=0)
        for number, place in enumerate(PLACES)
    )
    return identity, [shown(identity, view) for view in views]


DOG, PHOTOS = photos_of("dog")
STRANGERS = [
    random_identity(random.Random(f"stranger/{n}"), "dog") for n in range(len(PROMPTS) * SEEDS)
]


def by_prompts(identity: Callable[[int], Identity], first: str) -> list[Shown]:
    """What a model draws that follows every prompt: a picture per prompt and seed."""
    return [
        shown(identity(number * SEEDS + seed), scene_of((first, number, seed), place, worn))
        for number, (place, worn) in enumerate(PROMPTS.values())
        for seed in range(SEEDS)
    ]


def members(identities: Sequence[Identity]) -> list[Shown]:
    """Images of the class prompt."""
    pairs = enumerate(zip(identities, CLASS_PLACES, strict=False))
    return [shown(one, scene_of(("class", n), place)) for n, (one, place) in pairs]


@pytest.fixture(scope="module")
def perfect(eyes: Eyes) -> Evidence:
    """The true subject, wherever and with whatever it was asked for; a class that stayed as it was."""
    classes = seen(eyes, members(STRANGERS))
    prompts = [prompt for prompt in PROMPTS for _ in range(SEEDS)]
    texts = [prompt.format(subject="dog") for prompt in prompts]
    read = eyes.clip.clip_texts
    places = read([prompt.format(subject="dog") for prompt in (BEACH, SNOW, NIGHT)])
    hats = read([f"dog wearing a {hat}" for hat in HATS])
    return Evidence(
        generated=seen(eyes, by_prompts(lambda _: DOG, "tuned")),
        photos=seen(eyes, PHOTOS),
        base=seen(eyes, by_prompts(lambda n: STRANGERS[n], "base")),
        classes=classes,
        base_classes=classes,
        prompts=tuple(prompts),
        kinds=("scene",) * (3 * SEEDS) + ("accessory",) * SEEDS,
        texts=tuple(texts),
        text_rows=read(texts),
        choices={
            **{prompt: (Choice(places, n),) for n, prompt in enumerate((BEACH, SNOW, NIGHT))},
            HAT: (Choice(hats, 0),),
        },
    )


def means(evidence: Evidence) -> dict[str, float]:
    return {name: float(np.nanmean(values)) for name, values in measure_all(evidence).items()}


def means_of(perfect: Evidence, generated: ImageEmbeddings) -> dict[str, float]:
    """With other pictures in the place of the generated ones, of which no prompt is asked."""
    count = len(generated.pictures)
    blank = {"prompts": ("p",) * count, "kinds": ("scene",) * count, "texts": (), "text_rows": None}
    return means(replace(perfect, generated=generated, base=ImageEmbeddings(), **blank))


def falls(values: Sequence[float]) -> bool:
    return all(lower < upper for upper, lower in pairwise(values))


LADDER = (0.0, 0.25, 0.5, 1.0)


def on_the_ladder(perfect: Evidence, worse: ImageEmbeddings) -> list[dict[str, float]]:
    """The scores with growing shares of each prompt's pictures replaced by worse ones."""
    found = []
    for share in LADDER:
        which = [n % SEEDS < share * SEEDS for n in range(len(perfect.prompts))]
        found.append(means(replace(perfect, generated=picked(perfect.generated, worse, which))))
    return found


def test_a_perfect_model_scores_what_its_truth_is(perfect: Evidence) -> None:
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


def test_the_shipped_finder_shows_what_the_truth_shows(
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
        return viewer.see(images, "dog", [sight])

    by_finder = replace(
        perfect,
        generated=found(perfect.generated.pictures),
        photos=found(perfect.photos.pictures),
        base_classes=found(perfect.base_classes.pictures),
    )
    near, true = (catalogue()["identity"].measure(one) for one in (by_finder, perfect))
    assert not np.isnan(near).any()
    assert near.mean() == pytest.approx(true.mean(), abs=0.05)


def between(own: Identity, other: Identity, share: float) -> Identity:
    """An identity on the way from `own` to `other`."""

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


def test_the_further_from_the_true_identity_the_lower(eyes: Eyes, perfect: Evidence) -> None:
    """Subjects on the way to two others of their class, in the same four scenes."""
    scenes = [
        scene_of(("far", n), place) for n, place in enumerate(("beach", "snow", "grass", "red"))
    ]
    rungs = [
        [shown(between(DOG, other, share), scene) for other in STRANGERS[:2] for scene in scenes]
        for share in LADDER
    ]
    together = seen(eyes, [one for rung in rungs for one in rung])
    found = [
        means_of(
            perfect,
            ImageEmbeddings(
                {sight: rows[8 * n : 8 * n + 8] for sight, rows in together.rows.items()},
                [one.picture for one in rung],
            ),
        )
        for n, rung in enumerate(rungs)
    ]
    for name in ("identity", "subject_fidelity", "subject_fidelity_crop"):
        scores = [one[name] for one in found]
        assert falls(scores), f"{name}: {scores}"
        assert scores[3] < scores[0] - 0.25, f"{name}: {scores}"
    for name in (
        "clip_i",
        "clip_i_crop",
    ):  # who learned words tells two who differ by no word less well
        assert falls([one[name] for one in found[:3]])


def rolled(one: Shown, degrees: float) -> Shown:
    """The subject's hue turned, and nothing else."""
    hue, saturation, value = one.picture.convert("HSV").split()
    turned = hue.point([int(h + degrees * 255 / 360) % 256 for h in range(256)])
    changed = Pillow.merge("HSV", (turned, saturation, value)).convert("RGB")
    picture = one.picture.copy()
    picture.paste(changed, mask=Pillow.fromarray(one.mask))
    return one._replace(picture=picture)


def test_turned_hues_cost_identity_and_other_backgrounds_do_not(
    eyes: Eyes, perfect: Evidence
) -> None:
    views = [
        scene_of(("hue", n), place) for n, place in enumerate(("beach", "snow", "night", "red"))
    ]
    drawn = [shown(DOG, view) for view in views]
    moved = [shown(DOG, view._replace(background="city")) for view in views]
    rungs = [*([rolled(one, turn) for one in drawn] for turn in (0, 20, 45, 90)), moved]
    sight: Sight = ("identity", "crop")
    rows = seen(eyes, [one for rung in rungs for one in rung], [sight]).rows[sight]
    found = [
        means_of(
            perfect,
            ImageEmbeddings({sight: rows[4 * n : 4 * n + 4]}, [one.picture for one in rung]),
        )
        for n, rung in enumerate(rungs)
    ]
    for name in ("identity", "subject_fidelity_crop"):
        *scores, elsewhere = (one[name] for one in found)
        assert falls(scores), f"{name}: {scores}"
        assert abs(elsewhere - scores[0]) < (scores[0] - scores[3]) / 4


def test_prompts_that_are_ignored_cost_what_measures_prompts(eyes: Eyes, perfect: Evidence) -> None:
    plain = [shown(DOG, scene_of(("plain", n), "gray")) for n in range(len(perfect.prompts))]
    found = on_the_ladder(perfect, seen(eyes, plain))
    for name in ("prompt_fidelity", "prompt_gain", "prompt_rank", "attributes"):
        scores = [one[name] for one in found]
        assert falls(scores), f"{name}: {scores}"
    # the subject itself is as good as ever: identity alone would promote this model
    assert found[3]["identity"] > found[0]["identity"] - 0.05


def test_the_photos_again_are_more_copies_and_less_diverse(eyes: Eyes, perfect: Evidence) -> None:
    soft = [
        one._replace(picture=one.picture.filter(ImageFilter.GaussianBlur(0.5))) for one in PHOTOS
    ]
    places = [n // SEEDS for n in range(len(perfect.prompts))]
    kept = seen(eyes, soft)
    copies = ImageEmbeddings(
        rows={sight: rows[places] for sight, rows in kept.rows.items()},
        pictures=[kept.pictures[place] for place in places],
        spots=tuple(kept.spots[place] for place in places),
    )
    found = on_the_ladder(perfect, copies)
    assert [one["memorisation"] for one in found] == pytest.approx(LADDER)
    assert found[3]["diversity"] == pytest.approx(0, abs=1e-9)
    assert found[3]["diversity"] < found[0]["diversity"] / 2
    # nothing looks more like the photos than they do: identity alone would promote this one as well
    assert found[3]["subject_fidelity"] > found[0]["subject_fidelity"] - 0.05


def test_a_class_that_becomes_the_subject_drifts(eyes: Eyes, perfect: Evidence) -> None:
    strangers, fallen = perfect.base_classes, seen(eyes, members([DOG] * 8), ALL[:2])
    found = [
        means(
            replace(perfect, classes=picked(strangers, fallen, [n < 8 * share for n in range(8)]))
        )
        for share in LADDER
    ]
    for name in ("prior_drift", "pres"):
        assert falls([-one[name] for one in found])
    assert found[3]["prior_drift"] == pytest.approx(1, abs=0.15)
    assert found[3]["class_diversity"] < 0.1


def test_cropping_helps_against_an_impostor_on_the_photos_own_background(eyes: Eyes) -> None:
    """Whose CLIP is nearer to a photo: the subject elsewhere, or another one where it was taken?"""
    rng = random.Random(5)
    photos, elsewhere, impostors = [], [], []
    for _ in range(32):
        own = random_identity(rng, rng.choice(["robot", "dog", "teapot"]))
        other = own._replace(
            pattern=rng.choice([p for p in PATTERNS if p != own.pattern]),
            second=random_identity(rng, own.class_noun).second,
        )
        view = random_scene(rng, accessory_share=0)
        photos.append(shown(own, view))
        elsewhere.append(shown(own, random_scene(rng, accessory_share=0)))
        same = random_scene(rng, view.background, accessory_share=0)._replace(decor=view.decor)
        impostors.append(shown(other, same))
    found = seen(eyes, [*photos, *elsewhere, *impostors], ALL[2:])
    right = {}
    for sight, rows in found.rows.items():
        held, same, fake = rows[:32], rows[32:64], rows[64:]
        right[sight] = float((((same - fake) * held).sum(axis=1) > 0).mean())
    assert right["clip", "crop"] >= right["clip", "whole"] + 0.1, right
