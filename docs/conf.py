"""Sphinx settings of the documentation. Reference pages are generated from the package when the builder starts."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "vcbench"
author = "The vcbench developers"
copyright = "The vcbench developers, MIT licence"
release = version = installed_version("vcbench")

extensions = ["myst_parser", "vcbench_pages"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
# Front matter says how the tests run a page; it is not shown.
suppress_warnings = ["myst.xref_ambiguous"]

html_theme = "furo"
html_title = f"vcbench {release}"
html_copy_source = False
html_show_sphinx = False
