"""Checks of a command's end against its case: exit code, output, memory, files, processes."""

import re
import unicodedata

from tests.fuzz.case import OK, Case
from tests.fuzz.forks import Ended

MAX_SENTENCE = 600
"""Largest length of an error message in characters."""
MAX_OUTPUT = 200_000
"""Largest length of stdout in characters."""
MAX_MEMORY = 3 * 2**29
"""Largest memory in bytes: 1.5 GiB."""
UNWANTED = (
    "Traceback",
    "(unexpected",
    "--debug shows",
    "pydantic",
    "validation error",
    "Extra inputs are not permitted",
    "the harness failed",
    "object at 0x",
    "Exception ignored",
    "Errno",
)
"""Texts of unexpected errors and of libraries' own messages."""


def faults(case: Case, ended: Ended) -> list[str]:
    """Differences from the expected end, a sentence each."""
    found = []
    if ended.code is None:
        found.append(f"killed by signal {ended.signal} after {ended.seconds:.0f} s")
    elif ended.code != case.code and not (case.harmless and ended.code == OK):
        found.append(f"exit code {ended.code} instead of {case.code}")
    found += _words(case, ended)
    if ended.code not in (OK, None):
        found += _sentence(ended.stderr)
    if ended.memory > MAX_MEMORY:
        found.append(f"{ended.memory / 2**20:,.0f} MiB of memory")
    found += [f"input changed: {name!r}" for name in ended.changed[:3]]
    found += [f"appeared outside of paths.work: {name!r}" for name in ended.appeared[:3]]
    if ended.left_running:
        found.append("a process was left running")
    return found


def _words(case: Case, ended: Ended) -> list[str]:
    """Faults of both streams' content."""
    both = ended.stdout + ended.stderr
    found = [f"prints {word!r}" for word in UNWANTED if word in ended.stderr]
    found += [f"lacks {word!r}" for word in case.contains if word not in both]
    if case.secret and case.secret in both:
        found.append("echoes the secret")
    if len(ended.stdout) > MAX_OUTPUT:
        found.append(f"{len(ended.stdout):,} characters on stdout")
    if control := _control(both):
        found.append(f"prints the control character U+{ord(control):04X}")
    return found


def _sentence(stderr: str) -> list[str]:
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error: ")]
    if len(errors) != 1:
        return [f"{len(errors)} sentences on stderr"]
    found = []
    if lines[-1] != errors[0]:
        found.append("the sentence is not the last line")
    if len(errors[0]) > MAX_SENTENCE:
        found.append(f"a sentence of {len(errors[0]):,} characters")
    if len(errors[0]) < len("Error: ") + 8:
        found.append("a sentence without words")
    return found


def _control(text: str) -> str:
    """The first control character or change of text direction; "" if none."""
    for found in re.finditer(r"[^\x20-\x7e\n\t]", text):
        character = found.group()
        bidirectional = character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        if bidirectional or unicodedata.category(character) == "Cc":
            return character
    return ""
