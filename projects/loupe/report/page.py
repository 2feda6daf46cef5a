"""The page of a report: plain HTML whose every text is escaped.

Style and script lie in the page, named by their hashes in its content security policy: nothing
else runs, even if a file's name or metadata tried to. The page of a folder has controls, and its
pictures beside it; a single file has neither script nor neighbours (`loupe.service` sends it).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

VERDICTS = {
    "forged": "Forged: traces of a forgery, as strong as in few authentic photographs",
    "undecided": "Undecided: this model cannot tell",
    "authentic": "Authentic: no trace that this model knows; others may be there",
    "": "No verdict: the weights carry no rule for one",
}
MARKED_THOUGH_AUTHENTIC = (
    "Marked although the image as a whole is called authentic: a weak hint, which authentic "
    "photographs give, too."
)
_CREDENTIALS = {
    "none": "none",
    "valid": "valid signature, of a signer who is not on a list of trust",
    "trusted": "valid signature of a trusted signer",
    "invalid": "INVALID: the file was changed after it was signed, or the signature is broken",
    "unread": "there are some, but they could not be read",
}
_FILTER = """<svg width="0" height="0" aria-hidden="true"><filter id="marked"
color-interpolation-filters="sRGB"><feColorMatrix values="0 0 0 0 1  0 0 0 0 0  0 0 0 0 .63
1 0 0 0 0"/><feComponentTransfer><feFuncA id="alpha" type="linear" slope="2" intercept="-1"/>
</feComponentTransfer></filter></svg>"""


def page(content: Mapping[str, Any], *, single_file: bool = False) -> str:
    """The HTML of a report.

    Args:
        content: What `report.json` holds.
        single_file: No script, no controls; the pictures are `data:` addresses.
    """
    style, script = (
        files("loupe.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    script_from, pictures_from = _hash(script), "'self' file:"
    controls = _controls()
    dialog = f"""<dialog id="large" aria-label="Enlarged picture"><figure></figure></dialog>
<script>{script}</script>"""
    if single_file:
        script_from, pictures_from, controls, dialog = "'none'", "data:", "", ""
    policy = (
        f"default-src 'none'; img-src {pictures_from}; style-src {_hash(style)}; "
        f"script-src {script_from}; base-uri 'none'; form-action 'none'"
    )
    articles = "".join(_article(one, single_file) for one in content["images"])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(content["title"])}</title>
<style>{style}</style></head><body>
{_FILTER}
<header>{_head(content)}</header>
{controls}
<main id="images"{' class="beside"' * single_file}>{articles}</main>
{_errors(content["errors"])}
{dialog}
</body></html>
"""


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _text(value: object) -> str:
    # Names of files may hold bytes that are no text.
    return escape(str(value).encode("utf-8", "backslashreplace").decode(), quote=True)


def _head(content: Mapping[str, Any]) -> str:
    model = content["model"]
    counts = {word: 0 for word in VERDICTS if word}
    for image in content["images"]:
        if image["verdict"]:
            counts[image["verdict"]] += 1
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    rows = {
        "date": content["date"],
        "model": f"{model['name']} (SHA-256 {model['sha256']})",
        "version": f"Loupe {model['version']}, {content['system']}",
        "settings": ", ".join(f"{key} {value}" for key, value in model["settings"].items()),
        "what a verdict means": model["operating_point"],
    }
    return (
        f"<h1>{_text(content['title'])}</h1><p>{len(content['images'])} images: {summary}; "
        f"{len(content['errors'])} could not be read.</p>"
        '<p class="soft">A hint from statistics of pixels, not a proof. Look at the regions '
        "and at where the file comes from before you say anything about anybody.</p>"
        f"{_table(rows)}"
    )


def _controls() -> str:
    options = "".join(f'<option value="{word}">{word}</option>' for word in VERDICTS if word)
    return f"""<div class="bar" role="group" aria-label="View">
<label>Threshold <input id="threshold" type="range" min="0" max="99" value="50">
<output id="threshold-value">0.50</output></label>
<label>Opacity <input id="opacity" type="range" min="0" max="100" value="60">
<output id="opacity-value">60%</output></label>
<label><input id="steps" type="checkbox" checked> hard edge</label>
<label><input id="beside" type="checkbox"> side by side</label>
<label>Sort <select id="sort"><option value="probability">probability</option>
<option value="file">file</option><option value="area">marked area</option></select></label>
<label>Verdict <select id="verdict"><option value="">all</option>{options}</select></label>
<label>Search <input id="search" type="search" size="14"></label>
<button id="print" type="button">print</button>
<span id="shown" class="soft" role="status"></span></div>"""


def _article(image: Mapping[str, Any], single_file: bool) -> str:
    word, file = image["verdict"], image["file"]
    zoom = "" if single_file else '<button type="button" class="zoom">enlarge</button>'
    area = sum(region["area"] for region in image["regions"])
    fraction = area / (image["width"] * image["height"])
    alternative = f"{file}, {image['width']} x {image['height']} pixels"
    size = f'width="{image["width"]}" height="{image["height"]}" loading="lazy" decoding="async"'
    picture = f'<img src="{image["picture"]}" alt="{_text(alternative)}" {size}>'
    overlay = f'<img class="map" src="{image["map"]}" alt="" {size}>'
    sentences = [fact["sentence"] for fact in image["facts"] if fact["region"] is None]
    return f"""<article data-file="{_text(file)}" data-verdict="{_text(word)}"
data-probability="{image["probability"]}" data-area="{fraction}">
<h2>{_text(file)}</h2>
<p><span class="verdict {_text(word)}">{_text(VERDICTS.get(word, word))}</span>
<span class="soft">probability {image["probability"]:.2f}, {fraction:.1%} marked</span>
{zoom}</p>
{_list(image["reasons"])}{_list(image["warnings"], "warn")}
<div class="pictures"><figure class="plain">{picture}</figure>
<figure class="marked">{picture}{overlay}</figure></div>
{_list(sentences)}
{_regions(image)}
{_written(image.get("text"))}
{_file(image)}</article>
"""


def _regions(image: Mapping[str, Any]) -> str:
    """Regions as a table, and what was measured of each."""
    if not image["regions"]:
        return ""
    rows = "".join(
        f'<tr><td class="n">{number}</td><td>{region["box"][0]}, {region["box"][1]} to '
        f'{region["box"][2]}, {region["box"][3]}</td><td class="n">{region["area"]}</td>'
        f'<td class="n">{region["mean_score"]:.2f}</td></tr>'
        for number, region in enumerate(image["regions"][:10], 1)
    )
    said = [fact["sentence"] for fact in image["facts"] if fact["region"] is not None]
    more = len(image["regions"]) - 10
    rest = f'<p class="soft">and {more} smaller ones</p>' if more > 0 else ""
    if image["verdict"] == "authentic":
        rest += f'<p class="soft">{_text(MARKED_THOUGH_AUTHENTIC)}</p>'
    return (
        '<h3>Marked regions</h3><table><thead><tr><th class="n">no.</th><th>box in pixels (left, '
        'top to right, bottom)</th><th class="n">area in pixels</th><th class="n">mean score</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>{rest}{_list(said)}"
    )


def _written(text: Mapping[str, Any] | None) -> str:
    """What a language model wrote, apart from what was measured."""
    if not text:
        return ""
    heading = "<h3>Written by a language model, not measured</h3>"
    return f"{heading}<p>{_text(text['text'])}</p>{_list(text['warnings'], 'warn')}"


def _file(image: Mapping[str, Any]) -> str:
    """What the file says of itself, where that was read."""
    facts = image["file_facts"]
    if not facts:
        return ""
    said = f"{_list(facts['contradictions'], 'warn')}\n{_table(_file_rows(image, facts))}"
    return f"<h3>The file</h3>\n{said}\n{_exif(facts['exif'])}"


def _file_rows(image: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, str]:
    jpeg, thumbnail, credentials = facts["jpeg"], facts["thumbnail"], facts["credentials"]
    rows = {
        "SHA-256": facts["sha256"],
        "size": f"{facts['bytes']} bytes, {image['width']} x {image['height']} pixels",
        "format": str(facts["format"]),
    }
    if jpeg and jpeg["quality"]:
        kind = "standard tables" if jpeg["tables"] == "standard" else "nearest; tables of its own"
        order = ", progressive" if jpeg["progressive"] else ""
        rows["JPEG"] = f"quality {jpeg['quality']} ({kind}), colour {jpeg['subsampling']}{order}"
    rows["software"] = ", ".join(facts["software"]) or "none named"
    if thumbnail:
        rows["thumbnail"] = (
            f"{thumbnail['width']} x {thumbnail['height']}, correlation with the picture "
            f"{thumbnail['correlation']}"
        )
    state = _CREDENTIALS.get(credentials["state"], credentials["state"])
    said = [credentials["generator"], ", ".join(credentials["actions"]), credentials["problem"]]
    rows["content credentials"] = "; ".join([state, *(str(one) for one in said if one)])
    if image.get("class"):
        classes = image["class_probabilities"].items()
        rows["class"] = ", ".join(f"{name} {value:.2f}" for name, value in classes)
    if image["views"]:
        rows["what the model saw"] = "; ".join(image["views"])
    rows["seconds"] = str(image["seconds"])
    if facts["unread"]:
        rows["not read"] = "; ".join(facts["unread"])
    return rows


def _exif(tags: Mapping[str, str]) -> str:
    if not tags:
        return ""
    return f"<details><summary>EXIF, {len(tags)} tags</summary>{_table(tags)}</details>"


def _errors(errors: Sequence[Mapping[str, str]]) -> str:
    if not errors:
        return ""
    return f"<section><h2>Not read</h2>{_list(one['error'] for one in errors)}</section>"


def _table(rows: Mapping[str, str]) -> str:
    lines = (
        f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items()
    )
    return f"<table><tbody>{''.join(lines)}</tbody></table>"


def _list(lines: Iterable[str], kind: str = "") -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""
