"""`compute.engine: local`: processes of this machine; GPUs are assigned to them in turn."""

import json
import os
import selectors
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from dreambooth_core.config import Compute
from dreambooth_core.runtime.engines import TRIES, Work, name_of, raise_failure, too_many_deaths
from dreambooth_core.runtime.processes import supervised


class _Worker:
    """A worker process and the index of its current piece of work."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.piece = -1
        self._exit = ExitStack()
        command = [sys.executable, "-m", "dreambooth_core.runtime.engines._worker"]
        self.process: subprocess.Popen[bytes] = self._exit.enter_context(
            supervised(command, env=_environment(number), pipes=True)
        )

    def begin(self, piece: int, line: bytes) -> None:
        """Send a piece; the death of the process is detected when its result is read."""
        assert self.process.stdin is not None
        self.piece = piece
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def close(self) -> None:
        """End the process, also during a piece of work."""
        self._exit.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]  # they are pipes


class _WorkQueue:
    """The state of one `run`: waiting pieces, workers, and how often each piece was started."""

    def __init__(self, work: Work, pieces: Sequence[str]) -> None:
        self._lines = [json.dumps([name_of(work), piece]).encode() + b"\n" for piece in pieces]
        self._waiting = deque(range(len(pieces)))
        self._starts = Counter[int]()
        self._workers = ExitStack()
        self._results = selectors.DefaultSelector()

    def __enter__(self) -> "_WorkQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()
        self._results.close()

    def add_worker(self, number: int) -> None:
        worker = _Worker(number)
        self._workers.callback(worker.close)
        self._begin(worker)

    def results(self) -> list[tuple[_Worker, bytes]]:
        """Wait for workers; each with its result line, which is empty if it has died."""
        found = []
        for key, _ in self._results.select():
            self._results.unregister(key.fileobj)
            found.append((key.data, key.data.process.stdout.readline()))
        return found

    @property
    def finished(self) -> bool:
        return not self._results.get_map()

    def next_piece(self, worker: _Worker, line: bytes) -> None:
        """Start the worker's next piece; replace a dead worker and queue its piece again."""
        if line:
            self._begin(worker)
            return
        worker.close()
        if self._starts[worker.piece] >= TRIES:
            raise too_many_deaths(f"with status {worker.process.returncode}")
        self._waiting.append(worker.piece)
        self.add_worker(worker.number)

    def _begin(self, worker: _Worker) -> None:
        if not self._waiting:
            worker.close()
            return
        piece = self._waiting.popleft()
        self._starts[piece] += 1
        assert worker.process.stdout is not None
        self._results.register(worker.process.stdout, selectors.EVENT_READ, worker)
        worker.begin(piece, self._lines[piece])


class Local:
    """Child processes, which end with this one."""

    shares_work_folder = True

    def run(
        self, compute: Compute, work: Work, pieces: Sequence[str], done: Callable[[int], None]
    ) -> None:
        with _WorkQueue(work, pieces) as queue:
            for number in range(min(compute.workers, len(pieces))):
                queue.add_worker(number)
            while not queue.finished:
                for worker, line in queue.results():
                    if line:
                        raise_failure(json.loads(line))
                        done(worker.piece)
                    queue.next_piece(worker, line)


def _environment(number: int) -> dict[str, str]:
    """This process' environment, with one GPU visible."""
    gpus = _gpus()
    visible = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
    return {**os.environ, **visible}


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


ENGINE = Local()
