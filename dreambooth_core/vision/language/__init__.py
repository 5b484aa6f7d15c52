"""Vision-language models: pictures and a question in, a checked answer out.

Nothing is sent anywhere unless a config names an endpoint.

    pictures    pixels alone, of a bounded size, as they are sent
    answers     the JSON in what a model wrote, held against the schema it was asked for
    openai_compatible    servers with OpenAI's chat interface: Z.ai's, vLLM's, SGLang's, transformers'
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from PIL.Image import Image

A = TypeVar("A", bound=BaseModel)


class VisionModel(Protocol):
    """Answers questions about pictures."""

    def ask(self, images: "Sequence[Image]", question: str, schema: type[A]) -> A:
        """What the model says of the pictures, which it is shown in this order.

        Raises `Unanswered` when nothing that fits the schema came back, which may be otherwise with
        the next question, and another `StageFailed` when no question will be answered.
        """
        ...
