"""The evaluator of explanations: takes texts image by image, and reports once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from loupe.evaluation.bootstrap import RESAMPLES
from loupe.evaluation.text.overlap import overlap_scores
from loupe.evaluation.text.parsing import parse
from loupe.evaluation.text.scores import Explained, Score, score
from loupe.vocabulary import Claims
from loupe.writing import plain_stem, write_json, write_text

_logger = logging.getLogger(__name__)


class ExplanationEvaluator(DatasetEvaluator):
    """Facts, false claims, contradictions and overlap over one data set.

    Writes `inference/NAME.json` with intervals, `NAME.texts.json` with every text, and
    `NAME.pairs.json` for an outside judge: reference and text of each image, without scores.

    Args:
        dataset_name: For the log and the files' names.
        output_dir: Folder of the files; None writes nothing.
        resamples: Of the bootstrap.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        resamples: int = RESAMPLES,
    ) -> None:
        self.dataset_name = dataset_name
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.resamples = resamples
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._records: dict[str, Explained] = {}
        self._errors: dict[str, str] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes a batch.

        Args:
            inputs: Items with `image_id`; `claims`, what is true, and `reference` where known.
            outputs: For each `explanation` and `complete`; `verdict` and `region_claims` of the
                detector where there is one; or `error`.
        """
        for item, output in zip(inputs, outputs, strict=True):
            image_id = str(item["image_id"])
            if "error" in output:
                self._errors[image_id] = str(output["error"])
                continue
            given = item | output
            region = given.get("region_claims")
            self._records[image_id] = Explained(
                image_id,
                output["explanation"],
                bool(output["complete"]),
                parse(output["explanation"]),
                _claims(item.get("claims")) or Claims(""),
                str(given.get("verdict", "")),
                _claims(region),
                str(item.get("reference", "")),
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Gathers, scores, logs and writes.

        Returns:
            Groups of plain floats, `results["facts"]["cell"]`; empty in all processes but the main
            one.
        """
        gathered = comm.gather((self._records, self._errors))
        if not comm.is_main_process():
            return OrderedDict()
        records: dict[str, Explained] = {}
        errors: dict[str, str] = {}
        for own, faults in gathered:
            records |= own
            errors |= faults
        rows = [records[name] for name in sorted(records)]
        self.scores = score(rows, resamples=self.resamples) if rows else {}
        referenced = [one for one in rows if one.reference]
        overlap = (
            overlap_scores([one.text for one in referenced], [one.reference for one in referenced])
            if referenced
            else {}
        )
        _logger.info("Explanations of %s\n%s", self.dataset_name, table(self.scores, overlap))
        if self.output_dir is not None:
            self._write(rows, overlap, errors)
        groups: OrderedDict[str, dict[str, float]] = OrderedDict()
        values = {name: one.value for name, one in self.scores.items()} | overlap
        for name, value in values.items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = value
        return groups

    def _write(
        self, rows: list[Explained], overlap: dict[str, float], errors: dict[str, str]
    ) -> None:
        stem = plain_stem(self.dataset_name)
        folder = Path(self.output_dir or ".") / "inference"
        metrics = {name: one._asdict() for name, one in self.scores.items()}
        content = {"dataset": self.dataset_name, "images": len(rows), "errors": errors}
        write_json(folder / f"{stem}.json", content | {"metrics": metrics, "overlap": overlap})
        texts = [one._asdict() | _claim_tables(one) for one in rows]
        write_json(folder / f"{stem}.texts.json", texts)
        pairs = [
            {"image_id": one.image_id, "reference": one.reference, "text": one.text}
            for one in rows
            if one.reference
        ]
        write_json(folder / f"{stem}.pairs.json", pairs)
        write_text(folder / f"{stem}.txt", table(self.scores, overlap))


def _claims(value: Any) -> Claims | None:
    """Claims, also from a table as JSON gives it."""
    return Claims(**value) if isinstance(value, dict) else value


def _claim_tables(one: Explained) -> dict[str, Any]:
    region = None if one.region is None else one.region._asdict()
    return {"claims": one.claims._asdict(), "truth": one.truth._asdict(), "region": region}


def table(scores: dict[str, Score], overlap: dict[str, float]) -> str:
    """Scores as lines of text."""
    lines = [
        f"{name:<32}{one.value:7.3f}  [{one.low:.3f}, {one.high:.3f}]  {one.images}"
        for name, one in scores.items()
        if np.isfinite(one.value)
    ]
    lines += [f"{name:<32}{value:7.3f}" for name, value in overlap.items()]
    return "\n".join(lines) + "\n"
