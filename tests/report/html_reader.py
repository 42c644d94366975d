"""A page as a program sees it: what the tests of all pages read with."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Elements with their attributes, visible text, and whether every element was closed in order."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text, self.problems = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def said(self):
        return " ".join("".join(self.text).split())

    def named(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]
