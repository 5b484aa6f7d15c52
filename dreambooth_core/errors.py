"""What can go wrong, as a tree a caller can act on.

    DreamBoothError          one root to catch broadly; `exit_code` is the command line's answer
    ├── ConfigError          2   a config, an option or an argument is wrong
    ├── DatasetRefused       3   the photos cannot be trained on
    ├── StageFailed          4   a stage of the run broke
    │   ├── StorageError         the store could not be reached, or its content is not what was put
    │   │   └── NotFound             there is no such object
    │   ├── ModelError           a model folder is missing, incomplete or of another family
    │   ├── Superseded           another process has taken over what this one was making
    │   └── Unanswered           a vision-language model had no usable answer to one question
    └── Preempted           75   asked to stop: everything is saved, the same command goes on

Every message is one sentence: what, where, which limit, and the remedy.
"""

from collections.abc import Sequence
from typing import Any

SCREEN = 500
"""Characters of the longest message that is shown."""


class DreamBoothError(Exception):
    """Root of everything this project raises on purpose."""

    exit_code = 4


class ConfigError(DreamBoothError):
    """A config, an option or an argument is wrong."""

    exit_code = 2


class DatasetRefused(DreamBoothError):
    """The instance images have at least one hard finding."""

    exit_code = 3

    def __init__(self, sentence: str, findings: Sequence[Any] = ()) -> None:
        super().__init__(sentence)
        self.findings = tuple(findings)
        """All that was found in the photos, each a `photos.findings.Finding`, for whoever shows it."""


class StageFailed(DreamBoothError):
    """A stage of the run broke."""


class StorageError(StageFailed):
    """The store could not be reached, or an object is not what its digest says."""


class NotFound(StorageError):
    """There is no object under that key."""


class ModelError(StageFailed):
    """A model folder is missing, incomplete or of another family."""


class Superseded(StageFailed):
    """Another process has taken over what this one was making, whose work counts no more."""


class Unanswered(StageFailed):
    """A vision-language model had no usable answer to one question; others may be answered."""


class Preempted(DreamBoothError):
    """The run was asked to stop and has saved its state."""

    exit_code = 75


def one_line(error: BaseException, limit: int = SCREEN) -> str:
    """The message on one line, or the class name of an error without one; control characters escaped.

    Beyond `limit` characters the middle is left out: messages begin with the place and end with the
    remedy.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > limit:
        end = 3 * limit // 10
        text = f"{text[: limit - end - 5]} ... {text[-end:]}"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
