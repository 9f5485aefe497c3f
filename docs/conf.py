"""The documentation site: `make docs` builds it into site/, without a network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "_ext")]

project = "Labelmill"
extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]

# Pages are ordinary Markdown; a heading's anchor is the one that GitHub gives it.
myst_heading_anchors = 4

# Single backticks in docstrings are code, as everywhere else in this project.
default_role = "code"
autodoc_member_order = "bysource"
# Signatures as they are written, one parameter per line if they are long.
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

# A block of code names its language, or is plain text.
highlight_language = "text"

html_theme = "furo"
html_title = "Labelmill"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The sources are in the checkout; the site need not repeat them.
html_copy_source = False
html_show_sourcelink = False
# There is no copyright line to show.
html_show_copyright = False
html_extra_path = ["reports"]
exclude_patterns = ["decisions.md", "reports"]
