"""The data's benchmarks compare like with like, fit what they say they fit, and leave nothing behind."""

import json

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("scripts")


def test_batches_and_starts_are_measured_against_the_library():
    from benchmarks import data

    found = data.measure("cpu", images=24, sizes=(32,), batch_size=4, batches=2, rounds=2, workers=(0,), recipes={})
    json.dumps(found)
    (size,) = found["sizes"].values()
    assert set(size["batches_per_s"]) == {
        "in memory", "on disk", "on disk, nothing read ahead", "library, 0 workers"
    }  # fmt: skip
    assert min([*size["batches_per_s"].values(), *size["start"].values()]) > 0
    assert size["library_cohort_mb"] == pytest.approx(4 * size["cohort_mb"])
    with pytest.raises(ValueError, match="at least 1"):
        data.measure("cpu", batches=0)


def test_candidates_that_deliver_other_batches_are_not_compared():
    from benchmarks import data

    batch, other = {"i_ori": torch.zeros(2)}, {"i_ori": torch.ones(2)}
    data.refuse_differences({"in memory": iter([batch]), "library": iter([batch])})
    with pytest.raises(RuntimeError, match="'library' delivers other batches"):
        data.refuse_differences({"in memory": iter([batch]), "library": iter([other])})


def test_a_cohort_of_any_size_is_planned_from_what_was_measured(tmp_path):
    from benchmarks import scale

    found = scale.measure(
        images=200, size=32, files=12, folder=tmp_path, seconds=0.05, batch_size=4, points=(200, 400, 800)
    )
    json.dumps(found)
    assert not list(tmp_path.iterdir())
    assert found["per_million"]["disk_gb"]["slope"] == pytest.approx((32 * 32 + 16) / 1e3)
    assert found["chexpert"]["disk_gb_fitted"] == pytest.approx(224_316 * 1040 / 1e9, rel=1e-4)
    minutes = found["chexpert"]["build_minutes_extrapolated"]
    assert minutes == pytest.approx(224_316 / found["build"]["images_per_s"] / 60)
    assert set(found["sampling"]["batches_per_s"]) == {
        "cold", "cold, nothing read ahead", "cold, by a memory map", "warm"
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 2"):
        scale.measure(points=(1000,))


def test_no_file_is_written_where_there_is_no_room(tmp_path):
    from benchmarks import scale

    from monai_anon.image_cache import NoSpaceError

    with pytest.raises(NoSpaceError, match="are needed"):
        scale.write_pixels(tmp_path / "a.npy", (10**9, 1, 1024, 1024))


def test_a_line_is_found_again_with_what_it_leaves_over():
    from benchmarks import scale

    points = np.array([1e5, 2e5, 4e5, 8e5])
    exact = scale.fitted(points, (3 * points / 1e6 + 2).tolist())
    assert (exact["slope"], exact["at_0"], exact["r2"]) == pytest.approx((3, 2, 1))
    bent = scale.fitted(points, ((points / 1e6) ** 2).tolist())
    assert bent["r2"] < 0.99


def test_all_ways_of_reading_from_the_disk_give_the_same_images(tmp_path):
    from benchmarks import scale

    file = scale.write_pixels(tmp_path / "a.npy", (20, 1, 8, 8), at_once=7 * 64)
    file.check()
    pairs = scale.PairsOnDisk(file, 4, "cpu", forgetful=True)
    rows = np.array([3, 19, 3, 0])
    np.testing.assert_array_equal(pairs.gather(rows), pairs.through_a_map(rows))
    np.testing.assert_array_equal(pairs.gather(rows), pairs.images.numpy()[rows])
