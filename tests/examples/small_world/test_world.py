"""Renderer, masks, captions, tokenizer and shipped photos of the small world."""

import random
from pathlib import Path

import numpy as np
import pytest

from examples.small_world import make_photos
from examples.small_world.corpus import example, make_corpus, truth
from examples.small_world.render import (
    SIZE,
    part_boxes,
    part_masks,
    render,
    render_array,
    subject_mask,
)
from examples.small_world.shapes import CLASSES, WHITE
from examples.small_world.tokenizer import learn_merges, make_tokenizer
from examples.small_world.world import (
    BACKGROUNDS,
    COLORS,
    Faces,
    Identity,
    Named,
    Scene,
    describe,
    random_identity,
    random_scene,
)

SHIPPED = Path(make_photos.HERE) / "photos"


def test_world_has_at_least_12_classes_and_12_backgrounds() -> None:
    assert len(CLASSES) >= 12
    assert len(BACKGROUNDS) >= 12


@pytest.mark.parametrize("class_noun", CLASSES)
def test_render_is_a_function_of_its_arguments(class_noun: str) -> None:
    rng = random.Random(class_noun)
    identity, scene = random_identity(rng, class_noun), random_scene(rng)
    first, second = render_array(identity, scene), render_array(identity, scene)
    assert first.shape == (SIZE, SIZE, 3)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_differ_from_the_white_one(background: str) -> None:
    rng = random.Random(1)
    identity, scene = random_identity(rng, "mug"), random_scene(rng, background="white")
    plain = render_array(identity, scene).astype(int)
    other = render_array(identity, scene._replace(background=background)).astype(int)
    assert (np.abs(plain - other).mean() > 5) == (background != "white")


def test_mirror_mirrors_the_subject() -> None:
    identity = random_identity(random.Random(2), "teapot")
    scene = random_scene(random.Random(2), "white", accessory_share=0)
    scene = scene._replace(x=0.0, rotation=0.0, mirror=False)
    upright = render_array(identity, scene).astype(int)
    mirrored = render_array(identity, scene._replace(mirror=True)).astype(int)
    straight = np.abs(mirrored - upright).mean()
    assert np.abs(mirrored[:, ::-1] - upright).mean() < 0.3 * straight


def test_accessory_is_visible_in_its_colour() -> None:
    identity = random_identity(random.Random(3), "dog")
    scene = random_scene(random.Random(3), "white")._replace(accessory="hat", accessory_color="red")
    bare = render_array(identity, scene._replace(accessory=None)).astype(int)
    dressed = render_array(identity, scene).astype(int)
    changed = np.abs(dressed - bare).sum(-1) > 60
    assert changed.sum() > 20
    reds = np.abs(dressed[changed] - np.array(COLORS["red"])).sum(-1) < 60
    assert reds.mean() > 0.3


def test_captions_state_only_true_attributes() -> None:
    for index in range(300):
        identity, scene, captions = example("test", index)
        facts = truth(identity, scene)
        for caption in captions[1:]:
            pairs = zip(caption[1:], facts[1:], strict=True)
            assert all(stated in (None, true) for stated, true in pairs)
            words = caption.text.split()
            assert all(stated is None or stated in words for stated in caption[1:3])


def test_captions_drop_attributes() -> None:
    rng = random.Random(5)
    identity, scene = random_identity(rng, "cat"), random_scene(rng)
    colors = [describe(rng, identity, scene).color for _ in range(200)]
    assert 50 < sum(color is None for color in colors) < 150


def test_splits_have_different_identities() -> None:
    assert example("base", 0)[0] != example("clip", 0)[0]


def test_cached_corpus_equals_the_rendered_one(tmp_path: Path) -> None:
    made = make_corpus(tmp_path, "test", 12)
    read = make_corpus(tmp_path, "test", 12)
    assert np.array_equal(made.images, read.images)
    assert made.captions == read.captions
    assert np.array_equal(made.images[7], render_array(*example("test", 7)[:2]))


def test_shipped_photos_are_the_renderers_output(tmp_path: Path) -> None:
    make_photos.make_photos(tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.*")}
    shipped = {p.relative_to(SHIPPED): p.read_bytes() for p in SHIPPED.rglob("*.*")}
    assert made == shipped
    assert len(made) == 30


def test_frequent_words_are_one_token_and_printable_ascii_is_complete() -> None:
    texts = ["a photo of a robot on the beach"] * 50
    tokenizer = make_tokenizer(texts)
    assert tokenizer.tokenize("a robot") == ["a</w>", "robot</w>"]
    printable = "".join(chr(c) for c in range(33, 127))
    ids = tokenizer(printable).input_ids[1:-1]
    assert tokenizer.eos_token_id not in ids
    assert "sks" not in tokenizer.get_vocab()
    assert tokenizer("sks").input_ids != tokenizer("skt").input_ids


def test_rare_words_add_no_merges() -> None:
    merges = learn_merges(["robot"] * 999 + ["zyx"])
    assert all("z" not in a + b for a, b in merges)


def test_image_size_can_be_chosen() -> None:
    rng = random.Random(6)
    assert render(random_identity(rng, "car"), random_scene(rng), 128).size == (128, 128)


WITH_EYES = ("cat", "dog", "bird", "fish", "robot")
CYAN = (90, 235, 245)


def plain(class_noun: str, faces: Faces) -> tuple[Identity, Scene]:
    """A purple subject on yellow: eye colours are in no other part."""
    rng = random.Random(class_noun)
    purple = Named("purple", (0.0, 0.0, 0.0))
    identity = random_identity(rng, class_noun, faces)._replace(
        color=purple, second=purple, pattern="plain", extra=False
    )
    return identity, random_scene(rng, "yellow", accessory_share=0)._replace(scale=0.9)


@pytest.mark.parametrize("faces", ["small", "large"])
@pytest.mark.parametrize("class_noun", WITH_EYES)
def test_mask_of_eyes_has_eye_colours(class_noun: str, faces: Faces) -> None:
    identity, scene = plain(class_noun, faces)
    mask = part_masks(identity, scene)["eyes"]
    shown = render_array(identity, scene).astype(int)
    assert mask.sum() >= 8
    if class_noun == "robot":
        cyans, purples = (
            np.abs(shown[mask] - np.array(colour)).sum(-1) for colour in (CYAN, COLORS["purple"])
        )
        assert (cyans < purples).mean() > 0.9
    else:  # white, ink and the greys between
        assert (np.ptp(shown[mask], axis=-1) < 70).mean() > 0.9
    left, top, right, bottom = part_boxes(identity, scene)["eyes"]
    assert mask[top:bottom, left:right].sum() == mask.sum()
    if class_noun != "robot":
        whites = np.abs(shown - np.array(WHITE)).sum(-1) < 60
        assert whites[top:bottom, left:right].sum() == whites.sum() > 0


@pytest.mark.parametrize("class_noun", CLASSES)
def test_masks_of_parts_are_disjoint_and_within_the_subject(class_noun: str) -> None:
    rng = random.Random(class_noun)
    identity, scene = random_identity(rng, class_noun), random_scene(rng, accessory_share=1)
    masks = part_masks(identity, scene)
    hat = masks.pop("accessory")
    subject = subject_mask(identity, scene)
    assert sum(mask.astype(int) for mask in [hat, *masks.values()]).max() <= 2  # type: ignore[union-attr]
    assert not any((mask & ~subject).any() for mask in masks.values())
    assert ("face" in part_boxes(identity, scene)) == (class_noun in WITH_EYES)


def test_hidden_parts_have_an_empty_mask_and_no_box() -> None:
    identity, scene = plain("cat", "small")
    outside = scene._replace(x=5.0)
    assert not part_masks(identity, outside)["eyes"].any()
    assert part_boxes(identity, outside) == {}


@pytest.mark.parametrize("class_noun", CLASSES)
def test_large_faces_have_larger_eyes_and_leave_other_classes_unchanged(class_noun: str) -> None:
    (small, scene), (large, _) = plain(class_noun, "small"), plain(class_noun, "large")
    same = np.array_equal(render_array(small, scene), render_array(large, scene))
    assert same == (class_noun not in WITH_EYES)
    if not same:
        before, after = (part_masks(i, scene)["eyes"].sum() for i in (small, large))
        assert after > 1.5 * before
