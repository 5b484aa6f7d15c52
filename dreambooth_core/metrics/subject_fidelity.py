"""Is it this very subject? DINO's measure of the DreamBooth paper (section 4.1)."""

from dreambooth_core.metrics import Evidence, mean_cosine

OF_PHOTOS = True


def measure(evidence: Evidence) -> float:
    """Mean pairwise cosine of the identity encoder's embeddings, generated against photos, [-1, 1].

    Higher is better. Ruiz et al. 2023: DINO ViT-S/16, trained without labels, does not learn to
    overlook what tells two subjects of one class apart, as CLIP-I does.
    """
    return mean_cosine(evidence.identity_generated, evidence.identity_instance)
