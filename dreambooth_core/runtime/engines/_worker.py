"""Worker process of the local engine: reads pieces of work from stdin, writes results to stdout.

Input lines are `[function name, piece]`; output lines are `null` or `[error class, message]`.
"""

import json
import os
import sys

from dreambooth_core.runtime.engines import run_piece


def main() -> int:
    """Run pieces of work until the end of stdin."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries go to stderr
    for line in sys.stdin:
        print(json.dumps(run_piece(*json.loads(line))), file=results, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
