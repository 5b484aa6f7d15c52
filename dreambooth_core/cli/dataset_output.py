"""Output of `dreambooth dataset`: tables or JSON."""

from collections.abc import Sequence

from dreambooth_core.cli.output import print_json, print_table, requests_document, requests_line
from dreambooth_core.cli.run_output import show_validation
from dreambooth_core.data.captioning import CaptionedPhoto
from dreambooth_core.data.findings import Finding, printable
from dreambooth_core.data.versions import DatasetPointer, PushResult
from dreambooth_core.data.video_frames import VideoFrames
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.vision.language.spending import Counts


def show_pushed(pushed: PushResult, event_sent: bool, as_json: bool) -> None:
    """Findings, the new version and its reference, and whether Prefect's server got an event."""
    if as_json:
        print_json({**pushed.model_dump(mode="json"), "event_sent": event_sent})
        return
    show_validation(pushed.validation, as_json=False)
    if not pushed.new:
        print(f"Unchanged: these photos are version {pushed.publication.number}")
    print(f"Version    {pushed.publication.number} of {pushed.name}")
    print(f"Reference  {pushed.reference}")
    if pushed.new:
        print(f"Prefect    {'event sent' if event_sent else 'no event sent'}")


def show_datasets(found: Sequence[DatasetPointer], as_json: bool) -> None:
    """One row per dataset."""
    if as_json:
        rows = [{"name": one.name, **one.latest.model_dump(mode="json")} for one in found]
        print_json(rows)
        return
    columns = ("dataset", "version", "photos", "digest", "pushed", "by")
    print_table("", columns, [[one.name, *_row(one, len(one.history) - 1)] for one in found])


def show_dataset(pointer: DatasetPointer, newest: ImageSet, as_json: bool) -> None:
    """One row per version, the newest last, and one per photo of the newest version."""
    if as_json:
        photos = [image.model_dump(mode="json") for image in newest.images]
        print_json({**pointer.model_dump(mode="json"), "photos": photos})
        return
    rows = [_row(pointer, index) for index in range(len(pointer.history))]
    print_table(pointer.name, ("version", "photos", "digest", "pushed", "by"), rows)
    images = [
        [
            image.name,
            "x".join(map(str, reversed(image.size or ()))),
            "yes" if image.mask else "",
            image.prompt,
        ]
        for image in newest.images
    ]
    print_table("Newest", ("photo", "pixels", "mask", "caption"), images)


def show_captions(
    made: Sequence[CaptionedPhoto],
    findings: Sequence[Finding],
    counts: Counts | None,
    cost: float | None,
    as_json: bool,
) -> None:
    """New captions, findings, requests and cost; `counts` is None without a model.

    `cost` is in the prices' currency, None without known prices.
    """
    if as_json:
        captions, found = (
            [one.model_dump(mode="json") for one in rows] for rows in (made, findings)
        )
        requests = requests_document(counts, cost)
        print_json({"captions": captions, "findings": found, "requests": requests})
        return
    written = [one for one in made if one.written]
    if written:
        rows = [[printable(one.photo), printable(one.caption)] for one in written]
        print_table("", ("photo", "caption"), rows)
    if findings:
        cells = [
            [one.level, one.file, one.check, one.measure, one.limit, one.remedy] for one in findings
        ]
        print_table("Findings", ("level", "file", "check", "found", "limit", "remedy"), cells)
    print(f"{len(written)} captions written, {len(findings)} findings")
    _show_requests(counts, cost)


def show_frames(
    made: VideoFrames, wanted: int, counts: Counts | None, cost: float | None, as_json: bool
) -> None:
    """One row per chosen and per rejected frame, counts, requests and cost as in `show_captions`."""
    if as_json:
        requests = requests_document(counts, cost)
        print_json({**made.model_dump(mode="json"), "requests": requests})
        return
    rows = [
        [one.file, f"{one.seconds:.3f}", f"{one.sharpness:.2f}", one.reason]
        for one in sorted((*made.frames, *made.rejected), key=lambda one: one.seconds)
    ]
    print_table(made.clip, ("photo", "seconds", "sharpness", "reason"), rows)
    print(
        f"{len(made.frames)} of {wanted} photos written to {made.folder}; of {made.measured} measured "
        f"frames {made.blurred} blurred, {made.badly_exposed} badly exposed; {len(made.rejected)} "
        "candidates rejected"
    )
    if made.unanswered:
        print(f"{made.unanswered} photos are not checked: the model gave no answer")
    if made.hdr:
        print(f"The video is HDR ({made.hdr}); its colours are not tone-mapped and look pale")
    _show_requests(counts, cost)


def _show_requests(counts: Counts | None, cost: float | None) -> None:
    if counts is not None:
        print(requests_line(counts, cost))


def _row(pointer: DatasetPointer, index: int) -> list[str]:
    one = pointer.history[index]
    when = one.when.replace("+00:00", "Z")
    return [str(one.number), str(one.photos), one.digest[:16], when, one.by]
