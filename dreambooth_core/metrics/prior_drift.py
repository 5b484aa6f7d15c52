"""Did the class noun come to mean the subject? DreamBooth's PRES (section 4.3), scaled."""

from dreambooth_core.metrics import Evidence, mean_cosine

OF_PHOTOS = False
NARROWEST = 0.01
"""Smallest gap between class images and photos to divide by: below it the encoder sees none."""


def measure(evidence: Evidence) -> float:
    """(PRES - PRES of the base) / (photos among themselves - PRES of the base); lower is better.

    PRES is the mean pairwise cosine of the identity encoder's embeddings, images of the class
    prompt against the photos. 0: the class noun means what it meant to the base, whose own drift is
    0 by definition; 1: its images are as close to the photos as the photos are to each other. Below
    0 the class has moved away from the subject.
    """
    base = mean_cosine(evidence.identity_base_class, evidence.identity_instance)
    tuned = mean_cosine(evidence.identity_class, evidence.identity_instance)
    return (tuned - base) / max(_among_themselves(evidence) - base, NARROWEST)


def _among_themselves(evidence: Evidence) -> float:
    photos = evidence.identity_instance
    count = len(photos)
    if count < 2:
        return 1.0
    total = float((photos @ photos.T).sum()) - float((photos * photos).sum())
    return total / (count * (count - 1))
