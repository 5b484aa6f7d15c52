"""`dreambooth validate` with models: the masks' contact sheet, and the check of the class noun."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from dreambooth_core.config import Config, Dataset, Detector, Subject
    from dreambooth_core.data.findings import Validation
    from dreambooth_core.data.mask_sheets import MaskedPhoto

NOUN_ENCODER = "builtin:efficientnet_lite2"
"""Whose classifier checks the noun by default."""


@dataclass(frozen=True)
class ShownMasks:
    """The masks that were written as a contact sheet."""

    file: Path
    kind: str
    """Of the detector."""
    ignores_noun: bool
    noun: str
    photos: "list[MaskedPhoto]"

    @property
    def note(self) -> str:
        """What the detector marks."""
        if self.ignores_noun:
            return (
                f"Detector {self.kind} marks the most salient object and ignores the class noun "
                f"{self.noun}: look at the masks"
            )
        return f"Detector {self.kind} marks the class noun {self.noun}"

    @property
    def rows(self) -> list[list[str]]:
        """Name, share and source of each mask, for a table."""
        return [
            [str(row["file"]), f"{photo.share:.0%}", str(row["mask"])]
            for photo in self.photos
            for row in [photo.as_json()]
        ]

    def as_json(self) -> dict[str, object]:
        return {
            "file": str(self.file),
            "detector": self.kind,
            "ignores_noun": self.ignores_noun,
            "photos": [photo.as_json() for photo in self.photos],
        }


def with_masks(
    found: "Validation",
    folder: Path,
    rules: "Dataset",
    subject: "Subject",
    config: "Config | None",
    target: Path,
) -> "tuple[Validation, ShownMasks]":
    """Write the contact sheet; findings about photos without a mask are added.

    By the config's detector, else by saliency. Raises `ConfigError` for a target that cannot be
    written, `ModelError` for a missing detector.
    """
    from dreambooth_core.data import mask_sheets
    from dreambooth_core.vision.detectors import ignores_noun, load_detector

    wanted, noun = _detector(config), subject.class_noun
    detector, kind = load_detector(wanted), wanted.kind
    assert detector is not None
    assert kind is not None
    photos = list(mask_sheets.masked_photos(found, folder, rules, detector, noun))
    try:
        target.write_bytes(mask_sheets.sheet(photos))
    except OSError as error:
        raise ConfigError(
            f"--masks {target} cannot be written ({error.strerror}): name a file in an existing folder"
        ) from error
    remarks = mask_sheets.without_subject(photos, noun)
    shown = ShownMasks(target, kind, ignores_noun(kind), noun, photos)
    return found.model_copy(update={"findings": (*found.findings, *remarks)}), shown


def with_noun_check(
    found: "Validation",
    folder: Path,
    rules: "Dataset",
    subject: "Subject",
    config: "Config | None",
    asked: bool,
) -> "Validation":
    """The validation with a finding if the photos do not show the class noun.

    As in a run: if the config's identity encoder has a classifier; or if `asked`.
    """
    from dreambooth_core.vision.class_nouns import load_classifier

    named = config.evaluation.identity if config else ""
    classifier = load_classifier(named) or (load_classifier(NOUN_ENCODER) if asked else None)
    if classifier is None or found.refused:
        return found
    from dreambooth_core.data import files, images
    from dreambooth_core.data.findings import printable
    from dreambooth_core.data.noun_checks import noun_findings

    photos = [
        images.decode(path.read_bytes(), rules.max_pixels).image
        for path in files.candidates(folder, [])[0]
        if printable(path.name) in found.accepted
    ]
    remarks = noun_findings(classifier, photos, subject.class_noun)
    return found.model_copy(update={"findings": (*found.findings, *remarks)})


def _detector(config: "Config | None") -> "Detector":
    """The config's detector if it has one, else saliency."""
    from dreambooth_core.config import Detector

    own = config.evaluation.detector if config else None
    return own if own is not None and own.kind is not None else Detector(kind="saliency")
