"""Was the prompt followed? CLIP-T of the DreamBooth paper (section 4.1)."""

from dreambooth_core.metrics import Evidence

OF_PHOTOS = False


def measure(evidence: Evidence) -> float:
    """Mean cosine of each generated image with its own prompt, in [-1, 1]; higher is better.

    The prompt stands without the identifier token, which CLIP has never learned.
    """
    return float((evidence.clip_generated * evidence.clip_texts).sum(axis=1).mean())
