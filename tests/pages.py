"""Pages of HTML as tests look at them."""

import html.parser
import re

VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """Collects what a test asks about and checks that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.sections, self.sources, self.words, self._open = set(), [], [], []
        self.feed(text)
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self.sections.add(attributes.get("id") or attributes["class"])
        if "src" in attributes:
            self.sources.append(attributes["src"])
        if tag == "img":
            assert attributes["alt"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))
