"""Script that writes a service's state file with its process id, then executes the service's command.

Started by `watchdog`, standard library only: `exec.py STATE_FILE STATE COMMAND...`. `exec` keeps the
process id, so a service never runs without a state file.
"""

import json
import os
import sys


def main(state_file: str, state: str, command: list[str]) -> None:
    """Write the state with this process id, then execute the command."""
    unfinished = f"{state_file}~{os.getpid()}"
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump({**json.loads(state), "pid": os.getpid()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, state_file)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
