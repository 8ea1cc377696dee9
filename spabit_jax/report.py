"""report.html: one file that says what was run and how good it is, figures inside."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from spabit_jax.files import replacing

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; color: #222; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } .table { overflow-x: auto; }
"""


def write_report(path: Path, metrics: dict, table: list[tuple[str, dict]], figures: dict[str, Path]) -> None:
    """Writes the report of a run.

    Args:
      metrics: the content of metrics.json.
      table: (method, {"pcc", "mse", "mae"}) of the model and of the baselines.
      figures: caption → PNG file.
    """
    protocol = metrics["protocol"]
    lines = [
        f"<p>Expression of {protocol['n_genes']} genes was predicted at {protocol['n_test']} spots that the model "
        f"never saw, from {protocol['n_train']} measured ones (split {html.escape(protocol['split'])}, "
        f"panel {html.escape(str(protocol['panel']))}, image encoder {html.escape(metrics['encoder'])}, "
        f"{len(metrics['seeds'])} seeds).</p>",
        "<p>PCC is the correlation of prediction and measurement over the test spots, a gene at a time, averaged over "
        "the genes: 1 is perfect, 0 is no better than a constant. MSE and MAE are errors in log2(count + 1).</p>",
        '<div class="table"><table><tr><th>method</th><th>PCC</th><th>MSE</th><th>MAE</th></tr>',
    ]
    for method, values in table:
        cells = "".join(f"<td>{values[name]:.4f}</td>" for name in ("pcc", "mse", "mae"))
        lines.append(f"<tr><td>{html.escape(method)}</td>{cells}</tr>")
    lines.append("</table></div>")
    for caption, figure in figures.items():
        data = base64.b64encode(figure.read_bytes()).decode()
        caption = html.escape(caption)
        lines.append(f'<h2>{caption}</h2><img alt="{caption}" src="data:image/png;base64,{data}">')
    title = f"SpaBiT: {html.escape(metrics['section'])}, {html.escape(metrics['method'])}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    page = f'<!doctype html><html lang="en"><head>{head}<title>{title}</title><style>{STYLE}</style></head><body>'
    with replacing(path) as temporary:
        temporary.write_text("\n".join([page, f"<h1>{title}</h1>", *lines, "</body></html>"]))
