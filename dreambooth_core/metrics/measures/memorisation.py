"""Memorisation: generated images that are near copies of a training photo."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from PIL.Image import Image

from dreambooth_core.config import Config, Kind
from dreambooth_core.metrics import EmbeddingKey, Evidence, ImageEmbeddings, Values
from dreambooth_core.vision.crops import detector_digest, without_subject
from dreambooth_core.vision.nearest import nearest_hashes
from dreambooth_core.vision.similarity import Fingerprint, alike, difference_hash, fingerprint

TITLE = "near copies"
ABOUT = "share of the images that are near copies of a photo, mirrored or not, 0 to 1"
RANGE = (0.0, 1.0)
HIGHER_IS_BETTER = False
OF = "prompts"
OF_PHOTOS = False
SKIPS: frozenset[Kind] = frozenset()
EMBEDDING: EmbeddingKey | None = None

SIMILAR = 0.84
"""Highest similarity of the surroundings of two photos of one real subject (`vision.similarity`)."""
SAME_PHOTO = 0.95
"""Photos with surroundings more similar than this are one photo twice, and do not raise the limit."""
BITS = 6
"""Perceptual hashes of 64 bits that differ in at most this many bits are of one picture."""


class PhotoSimilarity(NamedTuple):
    """Similarity of n images to m photos."""

    surroundings: NDArray[np.float64]
    """(n, m) similarity without the subject, mirrored or not; nan where a subject was not found."""
    closest: NDArray[np.intp]
    """(n,) photo whose hash is nearest to the whole image's, mirrored or not; the first of equals."""
    bits: NDArray[np.int64]
    """(n,) differing bits of the two hashes."""


def model(config: Config) -> str:
    """Digest of the detector by which the subject is removed."""
    digest = detector_digest(config.evaluation.detector, config.vision)
    return f"surroundings-{(digest or 'none')[:12]}"


def measure(evidence: Evidence) -> Values | None:
    """1 for a near copy of a photo, else 0; nan where the subject to remove was not found.

    A near copy has the surroundings of a photo (the subject is expected to be similar), or equals
    the whole photo up to a few bits. The limits are raised to what two different photos, or an image
    of the base and a photo, reach. The base itself scores 0.
    """
    if not evidence.generated.images or not evidence.photos.images:
        return None
    if evidence.generated is evidence.base:
        return np.zeros(len(evidence.generated.images))
    found = _similarity(evidence.generated, evidence.photos)
    copied = _copied(found, evidence)
    known = ~np.isnan(found.surroundings).all(axis=1) | (evidence.generated.regions is None)
    return np.where(copied, 1.0, np.where(known, 0.0, np.nan))


def copied_photo(evidence: Evidence, index: int) -> int:
    """Index of the photo most similar to the near copy `index`."""
    images, regions = evidence.generated.images, evidence.generated.regions
    one = ImageEmbeddings(
        images=images[index : index + 1],
        regions=None if regions is None else regions[index : index + 1],
    )
    found = _similarity(one, evidence.photos)
    if found.bits[0] <= BITS:
        return int(found.closest[0])
    return int(np.nanargmax(found.surroundings))


def _copied(found: PhotoSimilarity, evidence: Evidence) -> NDArray[np.bool_]:
    """(images,), true for a near copy of any photo."""
    similarities, bits = [SIMILAR], [BITS + 1]
    among = _similarity(evidence.photos, evidence.photos).surroundings
    similarities += among[~np.eye(len(among), dtype=np.bool_) & (among < SAME_PHOTO)].tolist()
    if evidence.base.images:
        of_base = _similarity(evidence.base, evidence.photos)
        similarities += of_base.surroundings[~np.isnan(of_base.surroundings)].tolist()
        bits.append(int(of_base.bits.min()))
    surroundings = (found.surroundings > max(similarities)).any(axis=1)
    return np.asarray(surroundings | (found.bits < min(bits)))


def _similarity(images: ImageEmbeddings, photos: ImageEmbeddings) -> PhotoSimilarity:
    ours, theirs = _surroundings(images), _surroundings(photos)
    views = [view for photo in photos.images for view in (photo, ImageOps.mirror(photo))]
    closest, bits = nearest_hashes(_hashes(images.images), _hashes(views))
    return PhotoSimilarity(
        surroundings=np.array([[_score(a, b) for b in theirs] for a in ours]),
        closest=closest // 2,
        bits=bits,
    )


def _hashes(images: Iterable[Image]) -> NDArray[np.bool_]:
    return np.array([difference_hash(image) for image in images])


def _surroundings(images: ImageEmbeddings) -> list[Fingerprint | None]:
    """Fingerprint of each image without its subject; None where the subject was not found."""
    regions = images.regions or (None,) * len(images.images)
    return [
        None if region is None else fingerprint(without_subject(image, region))
        for image, region in zip(images.images, regions, strict=True)
    ]


def _score(first: Fingerprint | None, second: Fingerprint | None) -> float:
    return np.nan if first is None or second is None else alike(first, second).score
