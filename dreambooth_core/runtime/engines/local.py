"""`compute.engine: local`: processes of this machine, with a GPU each in turn where it has several."""

import json
import os
import selectors
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from dreambooth_core.config import Compute
from dreambooth_core.runtime.engines import TRIES, Work, given_up, name_of, raise_failure
from dreambooth_core.runtime.processes import supervised


class _Worker:
    """A process, and the number of the piece that it works on."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.piece = -1
        self._alive = ExitStack()
        command = [sys.executable, "-m", "dreambooth_core.runtime.engines._worker"]
        self.process: subprocess.Popen[bytes] = self._alive.enter_context(
            supervised(command, env=_environment(number), pipes=True)
        )

    def begin(self, piece: int, line: bytes) -> None:
        """Hand over a piece; a process that has died says so where its answer is read."""
        assert self.process.stdin is not None
        self.piece = piece
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def close(self) -> None:
        """End the process, whatever it does; nothing when it has ended."""
        self._alive.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]  # they are pipes


class _WorkQueue:
    """One call of `spread`: what waits, who works, and how often each piece was begun."""

    def __init__(self, work: Work, pieces: Sequence[str]) -> None:
        self._lines = [json.dumps([name_of(work), piece]).encode() + b"\n" for piece in pieces]
        self._waiting = deque(range(len(pieces)))
        self._begun = Counter[int]()
        self._hands = ExitStack()
        self._answers = selectors.DefaultSelector()

    def __enter__(self) -> "_WorkQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._hands.close()
        self._answers.close()

    def hire(self, number: int) -> None:
        hand = _Worker(number)
        self._hands.callback(hand.close)
        self._begin(hand)

    def answered(self) -> list[tuple[_Worker, bytes]]:
        """Who has ended a piece, by a line that says how, or has died, without a line."""
        found = []
        for key, _ in self._answers.select():
            self._answers.unregister(key.fileobj)
            found.append((key.data, key.data.process.stdout.readline()))
        return found

    @property
    def over(self) -> bool:
        return not self._answers.get_map()

    def go_on(self, hand: _Worker, line: bytes) -> None:
        """Begin the next piece, or once more the one that a process died over."""
        if line:
            self._begin(hand)
            return
        hand.close()
        if self._begun[hand.piece] >= TRIES:
            raise given_up(f"with status {hand.process.returncode}")
        self._waiting.append(hand.piece)
        self.hire(hand.number)

    def _begin(self, hand: _Worker) -> None:
        if not self._waiting:
            hand.close()
            return
        piece = self._waiting.popleft()
        self._begun[piece] += 1
        assert hand.process.stdout is not None
        self._answers.register(hand.process.stdout, selectors.EVENT_READ, hand)
        hand.begin(piece, self._lines[piece])


class Local:
    """Child processes, which end when this one does."""

    shares_work_folder = True

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        with _WorkQueue(work, pieces) as shift:
            for number in range(min(compute.workers, len(pieces))):
                shift.hire(number)
            while not shift.over:
                for hand, line in shift.answered():
                    if line:
                        raise_failure(json.loads(line))
                        done(hand.piece)
                    shift.go_on(hand, line)


def _environment(number: int) -> dict[str, str]:
    """Ours; with several GPUs, each process sees the one whose turn it is."""
    gpus = _gpus()
    its = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    return {**os.environ, **its}


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


ENGINE = Local()
