"""The HTML report of an evaluation, a single page with its numbers, curves and images."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nvae_tf.sampling.images import encode_png

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ border-bottom: 1px solid #ddd; padding: .2rem 1rem .2rem 0; text-align: left }}
img {{ min-width: 60%; max-width: 100%; image-rendering: pixelated }}
figure {{ margin: 1.5rem 0 }}
figcaption {{ color: #555 }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def html_report(
    title: str,
    sections: Mapping[str, Mapping[str, Any]],
    images: Sequence[tuple[str, np.ndarray]],
) -> str:
    """Returns an HTML page that contains its images and refers to no other file.

    Args:
      title: Title of the page.
      sections: For each heading, a table of names and values. The items of a list are joined.
      images: Pairs of a caption and an image (H, W, C) uint8 with 1, 3 or 4 channels.
    """
    body = [
        f"<h2>{html.escape(heading)}</h2>\n<table>\n"
        + "\n".join(_row(name, value) for name, value in table.items())
        + "\n</table>"
        for heading, table in sections.items()
    ]
    body += [_figure(caption, image) for caption, image in images]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _row(name: str, value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    text = ", ".join(map(_format, values))
    return f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"


def _format(value: Any) -> str:
    return f"{value:,.5g}" if isinstance(value, float) else str(value)


def _figure(caption: str, image: np.ndarray) -> str:
    encoded = base64.b64encode(encode_png(image)).decode("ascii")
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
