"""Is it a new picture, or one of the photos again?"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from PIL.Image import Image

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import Evidence, ImageEmbeddings, Sight, Values
from dreambooth_core.vision.crops import detector_digest, without
from dreambooth_core.vision.similarity import Fingerprint, alike, difference_hash, fingerprint

TITLE = "near copies"
ABOUT = "share of the images that are one of the photos again, mirrored or not, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = False
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
SEES: Sight | None = None

ALIKE = 0.84
"""Two photos of one real subject have surroundings at most so alike (see `similarity`)."""
TWINS = 0.95
"""Photos that are more alike than this are one photo twice, and say nothing about different ones."""
BITS = 6
"""Perceptual hashes of 64 bits that differ in so many are of one picture."""


class PhotoSimilarity(NamedTuple):
    """How close each of n pictures is to each of m photos."""

    surroundings: NDArray[np.float64]
    """(n, m) `likeness` without the subject, mirrored or not; nan where it is not known."""
    bits: NDArray[np.int64]
    """(n, m) different bits of the whole pictures' hashes, mirrored or not."""


def model(config: Config) -> str:
    """Who finds the subject that is left out."""
    return f"surroundings-{(detector_digest(config.evaluation.detector) or 'nobody')[:12]}"


def measure(evidence: Evidence) -> Values | None:
    """1 for a near copy of a photo, else 0; nan where the subject was not found to be left out.

    A near copy shows the surroundings of a photo, for the subject is meant to be alike, or the whole
    of it to a few bits. What two different photos reach as well, or the untouched base, which never
    saw them, is no sign of a copy: the limits are raised to that. The base itself scores 0.
    """
    if not evidence.generated.pictures or not evidence.photos.pictures:
        return None
    if evidence.generated is evidence.base:
        return np.zeros(len(evidence.generated.pictures))
    found = _kinship(evidence.generated, evidence.photos)
    copied = _copied(found, evidence).any(axis=1)
    looked = ~np.isnan(found.surroundings).all(axis=1) | (evidence.generated.spots is None)
    return np.where(copied, 1.0, np.where(looked, 0.0, np.nan))


def copied_photo(evidence: Evidence, place: int) -> int:
    """Which photo the near copy at `place` is nearest to."""
    found = _kinship(_only(evidence.generated, place), evidence.photos)
    if (found.bits <= BITS).any():
        return int(found.bits.argmin())
    return int(np.nanargmax(found.surroundings))


def _copied(found: PhotoSimilarity, evidence: Evidence) -> NDArray[np.bool_]:
    """(images, photos), true where one is a near copy of the other."""
    alike_ones, few = [ALIKE], [BITS + 1]
    among = _kinship(evidence.photos, evidence.photos).surroundings
    alike_ones += among[~np.eye(len(among), dtype=np.bool_) & (among < TWINS)].tolist()
    if evidence.base.pictures:
        of_base = _kinship(evidence.base, evidence.photos)
        alike_ones += of_base.surroundings[~np.isnan(of_base.surroundings)].tolist()
        few.append(int(of_base.bits.min()))
    return np.asarray((found.surroundings > max(alike_ones)) | (found.bits < min(few)))


def _kinship(seen: ImageEmbeddings, photos: ImageEmbeddings) -> PhotoSimilarity:
    rests, photo_rests = _rests(seen), _rests(photos)
    hashes = [difference_hash(picture) for picture in seen.pictures]
    known = [difference_hash(one) for photo in photos.pictures for one in _both(photo)]
    bits = (np.array(hashes)[:, None] != np.array(known)[None, :]).sum(axis=2)
    return PhotoSimilarity(
        surroundings=np.array([[_likeness(a, b) for b in photo_rests] for a in rests]),
        bits=bits.reshape(len(hashes), -1, 2).min(axis=2),
    )


def _rests(seen: ImageEmbeddings) -> list[Fingerprint | None]:
    """What is left of each picture without its subject; None where that is not known."""
    spots = seen.spots or (None,) * len(seen.pictures)
    return [
        None if spot is None else fingerprint(without(picture, spot))
        for picture, spot in zip(seen.pictures, spots, strict=True)
    ]


def _likeness(first: Fingerprint | None, second: Fingerprint | None) -> float:
    return np.nan if first is None or second is None else alike(first, second).score


def _both(image: Image) -> tuple[Image, Image]:
    return image, ImageOps.mirror(image)


def _only(seen: ImageEmbeddings, place: int) -> ImageEmbeddings:
    spots = None if seen.spots is None else seen.spots[place : place + 1]
    return ImageEmbeddings(pictures=seen.pictures[place : place + 1], spots=spots)
