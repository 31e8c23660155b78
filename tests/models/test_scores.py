"""How a generator is scored: by the noisy moments alone."""

import json

import pytest
import torch

from models.anchor import Anchor
from models.generator import MixtureGenerator
from models.moments import MomentLayout
from models.scores import score
from models.study import Study
from models.table import EncodedTable

CARDS = (3, 4, 2)


@pytest.fixture
def study():
    columns = [
        {"kind": "categorical", "name": f"c{k}", "categories": [f"v{j}" for j in range(d)]}
        for k, d in enumerate(CARDS)
    ]
    return Study.from_dict(
        json.loads(
            json.dumps(
                {
                    "name": "refine",
                    "privacy": {"epsilon": 1.0, "delta": 1e-5},
                    "table": {"columns": columns, "label": "c2"},
                }
            )
        )
    )


@pytest.fixture
def arrays():
    source = torch.Generator().manual_seed(0)
    generator = MixtureGenerator(torch.randn(8, sum(CARDS), generator=source), torch.zeros(8), CARDS)
    codes = torch.stack([torch.randint(d, (5_000,), generator=source) for d in CARDS], 1)
    layout = MomentLayout(CARDS, 2)
    vector = layout.sum(EncodedTable(codes, torch.arange(5_001)))
    anchor = Anchor.from_sum(layout, vector, noise_std=20.0)
    return {**generator.to_arrays(), "anchor": anchor.to_tensor()}


def test_a_worse_generator_scores_worse(study, arrays):
    anchor = {"anchor": arrays["anchor"]}
    good = {name: arrays[name] for name in ("logits", "component_logits")}
    bad = {**good, "logits": good["logits"] * 8}
    assert score(study, bad, anchor)["residual"] > score(study, good, anchor)["residual"]
    assert score(study, bad, anchor)["misfit"] > score(study, good, anchor)["misfit"] > 0
