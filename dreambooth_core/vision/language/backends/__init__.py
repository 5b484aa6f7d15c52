"""Backends of vision-language models, one file each.

A new backend is one new file here with `open(config: Vision, account: Account) -> Backend`;
`vision.backend` names it.
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
    """What a model wrote next."""

    text: str
    """Without reasoning."""
    reasoning: str
    usage: Usage
    cut: bool = False
    """Whether it ended at `vision.max_tokens`."""
    requests: int = 1


class Backend(Protocol):
    """Continues conversations; may be called from several threads at once.

    Methods raise `Unanswered` where another question may be answered, and another `StageFailed`
    where no question will be.
    """

    def complete(
        self, messages: Sequence[EncodedMessage], schema: type[BaseModel] | None
    ) -> Completion:
        """The model's next message; the schema is a request that the result need not fulfil."""
        ...

    def first_token(
        self, messages: Sequence[EncodedMessage], labels: Sequence[str]
    ) -> list[float] | None:
        """Probability of each label (one token) as the model's first token, with reasoning off.

        They sum to 1 at most. None where the backend has no probabilities.
        """
        ...

    def close(self) -> None:
        """Free connections and memory; the backend is not used afterwards."""
        ...


def open_backend(config: Vision, account: Account) -> Backend:
    """The backend of a config; raises `ConfigError` where it has none, or lacks its key."""
    if config.backend is None:
        raise ConfigError("no vision-language model is configured: set vision.backend and model")
    backend: Backend = plugins.load(__name__, config.backend).open(config, account)
    return backend
