"""The doctor's report, as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from typing import Any

from loupe.doctor.facts import Grid
from loupe.doctor.findings import CHECKS, SEVERITIES, Finding
from loupe.writing import markdown_table, markdown_text

_EXAMPLES = 5
_ALPHAS = """\
Weight of the forged class that balances it, at {size} pixels and patches of {patch_size}: fraction
of authentic images among the labelled, and of authentic patches and pixels in forged images with a
mask. A patch counts by its forged fraction (as its loss does), in brackets as forged from one half.
"""


def json_report(
    findings: list[Finding], statistics: dict[str, dict], grid: Grid, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything, every item of every finding included."""
    counts = Counter(finding.severity for finding in findings)
    return {
        "clean": counts["error"] == 0,
        "counts": {severity: counts[severity] for severity in SEVERITIES},
        "grid": grid._asdict(),
        "options": options,
        "datasets": statistics,
        "findings": [
            {
                "check": finding.check,
                "severity": finding.severity,
                "dataset": finding.dataset,
                "count": len(finding.items),
                "of": finding.total or None,
                "title": CHECKS[finding.check].title,
                "remedy": CHECKS[finding.check].remedy,
                "items": finding.items,
            }
            for finding in findings
        ],
    }


def markdown_report(report: dict[str, Any]) -> str:
    """The readable report from the JSON one; five examples of each finding."""
    counts = ", ".join(f"{report['counts'][severity]} {severity}s" for severity in SEVERITIES)
    findings = report["findings"]
    parts = [
        "# Doctor's report\n",
        counts + (". Nothing must be repaired.\n" if report["clean"] else ".\n"),
        _findings_table(findings) if findings else "",
        "## The sets\n",
        _statistics_table(report["datasets"]),
        "## Alphas of the losses\n",
        _ALPHAS.format(**report["grid"]),
        _alpha_table(report["datasets"]),
        "## Findings\n" if findings else "",
        *map(_details, findings),
    ]
    return "\n".join(part for part in parts if part)


def _findings_table(findings: list[dict]) -> str:
    return markdown_table(
        ["severity", "check", "set", "found", "what"],
        [(f["severity"], f["check"], f["dataset"], _extent(f), f["title"]) for f in findings],
    )


def _statistics_table(datasets: dict[str, dict]) -> str:
    rows = []
    for name, figures in datasets.items():
        kinds = [_kinds(figures["formats"][label]) for label in ("forged", "authentic")]
        if figures["unlabelled"]:
            kinds.append(_kinds(figures["formats"]["unlabelled"]))
        width, height = (figures[s]["0.5"] if figures[s] else 0 for s in ("width", "height"))
        fraction = figures["forged_fraction"]
        counts = [figures[k] for k in ("images", "forged", "authentic", "unlabelled", "masks")]
        rows.append(
            [
                *(name, *counts, "; ".join(kinds), figures["sizes"], f"{width:.0f} x {height:.0f}"),
                "-" if fraction is None else f"{fraction['0.5']:.1%}",
            ]
        )
    return markdown_table(
        [
            *("set", "images", "forged", "authentic", "unlabelled", "masks"),
            *("formats (forged; authentic)", "sizes", "median size", "median forged fraction"),
        ],
        rows,
    )


def _alpha_table(datasets: dict[str, dict]) -> str:
    rows = []
    for name, figures in datasets.items():
        alphas = figures["alphas"]
        values = [alphas[key] for key in ("image", "patch", "patch_hard", "pixel")]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([name, *cells, alphas["forged_images_measured"]])
    return markdown_table(
        ["set", "image", "patch", "(patch, hard)", "pixel", "forged images measured"], rows
    )


def _details(finding: dict) -> str:
    items = finding["items"]
    lines = [
        f"### {finding['severity']}: {finding['check']} in {markdown_text(finding['dataset'])}",
        "",
        f"{_extent(finding)}: {finding['title']}. Remedy: {finding['remedy']}.",
        "",
        *(f"- {markdown_text(item)}" for item in items[:_EXAMPLES]),
    ]
    if len(items) > _EXAMPLES:
        lines.append(f"- and {len(items) - _EXAMPLES} more, in the JSON report")
    return "\n".join(lines) + "\n"


def _extent(finding: dict) -> str:
    return f"{finding['count']} of {finding['of']}" if finding["of"] else str(finding["count"])


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "-"
