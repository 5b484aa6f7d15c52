"""What Prefect shows of an order."""

from dreambooth_core.batch_sampling.publish import PublishedJob
from dreambooth_core.batch_sampling.shards import ShardResult
from tasks.batch import as_markdown


def test_a_finished_order_names_its_files() -> None:
    tally = ShardResult(made=3, found=1, missing=0, seconds=2.0, images_per_second=1.5)
    files = {"gallery.html": "s3://b/orders/x/gallery.html"}
    published = PublishedJob(order="x", count=4, near_duplicates=1, unsafe=0, files=files)
    said = as_markdown(tally, published)
    assert "3 images drawn, 1 found in 2.0 s, 1.50 images/s." in said
    assert "- gallery.html: `s3://b/orders/x/gallery.html`" in said


def test_an_unfinished_one_says_what_is_left() -> None:
    tally = ShardResult(made=0, found=2, missing=6, seconds=0.1, images_per_second=0)
    assert as_markdown(tally, None).endswith("6 images are left to other shards.")
