"""The page of an evaluation."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import tensorflow as tf

from nvae_tf.evaluation import html_report


class Page(HTMLParser):
    """Collects cells and pictures, and that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.sources.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_holds_everything_itself():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sections = {"Numbers": {"bound": 1234.5678, "kl": [1.0, 2.0], "name": "<a & b>"}}
    page = Page()
    page.feed(html_report("run <1>", sections, [("one & only", picture)]))
    assert not page.open
    assert {"run <1>", "Numbers", "1,234.6", "1, 2", "<a & b>", "one & only"} <= set(page.text)
    (source,) = page.sources
    content = base64.b64decode(re.fullmatch("data:image/png;base64,(.*)", source)[1])
    np.testing.assert_array_equal(tf.io.decode_png(content), picture)
