"""A process that does one piece of work after the other, as it is told on its standard input.

A line in is `[name of the function, piece]`; the line out is `null`, or `[error, sentence]`.
"""

import json
import os
import sys

from dreambooth_core.runtime.engines import failure_of


def main() -> int:
    """Work until there is nothing left to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what libraries print is no answer
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(failure_of(*json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
