"""Questions of the capabilities and the schemas of their answers, of the functions that ask them in a run."""

from pydantic import BaseModel, Field

from dreambooth_core.data.documents.cards import CARD, CardAnswer
from dreambooth_core.data.second_opinion import (
    NOUN,
    OVERLAID,
    SAME,
    SHOWN,
    VISIBLE,
    ClassNoun,
    OddOnes,
    Overlays,
    Remark,
    Visibility,
)
from dreambooth_core.data.video_frames import FIRST, LATER, FrameVerdict
from dreambooth_core.metrics.measures.checklist import TEMPLATE as CHECKLIST
from dreambooth_core.metrics.vlm_judge import YesNo

__all__ = [
    "CARD",
    "CHECKLIST",
    "FIRST",
    "LATER",
    "NOUN",
    "OVERLAID",
    "PROMPTS",
    "SAME",
    "SHOWN",
    "VISIBLE",
    "CardAnswer",
    "ClassNoun",
    "FrameVerdict",
    "OddOnes",
    "Overlays",
    "Prompts",
    "Remark",
    "Visibility",
    "YesNo",
]

PROMPTS = "Write {count} prompts for images of a {noun}, each in another place. {card}"
"""Shorter than the questions of `evaluation.prompt_writing`, for small models."""


class Prompts(BaseModel):
    """Prompts for images of one subject, with `{subject}` in its place."""

    prompts: tuple[str, ...] = Field(min_length=1)
