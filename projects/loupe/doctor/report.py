"""The doctor's report, as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from typing import Any

from loupe.doctor.facts import Grid
from loupe.doctor.findings import CHECKS, SEVERITIES, Finding

_EXAMPLES = 5


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
    counts = report["counts"]
    lines = [
        "# Doctor's report",
        "",
        ", ".join(f"{counts[severity]} {severity}s" for severity in SEVERITIES)
        + (". Nothing that must be repaired." if report["clean"] else "."),
        "",
        *_findings_table(report["findings"]),
        *_statistics_table(report["datasets"]),
        *_alpha_table(report["datasets"], report["grid"]),
        *_details(report["findings"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _findings_table(findings: list[dict]) -> list[str]:
    if not findings:
        return []
    rows = [
        f"| {f['severity']} | `{f['check']}` | {_cell(f['dataset'])} | {_share(f)} | {f['title']} |"
        for f in findings
    ]
    return ["| severity | check | set | found | what |", "|---|---|---|---|---|", *rows, ""]


def _statistics_table(datasets: dict[str, dict]) -> list[str]:
    lines = [
        "| set | images | forged | authentic | unlabelled | masks | formats (forged; authentic) "
        "| sizes | median size | median forged share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in datasets.items():
        kinds = [_kinds(figures["formats"][label]) for label in ("forged", "authentic")]
        if figures["unlabelled"]:
            kinds.append(_kinds(figures["formats"]["unlabelled"]))
        size = [figures[side]["0.5"] if figures[side] else 0 for side in ("width", "height")]
        share = figures["forged_share"]
        lines.append(
            f"| {_cell(name)} | {figures['images']} | {figures['forged']} | "
            f"{figures['authentic']} | {figures['unlabelled']} | {figures['masks']} | "
            f"{'; '.join(kinds)} | {figures['sizes']} | {size[0]:.0f} x {size[1]:.0f} | "
            f"{'-' if share is None else format(share['0.5'], '.1%')} |"
        )
    return ["## The sets", "", *lines, ""]


def _alpha_table(datasets: dict[str, dict], grid: dict[str, int]) -> list[str]:
    lines = []
    for name, figures in datasets.items():
        alphas = figures["alphas"]
        cells = [
            "-" if alphas[key] is None else f"{alphas[key]:.3f}"
            for key in ("image", "patch", "patch_hard", "pixel")
        ]
        measured = alphas["forged_images_measured"]
        lines.append(f"| {_cell(name)} | {' | '.join(cells)} | {measured} |")
    return [
        "## Alphas of the losses",
        "",
        f"Weight of the forged class that balances it, at {grid['size']} pixels and patches of "
        f"{grid['patch_size']}: share of authentic images among the labelled, and of authentic "
        "patches and pixels in forged images with a mask. A patch counts by its forged share (as "
        "its loss does), in brackets as forged from one half.",
        "",
        "| set | image | patch | (patch, hard) | pixel | forged images measured |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def _details(findings: list[dict]) -> list[str]:
    lines = ["## Findings", ""] if findings else []
    for finding in findings:
        lines += [
            f"### {finding['severity']}: `{finding['check']}` in {finding['dataset']}",
            "",
            f"{_share(finding)}: {finding['title']}. Remedy: {finding['remedy']}.",
            "",
            *(f"- {item}" for item in finding["items"][:_EXAMPLES]),
        ]
        if len(finding["items"]) > _EXAMPLES:
            lines.append(f"- and {len(finding['items']) - _EXAMPLES} more, in the JSON report")
        lines.append("")
    return lines


def _share(finding: dict) -> str:
    return f"{finding['count']} of {finding['of']}" if finding["of"] else str(finding["count"])


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
