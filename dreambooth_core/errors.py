"""Exceptions, and the exit codes of the command line.

    DreamBoothError          the root; `exit_code` is that of the command line
    ├── ConfigError          2   a config, an option or an argument is wrong
    ├── DatasetRefused       3   the photos cannot be trained on
    ├── StageFailed          4   a stage of the run failed
    │   ├── StorageError         the store cannot be used, or an object is damaged
    │   │   └── NotFound             no object has that key
    │   ├── ModelError           a model folder is missing, incomplete or of another family
    │   ├── Superseded           another process has taken over this one's lease
    │   └── Unanswered           a vision-language model gave no usable answer
    └── Preempted           75   stopped by a signal with its state saved; the same command resumes

Every message is one sentence: what, where, limit, remedy.
"""

from collections.abc import Sequence
from typing import Any

SCREEN = 500
"""Characters of the longest message that is printed."""


class DreamBoothError(Exception):
    """Root of this project's exceptions."""

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
        """All findings in the photos, each a `data.findings.Finding`."""


class StageFailed(DreamBoothError):
    """A stage of the run failed."""


class StorageError(StageFailed):
    """The store cannot be used, or an object does not match its digest."""


class NotFound(StorageError):
    """No object has that key."""


class ModelError(StageFailed):
    """A model folder is missing, incomplete or of another family."""


class Superseded(StageFailed):
    """Another process has taken over the lease; results of this one are discarded."""


class Unanswered(StageFailed):
    """A vision-language model gave no usable answer to one question; later ones may succeed."""


class Preempted(DreamBoothError):
    """The run was stopped by a signal and has saved its state."""

    exit_code = 75


class OldKeyWarning(FutureWarning):
    """A config uses the old name of a key or value."""


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
