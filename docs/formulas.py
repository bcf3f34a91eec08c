r"""A hook of the site's: formulas become MathML when it is built, so that no page needs a script or another host.

They are written as `$E = mc^2$` within a line and between lines of `$$`, in LaTeX, which GitHub shows, too.
"""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, page, config, files):
    """Converts what the Markdown extension `arithmatex` marked as a formula."""

    def to_mathml(match):
        display = "block" if match[1] == "div" else "inline"
        return (
            f'<{match[1]} class="arithmatex">{convert(html.unescape(match[2]).strip(), display=display)}</{match[1]}>'
        )

    return _FORMULA.sub(to_mathml, content)
