"""Training data: images and captions of the small world, rendered in parallel and cached as arrays.

An image is a function of (split, index): splits share no subject, and a corpus does not depend on the
number of processes that render it.
"""

import json
import os
import random
import string
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.small_world.render import SIZE, render_array
from examples.small_world.shapes import CLASSES
from examples.small_world.world import (
    FACES,
    Caption,
    Faces,
    Identity,
    Scene,
    describe,
    random_identity,
    random_scene,
)

CAPTIONS_EACH = 3
RARE_WORD_SHARE = 0.08
"""Share of captions with a random word before the noun, which trains the base to ignore unknown words,
such as DreamBooth's identifier."""


class Corpus(NamedTuple):
    """Images as uint8 (n, 64, 64, 3), and per image its captions; the first has every attribute, no text."""

    images: NDArray[np.uint8]
    captions: list[list[Caption]]


def example(split: str, index: int, faces: Faces = FACES) -> tuple[Identity, Scene, list[Caption]]:
    """Identity, scene and captions of a split's `index`-th image; every image has its own identity."""
    rng = random.Random(f"{split}/{index}")
    identity = random_identity(rng, rng.choice(list(CLASSES)), faces)
    scene = random_scene(rng)
    captions = [_caption(rng, identity, scene) for _ in range(CAPTIONS_EACH)]
    return identity, scene, [truth(identity, scene), *captions]


def captions_of(split: str, index: int, faces: Faces = FACES) -> list[Caption]:
    """The captions of `example`; the first is `truth`."""
    return example(split, index, faces)[2]


def view(split: str, subject: int, number: int, class_noun: str | None = None) -> NDArray[np.uint8]:
    """The `number`-th image of a split's `subject`-th identity, uint8 (64, 64, 3)."""
    rng = random.Random(f"{split}/identity/{subject}")
    identity = random_identity(rng, class_noun or rng.choice(list(CLASSES)))
    scene = random_scene(random.Random(f"{split}/identity/{subject}/{number}"))
    return render_array(identity, scene)


def make_corpus(folder: Path, split: str, count: int) -> Corpus:
    """Render `count` images, or read them from `folder` if cached."""
    images_file, captions_file = folder / f"{split}-{count}.npy", folder / f"{split}-{count}.json"
    if not captions_file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = _in_parallel(partial(_render_chunk, split), count)
        np.save(images_file, np.concatenate([images for images, _ in chunks]))
        partial_file = captions_file.with_suffix(".partial")
        partial_file.write_text(json.dumps([row for _, rows in chunks for row in rows]))
        partial_file.rename(captions_file)
    rows = json.loads(captions_file.read_text())
    return Corpus(np.load(images_file), [[Caption(*c) for c in row] for row in rows])


def make_views(folder: Path, split: str, subjects: int, views: int) -> NDArray[np.uint8]:
    """Images of identities, uint8 (subjects, views, 64, 64, 3), cached in `folder`."""
    file = folder / f"{split}-{subjects}x{views}.npy"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = _in_parallel(partial(_view_chunk, split, views), subjects)
        partial_file = file.with_suffix(".partial.npy")
        np.save(partial_file, np.concatenate(chunks))
        partial_file.rename(file)
    return np.load(file)  # type: ignore[no-any-return]


def truth(identity: Identity, scene: Scene) -> Caption:
    """A caption with every attribute of the image, and an empty text."""
    patterned = identity.pattern != "plain"
    return Caption(
        "",
        class_noun=identity.class_noun,
        color=identity.color.name,
        second=identity.second.name if patterned else None,
        pattern=identity.pattern if patterned else None,
        accessory=scene.accessory,
        accessory_color=scene.accessory_color if scene.accessory else None,
        background=scene.background,
    )


def _caption(rng: random.Random, identity: Identity, scene: Scene) -> Caption:
    caption = describe(rng, identity, scene)
    if rng.random() >= RARE_WORD_SHARE:
        return caption
    word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 4)))
    noun = identity.class_noun
    text = caption.text.replace(f" {noun}", f" {word} {noun}", 1)
    return caption._replace(text=text.replace(f"a {word} {noun}", f"{word} {noun}"))


def _render_chunk(split: str, indices: range) -> tuple[NDArray[np.uint8], list[list[Caption]]]:
    images = np.empty((len(indices), SIZE, SIZE, 3), np.uint8)
    rows = []
    for row, index in enumerate(indices):
        identity, scene, captions = example(split, index)
        images[row] = render_array(identity, scene)
        rows.append(captions)
    return images, rows


def _view_chunk(split: str, views: int, subjects: range) -> NDArray[np.uint8]:
    return np.stack([[view(split, s, v) for v in range(views)] for s in subjects])


def _in_parallel(work, count: int, chunk: int = 500) -> list:  # type: ignore[no-untyped-def, type-arg]
    ranges = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, ranges))
