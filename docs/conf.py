"""The site: `make docs` builds it, and fails at a dead internal link or a warning."""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import reference

import resnet_jax

project = "resnet_jax"
author = "the resnet_jax authors"
copyright = "the resnet_jax authors, Apache-2.0"
version = release = resnet_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# Notebooks are committed with their outputs and executed by a test
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "resnet_jax"
html_theme_options = {"source_edit_link": "", "top_of_page_buttons": []}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "literal"
# Prompts of doctests stay on the page and are not copied
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

reference.write_pages(HERE / "generated")
# The pages of experiments/ are pages of the site
shutil.copytree(HERE.parent / "experiments", HERE / "experiments", dirs_exist_ok=True)


def setup(app):
    """Lead links from docs/ to experiments/, as they are read in a checkout, to the pages of the site."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("source-read", lambda app, name, text: text.__setitem__(0, inside_site(name, text[0])))


def keep_colons(app, what, name, value, options, lines):
    """Keep napoleon from taking what stands before a colon in the text of a field for its type."""
    if what in ("attribute", "property") and lines:
        lines[0] = f": {lines[0]}"


def inside_site(name, text):
    """Return the text of a page with links into the site."""
    if name == "index":
        # Guides that no list names
        names = sorted(path.stem for path in HERE.glob("*.md"))
        rest = [name for name in names if name != "index" and not re.search(rf"^{name}$", text, re.M)]
        return text.replace("REST\n", "".join(f"{name}\n" for name in rest))
    if name.startswith("generated/"):
        return text
    if name.startswith("experiments/"):
        # Folders have no page
        text = re.sub(r"\[([^\]]+)\]\([\w/]+\)", r"\1", text)
        return re.sub(r"\]\((?:\.\./)+docs/", "](/", text)
    text = re.sub(r"\]\(\.\./([A-Z_]+)\.md\)", lambda found: f"](/generated/{found[1].lower()}.md)", text)
    return text.replace("](../experiments/", "](experiments/")
