"""What 1,000 subjects a day need: `python benchmarks/scale.py`; `--write` puts it into docs/scale.md.

Arithmetic over the assumptions below, and a simulated queue of GPUs. What a run asks of S3 was counted
(requests_of_a_run.py), and what many runs at once do to the servers measured (concurrent_runs.py);
what a GPU takes was not: put in your own numbers.
"""

import argparse
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

COUNTED = Path(__file__).with_name("requests_of_a_run.json")
MANY = COUNTED.with_name("concurrent_runs.json")
PAGE = Path(__file__).parent.parent / "docs/scale.md"
BEGIN, END = "<!-- begin: python benchmarks/scale.py --write -->", "<!-- end -->"
DAY = 86_400
DEAR = ("PUT", "POST", "LIST")
"""Kinds that S3 bills at the higher price."""
Counted = Mapping[str, Mapping[str, float]]
UNCOUNTED = ("S3 requests per subject", "not counted yet: benchmarks/requests_of_a_run.py")


@dataclass(frozen=True)
class Assumptions:
    """Fields with their reasons; none is a measurement unless it says so."""

    subjects_a_day: int = 1000
    busy_share: float = 0.7
    """Of the subjects that come within the busy hours."""
    busy_hours: int = 10
    start_seconds: float = 90.0
    """Of a pod on a node that is there: imports, base model from the node's disk."""
    steps: int = 500
    step_seconds: float = 0.35
    """LoRA of a Stable Diffusion 1.5 on a GPU of 24 GB, with prior preservation."""
    image_seconds: float = 1.5
    """30 inference steps at 512 x 512."""
    class_images: int = 200
    class_images_reused: float = 0.9
    """Share of the subjects whose class noun somebody had before."""
    evaluation_images: int = 240
    """Of the tuned model; those of the base are kept for all."""
    samples: int = 12
    checkpoints: int = 5
    weights_mb: float = 13.0
    image_mb: float = 0.4
    """A lossless 512 x 512 PNG."""
    checkpoint_mb: float = 40.0
    """Adapter, its optimizer's state, its average; two are kept until the janitor comes."""
    cpu_seconds: float = 60.0
    """Validation, registration, report."""
    node_lost_hours: float = 8.0
    """Mean time until a spot node is taken away."""
    spot_dollars: float = 0.45
    on_demand_dollars: float = 1.1
    """A GPU's hour."""
    put_dollars: float = 0.005
    get_dollars: float = 0.0004
    """A thousand requests."""
    month_dollars: float = 0.023
    """A GB for a month."""
    wait_seconds: float = 600.0
    """95 % of the subjects wait no longer for a GPU."""
    progress_seconds: float = 2.0
    """Between two updates of a progress artifact: tasks/stage.py."""
    heartbeat_seconds: float = 180.0
    tasks: int = 10
    mlflow_calls: int = 60
    """Parameters, the curve in batches, inputs, version, tags, alias, report."""
    listed_per_second: float = 5.0
    """Pages of 1,000 keys, one after the other."""


def run_seconds(it: Assumptions, reused: bool) -> float:
    """A GPU's seconds for one subject, when nothing interrupts it."""
    drawn = it.evaluation_images + it.samples + (0 if reused else it.class_images)
    training = it.steps * it.step_seconds
    return it.start_seconds + training + drawn * it.image_seconds + it.cpu_seconds


def repeated_seconds(it: Assumptions) -> float:
    """What one lost node costs: a new start, and half of what lies between two checkpoints."""
    return it.start_seconds + it.steps * it.step_seconds / it.checkpoints / 2


def arrivals(it: Assumptions, days: int, draw: np.random.Generator) -> np.ndarray:
    """Seconds at which subjects come, sorted: Poisson, with busy hours in the middle of the day."""
    begin = (24 - it.busy_hours) * 1800
    came = []
    for day in range(days):
        count = draw.poisson(it.subjects_a_day)
        busy = draw.random(count) < it.busy_share
        inside = draw.uniform(begin, begin + it.busy_hours * 3600, count)
        outside = (
            begin + it.busy_hours * 3600 + draw.uniform(0, (24 - it.busy_hours) * 3600, count)
        ) % DAY
        came.append(day * DAY + np.where(busy, inside, outside))
    return np.sort(np.concatenate(came))


def durations(it: Assumptions, count: int, draw: np.random.Generator) -> np.ndarray:
    """Seconds on a GPU per subject: class images there or not, nodes lost on the way."""
    reused = draw.random(count) < it.class_images_reused
    plain = np.where(reused, run_seconds(it, True), run_seconds(it, False))
    lost = draw.poisson(plain / (it.node_lost_hours * 3600))
    return plain + lost * repeated_seconds(it)


def waits(came: np.ndarray, seconds: np.ndarray, servers: int) -> np.ndarray:
    """How long each waits for one of `process`, first come first served."""
    free = [0.0] * servers
    found = np.empty(len(came))
    for index, (at, takes) in enumerate(zip(came, seconds, strict=True)):
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + takes)
        found[index] = begins - at
    return found


def gpus(it: Assumptions, days: int = 30, seed: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """The fewest GPUs with which 95 % wait no longer than `wait_seconds`; waits; seconds on a GPU."""
    draw = np.random.default_rng(seed)
    came = arrivals(it, days, draw)
    seconds = durations(it, len(came), draw)
    count = max(1, int(seconds.sum() / (days * DAY)))
    while True:
        found = waits(came, seconds, count)
        if np.quantile(found, 0.95) <= it.wait_seconds:
            return count, found, seconds
        count += 1


def requests(it: Assumptions, counted: Counted) -> dict[str, float]:
    """S3 requests per subject by kind: the short run's, with more images and checkpoints."""
    first, image, save = (
        counted["first"],
        counted["per class image"],
        counted["per checkpoint"],
    )
    drawn = it.evaluation_images + it.samples + (1 - it.class_images_reused) * it.class_images
    images, saves = drawn - counted["images of the first"]["count"], it.checkpoints - 1
    kinds = [kind for kind in first if not kind.startswith("bytes")]
    return {
        kind: first[kind] + images * image.get(kind, 0) + saves * save.get(kind, 0)
        for kind in kinds
    }


def s3_rows(
    it: Assumptions, counted: Counted, busy: float
) -> tuple[tuple[tuple[str, str], ...], float]:
    """What S3 is asked, and its dollars per subject."""
    asked = requests(it, counted)
    count, dear = sum(asked.values()), sum(asked.get(kind, 0) for kind in DEAR)
    dollars = (dear * it.put_dollars + (count - dear) * it.get_dollars) / 1000
    told = (
        ("S3 requests per subject", f"{count:,.0f}, of which {dear:,.0f} write or list"),
        ("S3 requests per second, busy hours", f"{busy * count:.1f}"),
        ("S3 requests' cost per subject", f"${dollars:.4f}"),
    )
    return told, dollars


def traffic(it: Assumptions) -> tuple[float, float]:
    """MB written into S3 and read from it per subject; the base comes from the node's disk.

    Images are read once, to be measured or learned from, those of the base too; weights by what
    draws for the evaluation and for the samples.
    """
    made = it.evaluation_images + it.samples + (1 - it.class_images_reused) * it.class_images
    sent = it.image_mb * made + it.weights_mb + it.checkpoints * it.checkpoint_mb
    fetched = it.image_mb * (2 * it.evaluation_images + it.class_images) + 2 * it.weights_mb
    return sent, fetched


def rows(it: Assumptions, counted: Counted) -> Iterator[tuple[str, str]]:
    """What it comes to, line by line."""
    count, found, seconds = gpus(it)
    per_subject = float(seconds.mean())
    busy = it.subjects_a_day * it.busy_share / (it.busy_hours * 3600)
    at_once = busy * per_subject
    yield "GPU seconds per subject", f"{per_subject:,.0f}"
    yield "GPUs, if work came evenly", f"{it.subjects_a_day * per_subject / DAY:.1f}"
    yield f"GPUs, for 95 % to wait at most {it.wait_seconds / 60:.0f} min", f"{count}"
    yield "waits with so many: median, 95 %, longest", _minutes(np.quantile(found, [0.5, 0.95, 1]))
    yield "GPUs' share of time at work", f"{per_subject * it.subjects_a_day / DAY / count:.0%}"
    yield "GPU cost per subject, spot", f"${per_subject / 3600 * it.spot_dollars:.3f}"
    yield "the same on demand", f"${per_subject / 3600 * it.on_demand_dollars:.3f}"
    asked, priced = s3_rows(it, counted, busy) if counted else ((UNCOUNTED,), 0.0)
    yield from asked
    sent, fetched = traffic(it)
    yield "S3 traffic per subject: written, read", f"{sent:.0f} MB, {fetched:.0f} MB"
    yield "S3 traffic, busy hours", f"{busy * sent:.1f} MB/s, {busy * fetched:.1f} MB/s"
    kept = it.weights_mb + it.image_mb * (it.evaluation_images + it.samples)
    made = kept + 2 * it.checkpoint_mb
    yield (
        "stored per subject: for good, and until the janitor comes",
        f"{kept:.0f} MB, {made:.0f} MB",
    )
    month = 30 * it.subjects_a_day / 1000
    stored = f"{kept * month / 1000:.1f} TB, {made * month / 1000:.1f} TB"
    yield "stored after a month: with the janitor, without", stored
    yield "cost of what a month has stored, each month", f"${kept * month * it.month_dollars:,.0f}"
    writes = 1 / it.progress_seconds + 1 / it.heartbeat_seconds + 3 * it.tasks / per_subject
    yield "runs at once, busy hours", f"{at_once:.0f}"
    yield "Prefect's writes per second, busy hours", f"{at_once * writes:.1f}"
    yield "of which progress artifacts", f"{1 / it.progress_seconds / writes:.0%}"
    yield "MLflow's calls per second, busy hours", f"{busy * it.mlflow_calls:.2f}"
    keys = 30 * it.subjects_a_day * (it.evaluation_images + it.samples)
    pages = keys / 1000
    yield "keys below images/ after a month", f"{keys / 1e6:.1f} million"
    yield (
        "one listing of them",
        f"{pages:,.0f} requests, {pages / it.listed_per_second / 60:.0f} min",
    )
    total = per_subject / 3600 * it.spot_dollars + priced
    yield "cost per subject in all, spot, but for storage", f"${total:.3f}"


def _minutes(seconds: np.ndarray) -> str:
    return ", ".join(f"{each / 60:.1f} min" for each in seconds)


def counted_requests() -> dict[str, dict[str, float]]:
    """What requests_of_a_run.py wrote, as `requests` wants it; empty when it has not been run."""
    if not COUNTED.is_file():
        return {}
    told = json.loads(COUNTED.read_text(encoding="utf-8"))
    return {
        "first": told["runs"]["first"],
        "per class image": told["per class image"],
        "per checkpoint": told["per checkpoint"],
        "images of the first": {"count": told["images of the first"]},
    }


def tables(it: Assumptions) -> str:
    """The assumptions and what follows, in Markdown."""
    assumed = [
        f"| {field.name.replace('_', ' ')} | {getattr(it, field.name):,} |" for field in fields(it)
    ]
    found = [f"| {name} | {value} |" for name, value in rows(it, counted_requests())]
    return "\n".join(
        [
            "| assumed | |\n|---|--:|",
            *assumed,
            "\n| what follows | |\n|---|--:|",
            *found,
            *many_runs(),
        ]
    )


def many_runs() -> Iterator[str]:
    """The table of what concurrent_runs.py measured, a column per database."""
    if not MANY.is_file():
        return
    told = json.loads(MANY.read_text(encoding="utf-8"))
    yield f"\n| many runs at once, as measured | {' | '.join(told)} |\n|---|{'--:|' * len(told)}"
    asked = {
        "runs at once": lambda one: f"{one['runs']}",
        "done, and all their results stored": lambda one: f"{one['done']}, {one['complete']}",
        "states that Prefect keeps of runs": lambda one: _counts(one["flow_runs"]),
        "and of tasks": lambda one: _counts(one["task_runs"]),
        "seconds of a run asleep, for its GPU": lambda one: f"{one['gpu_seconds']:.0f}",
        "seconds beyond: median, 95 %, most": lambda one: ", ".join(
            f"{each:.0f}" for each in one["beyond_gpu"].values()
        ),
        "S3 requests per second": lambda one: f"{_s3_rate(one):.0f}",
    }
    for name, tell in asked.items():
        yield f"| {name} | {' | '.join(map(tell, told.values()))} |"


def _counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {state.lower()}" for state, count in states.items())


def _s3_rate(measured: dict[str, Any]) -> float:
    per_run = sum(count for kind, count in measured["s3_per_run"].items() if kind.isupper())
    return float(per_run * measured["runs"] / measured["wall_seconds"])


def written(page: str, text: str) -> str:
    """The page with the text between its marks."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--write", action="store_true", help="into docs/scale.md")
    text = tables(Assumptions())
    if asked.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
