"""Finding about a class noun that the photos do not show, by a packaged identity encoder's classifier."""

from collections.abc import Sequence

from PIL.Image import Image

from dreambooth_core.data.findings import FOLDER, Finding
from dreambooth_core.vision.class_nouns import LEAST, Classifier, check_noun


def noun_findings(
    classifier: Classifier | None, photos: Sequence[Image], noun: str
) -> list[Finding]:
    """A soft finding if too few photos show the noun; none without a classifier or a label for it."""
    checked = check_noun(classifier, photos, noun) if classifier else None
    if checked is None or checked.passed:
        return []
    return [
        Finding(
            level="soft",
            file=FOLDER,
            check="class noun",
            measure=checked.sentence("photos"),
            limit=f"at least {LEAST:.0%} of the photos",
            remedy="check subject.class_noun; ignore this for an unusual subject",
        )
    ]
