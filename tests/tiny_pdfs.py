"""Small PDFs written by hand: text pages, an encrypted one, and decompression bombs."""

import zlib
from collections.abc import Sequence


def pdf(
    *pages: Sequence[str],
    size: tuple[float, float] = (595, 842),
    extra: str = "",
    trailer: str = "",
) -> bytes:
    """A PDF with the given lines of text per page; `extra`: entries of every page, of `trailer` its own."""
    streams = [_stream(_text(lines, size[1])) for lines in pages]
    return document(streams, size, extra, trailer)


def document(
    contents: Sequence[bytes],
    size: tuple[float, float] = (595, 842),
    extra: str = "",
    trailer: str = "",
    images: Sequence[bytes] = (),
) -> bytes:
    """A PDF with these content streams, one page each; `images` are objects 10001, 10002, ..."""
    numbers = range(4, 4 + 2 * len(contents), 2)
    kids = " ".join(f"{number} 0 R" for number in numbers)
    box = f"/MediaBox [0 0 {size[0]} {size[1]}]"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} {box} >>".encode(),
        3: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    shown = " ".join(f"/I{n} {10001 + n} 0 R" for n in range(len(images)))
    resources = f"/Resources << /Font << /F 3 0 R >> /XObject << {shown} >> >>"
    for number, content in zip(numbers, contents, strict=True):
        page = f"<< /Type /Page /Parent 2 0 R {resources} {extra} /Contents {number + 1} 0 R >>"
        objects[number], objects[number + 1] = page.encode(), content
    objects |= {10001 + n: image for n, image in enumerate(images)}
    body, offsets = b"%PDF-1.7\n", {}
    for number, content in objects.items():
        offsets[number] = len(body)
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 1\n0000000000 65535 f \n"
    for number, offset in offsets.items():
        table += b"%d 1\n%010d 00000 n \n" % (number, offset)
    last = f"trailer\n<< /Size 20000 /Root 1 0 R {trailer} >>\nstartxref\n{len(body)}\n%%EOF\n"
    return body + table + last.encode()


def encrypted() -> bytes:
    """A PDF with a password that is not empty."""
    keys = " ".join(f"/{name} <{'41' * 32}>" for name in ("O", "U"))
    protection = f"/Encrypt << /Filter /Standard /V 1 /R 2 {keys} /P -4 >>"
    return pdf(["secret"], trailer=f"{protection} /ID [<00> <00>]")


def deep_stream(size: int) -> bytes:
    """A page whose content is `size` zero bytes, compressed twice."""
    return document([_stream(zlib.compress(_deflated(size)), "/FlateDecode /FlateDecode")])


def huge_image(side: int) -> bytes:
    """A page with a grey image of `side` x `side` pixels, all black."""
    entries = f"/Type /XObject /Subtype /Image /Width {side} /Height {side} /ColorSpace /DeviceGray"
    image = _stream(_deflated(side * side), "/FlateDecode", f"{entries} /BitsPerComponent 8")
    return document([_stream(b"q 500 0 0 500 40 40 cm /I0 Do Q")], images=[image])


def _text(lines: Sequence[str], height: float) -> bytes:
    rows = [f"({line}) Tj T*" for line in lines]
    return f"BT /F 24 Tf 30 TL 50 {height - 80} Td {' '.join(rows)} ET".encode("latin-1")


def _stream(data: bytes, filters: str = "", entries: str = "") -> bytes:
    names = f"/Filter [{filters}]" if filters else ""
    head = f"<< {entries} {names} /Length {len(data)} >>"
    return head.encode() + b"\nstream\n" + data + b"\nendstream"


def _deflated(size: int) -> bytes:
    """`size` zero bytes as a zlib stream, made of one repeated block."""
    step = 2**20
    compressor = zlib.compressobj(9)
    first, *again = (
        compressor.compress(bytes(step)) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(3)
    )
    assert again[0] == again[1]
    count = -(-size // step)
    adler = (count * step % 65521) << 16 | 1
    return first + again[0] * (count - 1) + b"\x03\x00" + adler.to_bytes(4, "big")
