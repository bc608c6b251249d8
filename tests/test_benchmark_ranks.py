"""The cost model of exchanges has known answers, and weak scaling is measured on real processes."""

from pathlib import Path

import pytest
import torch
from torch import nn

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


pytestmark = pytest.mark.usefixtures("scripts")


def test_large_sums_travel_by_a_ring_and_small_ones_by_a_tree():
    from benchmarks.exchange import Exchange, Link

    link = Link("any", bandwidth=1e9, latency=1e-5)
    large, small = Exchange("all_reduce", 8 * 10**8, "gradients"), Exchange("all_reduce", 8, "terms")
    assert large.seconds(8, link) == pytest.approx(2 * 7 / 8 * 0.8 + 14 * 1e-5)
    assert small.seconds(8, link) == pytest.approx(2 * 3 * 1e-5, rel=1e-3)
    assert Exchange("all_gather", 10**6, "terms").seconds(5, link) == pytest.approx(3 * 1e-5 + 4 * 1e-3)


def test_overlap_hides_gradients_behind_the_backward_pass_alone():
    from benchmarks.exchange import BACKWARD, Exchange, Link, row

    link = Link("any", bandwidth=1e9, latency=0.0)
    found = [Exchange("all_gather", 10**6, "terms"), Exchange("all_reduce", 10**6, "gradients")]
    quick, slow = (row(found, 2, link, step_ms) for step_ms in (10.0, 1.0))
    assert (quick["terms_ms"], quick["gradients_ms"]) == pytest.approx((1.0, 1.0))
    assert (quick["efficiency"], quick["efficiency_overlapped"]) == pytest.approx((10 / 12, 10 / 11))
    assert slow["efficiency_overlapped"] == pytest.approx(1 / (3 - BACKWARD))


def test_what_a_step_exchanges_is_recorded_from_the_step():
    from benchmarks.exchange import COUNTED, model, recorded, shown
    from benchmarks.step import bundle_step

    from monai_anon.compute import PLAIN

    step = bundle_step("train", PLAIN, "cpu", 32)
    parts = [step.updater, *step.critic_updaters.values()]
    before = [[p.detach().clone() for p in part.parameters] for part in parts]
    found = recorded(step, 4, 32)
    assert [e.size for e in found if e.purpose == "gradients"] == [
        4 * sum(p.numel() for p in part.parameters) for part in reversed(parts)
    ]
    contrastive = COUNTED * (2 * 96 * 4 + 8 + 1)  # two identities, a patient's code, a flag
    assert contrastive in [e.size for e in found if e.kind == "all_gather"]
    assert any((a != b).any() for kept, part in zip(before, parts) for a, b in zip(kept, part.parameters))
    result = model("train", 24, (2, 8), step_ms=5.0, size=32)
    assert len(result["rows"]) == 6 and all(0 < row["efficiency"] < 1 for row in result["rows"])
    assert "efficiency_overlapped" in shown(result)


def test_batch_normalisation_is_counted_call_by_call():
    from benchmarks.exchange import normalisation_noted

    class Step:
        model, critics = nn.BatchNorm2d(3), {}

    found = []
    with normalisation_noted(Step, found.append):
        Step.model(torch.zeros(2, 3, 1, 1))
        Step.model.eval()(torch.zeros(2, 3, 1, 1))
    assert [(e.kind, e.size) for e in found] == [("all_gather", 28), ("all_reduce", 24)]
    Step.model.train()(torch.zeros(2, 3, 1, 1))
    assert len(found) == 2


@pytest.mark.slow
def test_weak_scaling_is_measured_in_every_way():
    from benchmarks.ranks import measure

    result = measure("train", 2, 2, rounds=1, steps=1, size=32)
    assert set(result["ms_per_step"]) == {"alone", "side_by_side", "together"} and result["all_reduce_ms"] > 0
    assert result["efficiency"] == pytest.approx(result["ms_per_step"]["alone"] / result["ms_per_step"]["together"])
    assert result["samples_per_s"] == pytest.approx(2 * 2 / result["ms_per_step"]["together"] * 1e3)
    assert result["gradient_mb"] > 1
