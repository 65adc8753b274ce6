"""A page of the report as a parser of HTML sees it."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input", "path", "use"}


class Page(HTMLParser):
    """Text and pictures per section, every attribute that can load something, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.alts, self.section = [], [], {}, [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "xlink:href")]
        self.alts += [values.get("alt")] if tag == "img" else [values.get("aria-label")] if tag == "svg" else []
        if tag == "section":
            self.section = values["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data
