"""What the commands about datasets print: tables for people, JSON for machines."""

from collections.abc import Sequence

from dreambooth_core.cli.output import print_json, print_table
from dreambooth_core.cli.run_output import show_validation
from dreambooth_core.data.versions import DatasetPointer, PushResult
from dreambooth_core.storage.records import ImageSet


def show_pushed(pushed: PushResult, told: bool, as_json: bool) -> None:
    """What the photos came to, what a config calls them, and whether Prefect was told."""
    if as_json:
        print_json({**pushed.model_dump(mode="json"), "told_prefect": told})
        return
    show_validation(pushed.validation, as_json=False)
    if not pushed.new:
        print(f"Nothing new: this is version {pushed.publication.number} already")
    print(f"Version  {pushed.publication.number} of {pushed.name}")
    print(f"Use it   {pushed.reference}")
    if pushed.new:
        print(f"Prefect  {'was told' if told else 'was not told'}")


def show_datasets(found: Sequence[DatasetPointer], as_json: bool) -> None:
    """A row per dataset."""
    if as_json:
        rows = [{"name": one.name, **one.latest.model_dump(mode="json")} for one in found]
        print_json(rows)
        return
    columns = ("dataset", "version", "photos", "digest", "pushed", "by")
    print_table("", columns, [[one.name, *_row(one, len(one.history) - 1)] for one in found])


def show_dataset(pointer: DatasetPointer, newest: ImageSet, as_json: bool) -> None:
    """A row per publication, the newest last, and one per photo of the newest version."""
    if as_json:
        photos = [image.model_dump(mode="json") for image in newest.images]
        print_json({**pointer.model_dump(mode="json"), "photos": photos})
        return
    rows = [_row(pointer, place) for place in range(len(pointer.history))]
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


def _row(pointer: DatasetPointer, place: int) -> list[str]:
    one = pointer.history[place]
    when = one.when.replace("+00:00", "Z")
    return [str(one.number), str(one.photos), one.digest[:16], when, one.by]
