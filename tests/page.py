"""HTML pages for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements of a page, and its text by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {"": ""}
        self._section = ""
        self._skipped = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._skipped = tag if tag in {"script", "style"} else ""
        if tag == "h2":
            self._section = attributes["id"]
            self.sections[self._section] = ""

    def handle_endtag(self, tag):
        self._skipped = ""

    def handle_data(self, data):
        if not self._skipped:
            words = " ".join(data.split())
            self.sections[self._section] += f"{words} " if words else ""

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and wanted.items() <= attributes.items()
        ]
