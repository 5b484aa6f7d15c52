"""Saliency and the packaged identity encoder on real photos: under three minutes of CPU time.

    python -m benchmarks.real_photos --photos FOLDER [--masks FOLDER]

FOLDER is laid out like google/dreambooth: a folder of photos per subject, and prompts_and_classes.txt.
Nothing is downloaded. Results are written to real_photos.json beside this file, and their table into
docs/real-photos.md; `--masks` writes a contact sheet of masks per subject.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dreambooth_core.cli.bench.subjects import BenchSubject, subjects_in
from dreambooth_core.config import Dataset, Detector
from dreambooth_core.data import mask_sheets
from dreambooth_core.data.dataset import validate
from dreambooth_core.evaluation.sanity_checks import sanity_check
from dreambooth_core.metrics import Evidence, ImageEmbeddings
from dreambooth_core.vision import class_nouns
from dreambooth_core.vision.crops import crop, regions, subject_area, without_subject
from dreambooth_core.vision.detectors import Region, load_detector
from dreambooth_core.vision.embeddings import Embeddings
from dreambooth_core.vision.identity_encoders import IdentityEncoder, load_identity_encoder

ENCODER = "builtin:efficientnet_lite2"
LARGEST = 640
"""Longer side in pixels to which photos are reduced before anything else."""
COARSE = 64
"""Shorter side to which pictures in place of generated images are reduced, then enlarged again."""
RESULT = Path(__file__).with_name("real_photos.json")
PAGE = Path(__file__).parent.parent / "docs" / "real-photos.md"
START, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


@dataclass(frozen=True)
class Photos:
    """All subjects' photos, in one order."""

    subjects: tuple[BenchSubject, ...]
    images: list[Image.Image]
    owners: list[int]
    """Index of each photo's subject."""
    names: list[str]

    def number(self, index: int) -> int:
        """Position of a photo among its subject's."""
        return index - self.owners.index(self.owners[index])


@dataclass(frozen=True)
class Views:
    """Embeddings of the views of all photos, nan rows where no subject was found."""

    whole: Embeddings
    crop: Embeddings
    surroundings: Embeddings
    """Of the photo with the subject painted over."""
    swapped_whole: Embeddings
    """Of the subject on other surroundings: different ones for the photos of one subject, the same ones
    for one photo of every subject."""
    swapped_crop: Embeddings
    """Of that picture's crop by the photo's region."""
    found_again: Embeddings
    """Of that picture's crop by the region that the detector finds in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--masks", type=Path, help="folder for contact sheets of the masks")
    given = parser.parse_args()
    started = time.monotonic()
    result = measure(read(given.photos))
    print(f"{time.monotonic() - started:.0f} s")
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(page, table(result)), encoding="utf-8")
    print(table(result))
    if given.masks is not None:
        write_masks(given.photos, given.masks)


def read(folder: Path) -> Photos:
    """The photos of every subject in `folder`, upright RGB, reduced to `LARGEST`."""
    subjects = subjects_in(folder)
    images, owners, names = [], [], []
    for index, subject in enumerate(subjects):
        for path in sorted(subject.folder.glob("*.jpg")):
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
            images.append(image)
            owners.append(index)
            names.append(f"{subject.name}/{path.name}")
    return Photos(subjects, images, owners, names)


def measure(photos: Photos) -> dict[str, Any]:
    """All measurements, for JSON."""
    detector = load_detector(Detector(kind="saliency"))
    found = regions(detector, photos.images, "subject")
    donors = [index for index in range(len(photos.images)) if photos.number(index) == 0]
    swapped = [
        composite(image, region, photos.images[donor], found[donor])
        for index, (image, region) in enumerate(zip(photos.images, found, strict=True))
        for donor in [donors[photos.number(index) % len(donors)]]
    ]
    views = _views(photos, found, swapped, regions(detector, swapped, "subject"))
    owners = np.array(photos.owners)
    return {
        "photos": len(photos.images),
        "subjects": len(photos.subjects),
        "masks": sum(region is not None for region in found),
        "top1": {
            "whole photo": top1(views.whole, views.whole, owners),
            "crop": top1(views.crop, views.crop, owners),
            "surroundings": top1(views.surroundings, views.surroundings, owners),
            "whole photo, surroundings swapped": top1(
                views.swapped_whole, views.swapped_whole, owners
            ),
            "crop, surroundings swapped": top1(views.swapped_crop, views.swapped_crop, owners),
            "crop found again, surroundings swapped": top1(
                views.found_again, views.found_again, owners
            ),
        },
        "sanity_warnings": _sanity_warnings(photos, found, swapped, views.crop),
        "class_nouns": _class_nouns(photos),
        "share": {
            name: round(_share(region, image), 3)
            for name, region, image in zip(photos.names, found, photos.images, strict=True)
        },
    }


def top1(queries: Embeddings, gallery: Embeddings, owners: np.ndarray) -> float:
    """Share of queries whose nearest row of the gallery, their own row left out, has their owner.

    A row of nan is never nearest, and as a query it is wrong.
    """
    cosines = np.nan_to_num(queries @ gallery.T, nan=-2.0)
    np.fill_diagonal(cosines, -3.0)
    right = owners[cosines.argmax(axis=1)] == owners
    return round(float((right & np.isfinite(queries).all(axis=1)).mean()), 3)


def composite(
    image: Image.Image, region: Region | None, donor: Image.Image, donor_region: Region | None
) -> Image.Image:
    """The subject on another photo's surroundings; the image itself without a region."""
    if region is None or donor_region is None:
        return image
    surroundings = without_subject(donor, donor_region).resize(image.size)
    area = region.mask if region.mask is not None else subject_area(region, image.size[::-1])
    surroundings.paste(image, mask=Image.fromarray(area))
    return surroundings


def table(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    lines = [
        f"{result['subjects']} subjects, {result['photos']} photos; {result['masks']} have a mask.",
        "",
        "| embedded | nearest other photo is of the same subject |",
        "|---|---|",
        *(f"| {name} | {share:.3f} |" for name, share in result["top1"].items()),
        "",
        "| subject | class noun | photos with the noun in ImageNet's top 5 | sanity checks |",
        "|---|---|---|---|",
    ]
    for name, row in result["class_nouns"].items():
        shown = "no label" if row["shown"] is None else f"{row['shown']} of {row['photos']}"
        warnings = result["sanity_warnings"][name]
        lines.append(f"| {name} | {row['noun']} | {shown} | {len(warnings) or 'no'} warnings |")
    return "\n".join(lines) + "\n"


def written(page: str, text: str) -> str:
    """The page with `text` between its markers."""
    before, _, rest = page.partition(START)
    return before + START + text + END + rest.partition(END)[2]


def write_masks(photos: Path, target: Path) -> None:
    """A contact sheet of masks per subject."""
    detector, rules = load_detector(Detector(kind="saliency")), Dataset()
    assert detector is not None
    target.mkdir(parents=True, exist_ok=True)
    for subject in subjects_in(photos):
        checked = validate(subject.folder, rules, 32)
        masked = mask_sheets.masked_photos(
            checked, subject.folder, rules, detector, subject.class_noun
        )
        (target / f"{subject.name}.png").write_bytes(mask_sheets.sheet(list(masked)))


def _views(
    photos: Photos,
    found: Sequence[Region | None],
    swapped: Sequence[Image.Image],
    found_again: Sequence[Region | None],
) -> Views:
    painted = [
        without_subject(image, region) if region else image
        for image, region in zip(photos.images, found, strict=True)
    ]
    return Views(
        whole=_embed(photos.images),
        crop=_embed_crops(photos.images, found),
        surroundings=_embed(painted),
        swapped_whole=_embed(swapped),
        swapped_crop=_embed_crops(swapped, found),
        found_again=_embed_crops(swapped, found_again),
    )


@functools.cache
def _encoder() -> IdentityEncoder:
    return load_identity_encoder(ENCODER, None, "paper")


def _embed(images: Sequence[Image.Image]) -> Embeddings:
    return _encoder().identity_images(images)


def _embed_crops(images: Sequence[Image.Image], found: Sequence[Region | None]) -> Embeddings:
    """(images, d), nan without a region."""
    known = [index for index, region in enumerate(found) if region is not None]
    rows = _embed([crop(images[n], region) for n in known if (region := found[n]) is not None])
    whole = np.full((len(images), rows.shape[1]), np.nan)
    whole[known] = rows
    return whole


def _sanity_warnings(
    photos: Photos,
    found: Sequence[Region | None],
    swapped: Sequence[Image.Image],
    rows: Embeddings,
) -> dict[str, tuple[str, ...]]:
    """Subject -> warnings of a run's sanity checks.

    Every second photo is the subject's; the others, on other surroundings and coarse, take the place of
    generated images, and photos of other subjects of the class, if any, that of the base's class images.
    `rows` are the crops' embeddings.
    """
    generated = _embed_crops([_coarse(image) for image in swapped], found)
    key = ("identity", "crop")
    result: dict[str, tuple[str, ...]] = {}
    for index, subject in enumerate(photos.subjects):
        own = [n for n, owner in enumerate(photos.owners) if owner == index]
        same = _photos_of(
            photos, lambda other, s=subject: other.class_noun == s.class_noun and other != s
        )
        rest = _photos_of(photos, lambda other, s=subject: other.class_noun != s.class_noun)
        held_out = own[1::2]
        evidence = Evidence(
            generated=ImageEmbeddings({key: generated[held_out]}),
            photos=ImageEmbeddings({key: rows[own[::2]]}),
            base_classes=ImageEmbeddings({key: rows[same]} if same else {}),
            kinds=("scene",) * len(held_out),
        )
        others = {"photos of other classes": ImageEmbeddings({key: rows[rest]})}
        result[subject.name] = sanity_check(evidence, others, {})
    return result


def _photos_of(photos: Photos, wanted: Any) -> list[int]:
    """Indices of the photos whose subject is wanted."""
    return [n for n, owner in enumerate(photos.owners) if wanted(photos.subjects[owner])]


def _coarse(image: Image.Image) -> Image.Image:
    """The image with the details of one whose shorter side is `COARSE`."""
    scale = COARSE / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)))
    return small.resize(image.size)


def _class_nouns(photos: Photos) -> dict[str, dict[str, Any]]:
    """Subject -> noun, photos, and how many show it; None for a noun without a label."""
    classifier = class_nouns.load_classifier(ENCODER)
    assert classifier is not None
    labels = classifier.likeliest_labels(photos.images)
    result: dict[str, dict[str, Any]] = {}
    for index, subject in enumerate(photos.subjects):
        own = [labels[n] for n, owner in enumerate(photos.owners) if owner == index]
        wanted = class_nouns.labels_of(subject.class_noun)
        result[subject.name] = {
            "noun": subject.class_noun,
            "photos": len(own),
            "shown": sum(not wanted.isdisjoint(each) for each in own) if wanted else None,
        }
    return result


def _share(region: Region | None, image: Image.Image) -> float:
    """Share of the image that a mask covers."""
    if region is None or region.mask is None:
        return 0.0
    return float(region.mask.sum()) / (image.width * image.height)


if __name__ == "__main__":
    main()
