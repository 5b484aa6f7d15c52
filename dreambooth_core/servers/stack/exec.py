"""Becomes a part of the stack, after it has written who it is.

Run by `watchdog` as a script of its own, with nothing but the standard library:
`launch.py STATE_FILE STATE COMMAND...`. The process id stays the same when the command takes the
process over, so there is no moment in which a part runs and no state file says so.
"""

import json
import os
import sys


def main(state_file: str, state: str, command: list[str]) -> None:
    """Write the state with our process id, then become the command."""
    unfinished = f"{state_file}~{os.getpid()}"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump({**json.loads(state), "pid": os.getpid()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, state_file)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
