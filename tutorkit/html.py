"""An executed notebook as one HTML file that opens without a network.

The usual export loads scripts from other hosts: MathJax for formulas, and loaders for widgets and
diagrams. Here formulas become images drawn by matplotlib, and no script is left.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

TEMPLATE = """\
{% extends 'index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}
<style>
main { max-width: 60rem; margin: 0 auto; }
img.formula.display { display: block; margin: 0.8rem auto; }
</style>
{% endblock %}
"""

# Code comes first, so that a dollar sign inside it is left alone.
CODE_OR_FORMULA = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`)"
    r"|\$\$(?P<display>.+?)\$\$"
    r"|(?<![\\\w])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)


def formula_image(tex: str, display: bool = False) -> str:
    """A TeX formula as an inline image, or as code where matplotlib cannot draw it.

    Args:
        tex: the formula without its dollar signs, in the subset of TeX that matplotlib knows.
        display: on a line of its own.

    Returns:
        An HTML element.
    """
    from matplotlib import mathtext
    from matplotlib.font_manager import FontProperties

    drawing = io.BytesIO()
    tex = " ".join(tex.split())
    text = html.escape(tex, quote=True)
    try:
        font = FontProperties(size=12 if display else 10.5)
        depth = mathtext.math_to_image(f"${tex}$", drawing, prop=font, dpi=72, format="svg")
    except ValueError:
        # As an entity, or the export would take what follows the backslash for a formula again.
        return f"<code>{text.replace(chr(92), '&#92;')}</code>"
    source = "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue()).decode()
    place = 'class="formula display"' if display else f'style="vertical-align: -{depth:.1f}pt"'
    return f'<img {place} src="{source}" alt="{text}">'


def draw_formulas(markdown: str) -> str:
    """Markdown with every `$…$` and `$$…$$` outside code replaced by its image."""

    def draw(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        return formula_image(found["display"] or found["inline"], bool(found["display"]))

    return CODE_OR_FORMULA.sub(draw, markdown)


def notebook_to_html(notebook: Any, title: str) -> str:
    """An executed notebook as a page that needs nothing but itself.

    Args:
        notebook: the notebook node; it is left unchanged.
        title: the page's title.

    Returns:
        HTML with images, styles and formulas inside and without scripts. Cells tagged `colab` are
        left out.
    """
    import nbformat
    from nbconvert import HTMLExporter

    page = nbformat.from_dict(notebook)
    page.metadata["title"] = title
    page.metadata.pop("widgets", None)
    page.cells = [cell for cell in page.cells if "colab" not in cell.metadata.get("tags", [])]
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = draw_formulas(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/markdown" in data:
                data["text/markdown"] = draw_formulas("".join(data["text/markdown"]))
    exporter = HTMLExporter(template_name="lab", raw_template=TEMPLATE, embed_images=True)
    return exporter.from_notebook_node(page)[0]


def write_html(notebook_path: Path, html_path: Path) -> None:
    """Convert an executed notebook file into a self-contained HTML file.

    Args:
        notebook_path: the `.ipynb` file.
        html_path: the file to write.
    """
    import nbformat

    notebook = nbformat.read(notebook_path, as_version=4)
    html_path.write_text(notebook_to_html(notebook, html_path.parent.name), encoding="utf-8")
