"""Capacity estimate for 1,000 subjects a day: `python benchmarks/scale.py`; `--write` updates docs/scale.md.

Computed from the assumptions below and a simulated queue of GPUs. S3 requests were counted
(requests_of_a_run.py), concurrent runs were measured (concurrent_runs.py); GPU times are assumptions:
replace them by your own.
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
"""Kinds of requests with the higher price."""
Counted = Mapping[str, Mapping[str, float]]
UNCOUNTED = ("S3 requests per subject", "not counted yet: benchmarks/requests_of_a_run.py")


@dataclass(frozen=True)
class Assumptions:
    """Assumptions; not measured unless stated."""

    subjects_a_day: int = 1000
    busy_share: float = 0.7
    """Share of the subjects that arrive in the busy hours."""
    busy_hours: int = 10
    start_seconds: float = 90.0
    """Start of a pod on a running node: imports, base model from the node's disk."""
    steps: int = 500
    step_seconds: float = 0.35
    """LoRA of a Stable Diffusion 1.5 on a GPU of 24 GB, with prior preservation."""
    image_seconds: float = 1.5
    """30 inference steps at 512 x 512."""
    class_images: int = 200
    class_images_reused: float = 0.9
    """Share of the subjects whose class images are already stored."""
    evaluation_images: int = 240
    """Images of the tuned model; those of the base are shared."""
    samples: int = 12
    checkpoints: int = 5
    weights_mb: float = 13.0
    image_mb: float = 0.4
    """A lossless 512 x 512 PNG."""
    checkpoint_mb: float = 40.0
    """Adapter, optimizer state, average; two are kept until garbage collection."""
    cpu_seconds: float = 60.0
    """Validation, registration, report."""
    node_lost_hours: float = 8.0
    """Mean time until a spot node is reclaimed."""
    spot_dollars: float = 0.45
    on_demand_dollars: float = 1.1
    """Per GPU hour."""
    put_dollars: float = 0.005
    get_dollars: float = 0.0004
    """Per thousand requests."""
    month_dollars: float = 0.023
    """Per GB and month."""
    wait_seconds: float = 600.0
    """95 % quantile of the wait for a GPU."""
    progress_seconds: float = 2.0
    """Interval between updates of a progress artifact (tasks/stage.py)."""
    heartbeat_seconds: float = 180.0
    tasks: int = 10
    mlflow_calls: int = 60
    """Per run: parameters, curve in batches, inputs, version, tags, alias, report."""
    listed_per_second: float = 5.0
    """Pages of 1,000 keys, requested sequentially."""


def run_seconds(it: Assumptions, reused: bool) -> float:
    """GPU seconds of one subject without interruption."""
    drawn = it.evaluation_images + it.samples + (0 if reused else it.class_images)
    training = it.steps * it.step_seconds
    return it.start_seconds + training + drawn * it.image_seconds + it.cpu_seconds


def repeated_seconds(it: Assumptions) -> float:
    """Seconds per lost node: a new start and half of a checkpoint interval."""
    return it.start_seconds + it.steps * it.step_seconds / it.checkpoints / 2


def arrivals(it: Assumptions, days: int, draw: np.random.Generator) -> np.ndarray:
    """Sorted arrival times in seconds: Poisson, with busy hours in the middle of the day."""
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
    """GPU seconds per subject, with random reuse of class images and random losses of nodes."""
    reused = draw.random(count) < it.class_images_reused
    plain = np.where(reused, run_seconds(it, True), run_seconds(it, False))
    lost = draw.poisson(plain / (it.node_lost_hours * 3600))
    return plain + lost * repeated_seconds(it)


def waits(came: np.ndarray, seconds: np.ndarray, servers: int) -> np.ndarray:
    """Seconds that each subject waits for one of `servers` GPUs, first come first served."""
    free = [0.0] * servers
    found = np.empty(len(came))
    for index, (at, takes) in enumerate(zip(came, seconds, strict=True)):
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + takes)
        found[index] = begins - at
    return found


def gpus(it: Assumptions, days: int = 30, seed: int = 0) -> tuple[int, np.ndarray, np.ndarray]:
    """Smallest number of GPUs for `wait_seconds`; the subjects' waits; their GPU seconds."""
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
    """S3 requests per subject by kind, extrapolated from the counted run."""
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
    """Rows about S3 requests, and their dollars per subject."""
    by_kind = requests(it, counted)
    count, dear = sum(by_kind.values()), sum(by_kind.get(kind, 0) for kind in DEAR)
    dollars = (dear * it.put_dollars + (count - dear) * it.get_dollars) / 1000
    found = (
        ("S3 requests per subject", f"{count:,.0f}, of which {dear:,.0f} write or list"),
        ("S3 requests per second, busy hours", f"{busy * count:.1f}"),
        ("S3 requests' cost per subject", f"${dollars:.4f}"),
    )
    return found, dollars


def traffic(it: Assumptions) -> tuple[float, float]:
    """MB written to S3 and read from it per subject; the base is on the node's disk.

    Images, those of the base included, are read once, for evaluation or training; weights are read for
    the evaluation and for the samples.
    """
    made = it.evaluation_images + it.samples + (1 - it.class_images_reused) * it.class_images
    sent = it.image_mb * made + it.weights_mb + it.checkpoints * it.checkpoint_mb
    fetched = it.image_mb * (2 * it.evaluation_images + it.class_images) + 2 * it.weights_mb
    return sent, fetched


def rows(it: Assumptions, counted: Counted) -> Iterator[tuple[str, str]]:
    """Results: names and values."""
    count, found, seconds = gpus(it)
    per_subject = float(seconds.mean())
    busy = it.subjects_a_day * it.busy_share / (it.busy_hours * 3600)
    at_once = busy * per_subject
    yield "GPU seconds per subject", f"{per_subject:,.0f}"
    yield "GPUs, for evenly spread work", f"{it.subjects_a_day * per_subject / DAY:.1f}"
    yield f"GPUs, for 95 % to wait at most {it.wait_seconds / 60:.0f} min", f"{count}"
    yield (
        "waits with these GPUs: median, 95 %, longest",
        _minutes(np.quantile(found, [0.5, 0.95, 1])),
    )
    yield "utilisation of the GPUs", f"{per_subject * it.subjects_a_day / DAY / count:.0%}"
    yield "GPU cost per subject, spot", f"${per_subject / 3600 * it.spot_dollars:.3f}"
    yield "the same on demand", f"${per_subject / 3600 * it.on_demand_dollars:.3f}"
    s3, priced = s3_rows(it, counted, busy) if counted else ((UNCOUNTED,), 0.0)
    yield from s3
    sent, fetched = traffic(it)
    yield "S3 traffic per subject: written, read", f"{sent:.0f} MB, {fetched:.0f} MB"
    yield "S3 traffic, busy hours", f"{busy * sent:.1f} MB/s, {busy * fetched:.1f} MB/s"
    kept = it.weights_mb + it.image_mb * (it.evaluation_images + it.samples)
    made = kept + 2 * it.checkpoint_mb
    yield (
        "stored per subject: permanently, and until garbage collection",
        f"{kept:.0f} MB, {made:.0f} MB",
    )
    month = 30 * it.subjects_a_day / 1000
    stored = f"{kept * month / 1000:.1f} TB, {made * month / 1000:.1f} TB"
    yield "stored after a month: with garbage collection, without", stored
    yield "monthly cost of one month's data", f"${kept * month * it.month_dollars:,.0f}"
    writes = 1 / it.progress_seconds + 1 / it.heartbeat_seconds + 3 * it.tasks / per_subject
    yield "concurrent runs, busy hours", f"{at_once:.0f}"
    yield "Prefect's writes per second, busy hours", f"{at_once * writes:.1f}"
    yield "of which progress artifacts", f"{1 / it.progress_seconds / writes:.0%}"
    yield "MLflow's calls per second, busy hours", f"{busy * it.mlflow_calls:.2f}"
    keys = 30 * it.subjects_a_day * (it.evaluation_images + it.samples)
    pages = keys / 1000
    yield "keys below images/ after a month", f"{keys / 1e6:.1f} million"
    yield (
        "listing them once",
        f"{pages:,.0f} requests, {pages / it.listed_per_second / 60:.0f} min",
    )
    total = per_subject / 3600 * it.spot_dollars + priced
    yield "total cost per subject, spot, without storage", f"${total:.3f}"


def _minutes(seconds: np.ndarray) -> str:
    return ", ".join(f"{each / 60:.1f} min" for each in seconds)


def counted_requests() -> dict[str, dict[str, float]]:
    """Results of requests_of_a_run.py for `requests`; empty without its file."""
    if not COUNTED.is_file():
        return {}
    counts = json.loads(COUNTED.read_text(encoding="utf-8"))
    return {
        "first": counts["runs"]["first"],
        "per class image": counts["per class image"],
        "per checkpoint": counts["per checkpoint"],
        "images of the first": {"count": counts["images of the first"]},
    }


def tables(it: Assumptions) -> str:
    """Assumptions, results and measurements, in Markdown."""
    assumed = [
        f"| {field.name.replace('_', ' ')} | {getattr(it, field.name):,} |" for field in fields(it)
    ]
    found = [f"| {name} | {value} |" for name, value in rows(it, counted_requests())]
    return "\n".join(
        [
            "| assumption | |\n|---|--:|",
            *assumed,
            "\n| result | |\n|---|--:|",
            *found,
            *many_runs(),
        ]
    )


def many_runs() -> Iterator[str]:
    """Table of concurrent_runs.py's measurements, a column per database."""
    if not MANY.is_file():
        return
    measured = json.loads(MANY.read_text(encoding="utf-8"))
    columns = len(measured)
    yield f"\n| concurrent runs, measured | {' | '.join(measured)} |\n|---|{'--:|' * columns}"
    cells = {
        "concurrent runs": lambda one: f"{one['runs']}",
        "done, and with all results stored": lambda one: f"{one['done']}, {one['complete']}",
        "states of runs in Prefect": lambda one: _counts(one["flow_runs"]),
        "states of tasks in Prefect": lambda one: _counts(one["task_runs"]),
        "seconds of GPU time per run, as a sleep": lambda one: f"{one['gpu_seconds']:.0f}",
        "seconds beyond it: median, 95 %, longest": lambda one: ", ".join(
            f"{each:.0f}" for each in one["beyond_gpu"].values()
        ),
        "S3 requests per second": lambda one: f"{_s3_rate(one):.0f}",
    }
    for name, cell in cells.items():
        yield f"| {name} | {' | '.join(map(cell, measured.values()))} |"


def _counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {state.lower()}" for state, count in states.items())


def _s3_rate(measured: dict[str, Any]) -> float:
    per_run = sum(count for kind, count in measured["s3_per_run"].items() if kind.isupper())
    return float(per_run * measured["runs"] / measured["wall_seconds"])


def written(page: str, text: str) -> str:
    """The page with the text between its markers replaced."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="update docs/scale.md")
    text = tables(Assumptions())
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
