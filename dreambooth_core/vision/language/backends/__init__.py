"""Backends of vision-language models, one file each.

To add one, add a file with `open(config: Vision, account: Account) -> Backend` to this folder;
`vision.backend` selects it by file name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from dreambooth_core import plugins
from dreambooth_core.config import Vision
from dreambooth_core.errors import ConfigError
from dreambooth_core.vision.language.answers import Usage
from dreambooth_core.vision.language.messages import EncodedMessage
from dreambooth_core.vision.language.spending import Account


@dataclass(frozen=True)
class Completion:
    """One response of a model."""

    text: str
    """Without reasoning."""
    reasoning: str
    usage: Usage
    cut: bool = False
    """Whether it was cut off at `vision.max_tokens`."""
    requests: int = 1


class Backend(Protocol):
    """Generates responses; thread-safe.

    Methods raise `Unanswered` when this request failed but others may succeed, and any other
    `StageFailed` when no request can succeed.
    """

    def complete(
        self, messages: Sequence[EncodedMessage], schema: type[BaseModel] | None
    ) -> Completion:
        """The next message; the schema is a hint for constrained decoding, the result may violate it."""
        ...

    def first_token(
        self, messages: Sequence[EncodedMessage], labels: Sequence[str]
    ) -> list[float] | None:
        """Probability of each label (one token) as first token, with reasoning off.

        Their sum is at most 1. None if the backend has no probabilities.
        """
        ...

    def close(self) -> None:
        """Release connections and memory; the backend cannot be used afterwards."""
        ...


def open_backend(config: Vision, account: Account) -> Backend:
    """The backend of a config; raises `ConfigError` without a backend or its key."""
    if config.backend is None:
        raise ConfigError("no vision-language model is configured: set vision.backend and model")
    backend: Backend = plugins.load(__name__, config.backend).open(config, account)
    return backend
