"""The process that draws previews: `python -m server.preview_worker`, a line of JSON in, a line of JSON out.

The first line out says that it is ready. It has a release's file and a study's definition, and no database; the
API ends it when it takes too long
(`server.previews`). Generators that were used lately stay loaded.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from models.conditions import ConditionError
from models.digests import digest_of
from models.sampling import CohortSampler, RareConditionError
from models.study import Study
from models.study_generator import StudyGenerator
from models.weights import decode_arrays
from server.exports.images import contact_sheet, png_bytes
from server.exports.values import row_values

KEPT_GENERATORS = 4


class _Generators:
    """Those used lately, by the digest of their weights and study."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[StudyGenerator, Study]] = OrderedDict()

    def get(self, request: dict[str, Any]) -> tuple[StudyGenerator, Study]:
        name = (request["weights_digest"], request["study_digest"])
        if name not in self._kept:
            data = Path(request["weights"]).read_bytes()
            if digest_of(data) != request["weights_digest"]:
                raise RuntimeError("the release's file no longer has the digest it is named by")
            study = Study.from_dict(request["study"])
            self._kept[name] = StudyGenerator.from_arrays(decode_arrays(data), study), study
            while len(self._kept) > KEPT_GENERATORS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]


def answer(request: dict[str, Any], generators: _Generators) -> dict[str, Any]:
    """Draw one preview, or a sheet of pictures, or say in `refused` why not."""
    sheet = request.get("sheet")
    num_patients = request["num_patients"] if sheet is None else sheet[0] * sheet[1]
    try:
        generator, study = generators.get(request)
        sampler = CohortSampler(generator.table, study.table, request["conditions"])
        table = next(iter(sampler.chunks(num_patients, seed=request["seed"])))
    except (ConditionError, RareConditionError) as error:
        rare = isinstance(error, RareConditionError)
        return {"refused": str(error), "probability": error.probability if rare else None}
    if sheet is not None:
        (_, pictures), *_ = generator.with_pictures(table, seed=request["seed"])
        assert pictures is not None  # asked only of releases that have some
        return {"png": base64.b64encode(png_bytes(contact_sheet(pictures, num_rows=sheet[0]))).decode()}
    chosen = table[request["columns"]]
    rows = [
        [cell if isinstance(cell, str | int | float | bool | None) else str(cell) for cell in row]
        for row in row_values(chosen)
    ]
    report = sampler.report
    return {
        "rows": rows,
        "probability": report.probability,
        "exact": report.exact,
        "effective_components": report.effective_components,
    }


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    generators = _Generators()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            told = answer(json.loads(line), generators)
        except Exception as error:
            told = {"failed": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
