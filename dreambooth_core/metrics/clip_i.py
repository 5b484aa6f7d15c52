"""Does it look alike? CLIP-I of Gal et al. 2022 and the DreamBooth paper (section 4.1)."""

from dreambooth_core.metrics import Evidence, mean_cosine

OF_PHOTOS = True


def measure(evidence: Evidence) -> float:
    """Mean pairwise cosine of CLIP's image embeddings, generated against photos, in [-1, 1].

    Higher is better, though backgrounds count as well.
    """
    return mean_cosine(evidence.clip_generated, evidence.clip_instance)
