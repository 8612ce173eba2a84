"""The parts of a report's page: cards, tables, sections; everything from outside is escaped.

Whatever comes from outside (config values, paths, reasons, notes) goes through `text`, and the page's own
Content-Security-Policy forbids scripts and loading, so that a document id with markup in it stays what it is: text.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from operators.report.figures import printable


def config_section(config: Mapping[str, Any]) -> str:
    """The config that a run had."""
    shown = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return section("Config", f"<pre>{text(shown, keep_lines=True)}</pre>")


def text(value: object, keep_lines: bool = False) -> str:
    """Any value as text of the page: escaped, and without control characters."""
    lines = str(value).split("\n")
    return html.escape(("\n" if keep_lines else " ").join(printable(line) for line in lines))


def head(title: str, subtitle: str) -> str:
    """The page's heading."""
    return f"<header><h1>{text(title)}</h1><p>{text(subtitle)}</p></header>"


def cards(shown: Sequence[tuple[str, str, str]]) -> str:
    """Large figures: (name, value, note)."""
    inner = "".join(
        f'<div class="card"><span>{text(name)}</span><b>{text(value)}</b><i>{text(note)}</i></div>'
        for name, value, note in shown
    )
    return f'<div class="cards">{inner}</div>'


def notes(lines: Sequence[str]) -> str:
    """Remarks, one box each."""
    return "".join(f'<p class="note">{text(note)}</p>' for note in lines)


def section(title: str, inner: str) -> str:
    """A box with a title."""
    return f"<section><h2>{text(title)}</h2>{inner}</section>"


def panel(title: str, svg: str, caption: str) -> str:
    """A plot with its title."""
    return f'<figure><h2>{text(title)}</h2><p class="caption">{text(caption)}</p>{svg}</figure>'


def table(names: Sequence[str], rows: Sequence[Sequence[str]], raw_last: bool = False) -> str:
    """A table; with `raw_last` the last column is markup of ours already."""
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = []
    for row in rows:
        cells = [text(cell) for cell in row]
        if raw_last:
            cells[-1] = row[-1]
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def facts(shown: Mapping[str, str]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in shown.items()) + "</dl>"


def page(title: str, body: Sequence[str]) -> str:
    """The whole file."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


_STYLE = """
:root{--ink:#1f2933;--muted:#66727f;--line:#e4e8ec;--paper:#fff;--ground:#f5f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1060px;margin:0 auto;padding:32px 20px 56px}
h1{font-size:25px;margin:0;overflow-wrap:anywhere}
h2{font-size:15px;margin:0 0 10px}
header p,.caption{color:var(--muted);margin:2px 0 0;overflow-wrap:anywhere}
.caption{font-size:13px;margin:-8px 0 6px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:22px 0}
.card,section,figure{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.card{padding:12px 14px;min-width:0}
.card span,.card i{display:block;color:var(--muted);font-size:12.5px;font-style:normal;overflow-wrap:anywhere}
.card b{display:block;font-size:22px;white-space:nowrap;font-weight:650;font-variant-numeric:tabular-nums}
section,figure{padding:16px 18px;margin:0 0 14px;min-width:0}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));gap:14px;margin:0 0 14px}
.panels figure{margin:0}
figure svg{width:100%;max-width:620px;margin:0 auto;height:auto;display:block}
svg text{font-family:system-ui,-apple-system,"Segoe UI",sans-serif!important}
.whisker{width:140px;height:16px;vertical-align:middle;margin-right:8px}
.note{background:#fff7e8;border:1px solid #f1dcb3;border-radius:8px;padding:8px 12px;margin:0 0 10px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-size:12.5px;font-weight:500;color:var(--muted);text-align:left}
th,td{padding:5px 14px 5px 0;border-bottom:1px solid var(--line);white-space:nowrap}
td:first-child{white-space:normal;overflow-wrap:anywhere}
tbody tr:last-child td{border-bottom:0}
b.in{color:#23804a}b.out{color:#c8453b}.na{color:var(--muted)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{margin:0;font:12.5px/1.5 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{background:#fff}section,figure,.card{break-inside:avoid}}
"""
