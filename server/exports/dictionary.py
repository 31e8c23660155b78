"""`dictionary.json`: what each column of a cohort means, beside every cohort."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.schema import Column
from server.exports.context import NOT_A_PERSON, ExportContext

MEDIA_TYPE = "application/json"
FILE = "dictionary.json"


def describe_column(column: Column) -> dict[str, Any]:
    """A column as JSON data: its kind, words, unit, bounds and codes; what it does not have is left out."""
    bounds = {name: getattr(column, name, None) for name in ("minimum", "maximum")}
    found: dict[str, Any] = {
        "name": column.name,
        "kind": column.kind,
        "title": column.title or column.name,
        "description": column.description,
        "unit": getattr(column, "unit", ""),
        "may_be_absent": column.missing,
        "categories": list(getattr(column, "categories", ())),
        **{name: day.isoformat() if isinstance(day, dt.date) else day for name, day in bounds.items()},
        "bins": getattr(column, "num_values", None) if hasattr(column, "bins") else None,
        "fhir": _binding(column.fhir),
        "omop": _binding(column.omop),
    }
    return {name: value for name, value in found.items() if value not in ("", None, [])}


def _binding(mapping: Any) -> dict[str, Any] | None:
    if mapping is None:
        return None
    kept: dict[str, Any] = mapping.model_dump(mode="json", exclude_defaults=True)
    return kept


class DictionaryWriter:
    """Writes it; the patients do not change it."""

    def __init__(self, folder: Path, context: ExportContext) -> None:
        self.media_types = {FILE: MEDIA_TYPE}
        constraints = list(context.schema.constraints)
        data = {
            "synthetic": True,
            "note": NOT_A_PERSON,
            "release": context.release,
            "study": {
                "name": context.study,
                "title": context.study_title,
                "digest": context.study_digest,
            },
            "row": "one synthetic patient" if context.schema.rows == "patient" else "one synthetic visit",
            "held_by_every_record": constraints,
            "columns": [describe_column(column) for column in context.chosen],
        }
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        (folder / FILE).write_text(text, encoding="utf-8")

    def write(self, _table: pd.DataFrame, _images: np.ndarray | None) -> None:
        """See `FormatWriter`."""

    def close(self) -> None:
        """See `FormatWriter`."""
