"""The iris phantom: what its factors do to the picture, who is in which part, and what stands on disk."""

import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_anon.datasets import training_manifest
from monai_anon.evaluation.contents.counterfactual import evidence
from monai_anon.manifest import load_manifest
from monai_anon.phantoms import iris, iris_factors, iris_render, phantom_of, rendering
from monai_anon.phantoms.iris import ensure_cohort, render, sample_factors, write_cohort
from monai_anon.phantoms.iris_shapes import EyeFrame, turn_of

SMALL = {"images": (12, 4, 6), "patients": (4, 4, 4), "size": 32, "progress": False}
AWAKE = {"res_upper_lid": 0.2, "res_lower_lid": 0.2, "res_lashes": -0.1}


@pytest.fixture(scope="module")
def factors():
    return sample_factors(3, images=(40, 0, 0), patients=(12, 0, 0))


def with_cloud(rows, side, severity):
    return rows.assign(med_present=1, med_side=side, med_severity=severity, med_seed=np.arange(len(rows)))


def clear(rows):
    return rows.assign(med_present=0, med_side=0, med_severity=0.0, med_height=0.0, med_seed=0)


def frame_of(rows, size):
    return EyeFrame({name: rows[name].to_numpy(dtype=float) for name in iris_render.COLUMNS}, size)


def unwrapped(rows, size=64):
    """Tissue on a grid of 20 turns and 4 depths from pupil to limbus, less each depth's mean: (n, 80)."""
    rows = rows.assign(id_pupil_x=0.0, id_pupil_y=0.0)
    images, f = render(rows, size).astype(float), frame_of(rows, size)
    pupil = 0.38 + rows["res_dilation"].to_numpy()[:, None, None]
    depths = (f.radius - pupil) / (1 - pupil)
    turn = np.arctan2(f.down, f.across) / (2 * np.pi)
    cell = np.floor(turn * 20).astype(int) % 20 + 20 * np.floor(depths * 5 - 0.5).astype(int)
    codes = []
    for image, place, depth in zip(images, cell, depths):
        seen = (depth > 0.1) & (depth < 0.9)
        total, count = (np.bincount(place[seen], weight, 80) for weight in (image[seen], np.ones(seen.sum())))
        grid = (total / np.maximum(count, 1)).reshape(4, 20)
        codes.append((grid - grid.mean(1, keepdims=True)).ravel())
    return np.array(codes)


# --- the table


def test_the_closed_cohort_has_the_papers_sizes_and_everybody_in_every_part():
    table = sample_factors(0)
    counts = table.groupby("part")["patient"].agg(["size", "nunique"])
    assert counts.loc[["training", "validation", "test"]].values.tolist() == [[1165, 115], [270, 115], [360, 115]]
    assert table["patient"].nunique() == 115
    assert table["image"].is_unique and table["res_noise_seed"].is_unique and table["res_lash_seed"].is_unique


def test_the_disjoint_cohort_has_as_many_images_of_people_in_one_part_each():
    table = sample_factors(0, protocol="disjoint")
    counts = table.groupby("part")["patient"].agg(["size", "nunique"])
    assert counts.loc[["training", "validation", "test"]].values.tolist() == [[1165, 75], [270, 17], [360, 23]]
    assert table["patient"].nunique() == 115 and table["image"].is_unique


def test_a_person_is_the_same_in_every_part_and_protocol_and_however_many_follow():
    names = [name for name in sample_factors(5) if name.startswith("id_")]
    closed, disjoint = (sample_factors(5, protocol=name) for name in ("closed", "disjoint"))
    assert (closed.groupby("patient")[names].nunique() == 1).all(axis=None)
    few = sample_factors(5, (20, 0, 0), (5, 0, 0))
    people = [table.drop_duplicates("patient").set_index("patient")[names] for table in (closed, disjoint, few)]
    pd.testing.assert_frame_equal(people[0].sort_index(), people[1].sort_index())
    pd.testing.assert_frame_equal(people[0].sort_index().head(5), people[2].sort_index())
    assert people[0]["id_texture_seed"].is_unique


def test_the_finding_and_its_place_do_not_depend_on_who_it_is():
    closed, disjoint = (sample_factors(1, protocol=name) for name in ("closed", "disjoint"))
    medical = [name for name in closed if name.startswith("med_")]
    pd.testing.assert_frame_equal(closed[medical], disjoint[medical])
    captures = [name for name in closed if name.startswith("res_")]
    pd.testing.assert_frame_equal(closed[captures], disjoint[captures])


def test_in_every_part_24_percent_have_the_finding_half_of_them_on_either_side():
    table = sample_factors(1)
    for _, part in table.groupby("part"):
        assert part["finding"].sum() == int(0.24 * len(part))
        assert abs(part["med_side"].sum()) <= 1
    medical = ["med_present", "med_side", "med_severity", "med_height", "med_seed"]
    assert table.query("finding == 1")["med_severity"].between(0.25, 1).all()
    assert (table.query("finding == 0")[medical] == 0).all(axis=None)


def test_same_seed_same_table_and_another_seed_another_one():
    counts = {"images": (9, 4, 4), "patients": (3, 3, 3)}
    pd.testing.assert_frame_equal(sample_factors(5, **counts), sample_factors(5, **counts))
    assert not sample_factors(5, **counts)["id_pigment"].equals(sample_factors(6, **counts)["id_pigment"])


def test_difficulty_shrinks_identity_and_widens_residuals():
    easy, hard = (sample_factors(0, difficulty=value) for value in (0.0, 1.0))
    assert hard["id_pigment"].std() < 0.6 * easy["id_pigment"].std()
    assert hard["res_gaze_x"].abs().max() > 1.5 * easy["res_gaze_x"].abs().max()
    assert hard["res_noise"].mean() > 2.9 * easy["res_noise"].mean()
    assert hard.query("finding == 1")["med_severity"].min() < 0.1
    assert (hard["res_dilation"].abs() < 0.2).all()  # the pupil stays a hole in an iris


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (3, 0, 0), "patients": (4, 0, 0)}, "training: 3 images of 4 patients cannot be made with 1 to 40"),
        ({"images": (81, 0, 0), "patients": (2, 0, 0)}, "2 patients have 2 to 80"),
        ({"patients": (75, 17, 23)}, "all parts have the same ones"),
        ({"images": (30, 2)}, "three numbers"),
        ({"difficulty": -0.1}, r"\[0, 1\]"),
        ({"protocol": "open"}, "'open'; it must be one of closed, disjoint"),
    ],
)
def test_impossible_cohorts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sample_factors(0, **change)


def test_sizes_that_are_left_out_keep_the_papers_proportions():
    sizes = iris.PHANTOM.part_sizes
    assert sizes(None, None) == (iris_factors.IMAGES, (115, 115, 115))
    assert sizes("1165,270,360", None, "disjoint") == (iris_factors.IMAGES, (75, 17, 23))
    for images in ("40", "333", "600", "5000"):
        counts, people = sizes(images, None)
        assert len(set(people)) == 1
        assert len(sample_factors(0, counts, people)) == sum(counts)
    assert sizes(None, "20")[1] == (20, 20, 20)


# --- the picture


def test_a_row_is_the_same_whatever_surrounds_it(factors, monkeypatch):
    rows = pd.concat([factors.head(5), with_cloud(factors.head(7), 1, 0.6)])
    whole = render(rows, 64)
    monkeypatch.setattr(rendering, "_CHUNK_PIXELS", 3 * 64 * 64)
    assert np.array_equal(whole, render(rows, 64))
    monkeypatch.setattr(rendering.os, "cpu_count", lambda: 1)
    assert np.array_equal(whole[::-1], render(rows.iloc[::-1], 64))
    assert np.array_equal(whole[7:8], render(rows.iloc[7:8], 64))


def test_pixels_are_those_of_version_1_on_any_machine():
    # A new value here needs a new `iris.VERSION`: cohorts on disk are told apart by it.
    rows = sample_factors(0, (8, 0, 0), (2, 0, 0))
    rows = pd.concat([rows, with_cloud(rows, -1, 0.5)])
    assert (iris.VERSION, zlib.crc32(render(rows, 64).tobytes())) == (1, 3785430961)


def test_severity_zero_is_absent(factors):
    absent = render(clear(factors), 64)
    for side in (-1, 1):
        assert np.array_equal(absent, render(with_cloud(factors, side, 0.0), 64))


def test_the_cloud_changes_nothing_outside_the_cornea_and_much_inside(factors):
    outside = frame_of(factors, 64).radius > 1.03
    absent = render(clear(factors), 64).astype(int)
    for side in (-1, 1):
        for severity, least in ((0.25, 40), (0.7, 200)):
            change = render(with_cloud(factors, side, severity), 64) - absent
            assert not change[outside].any()
            assert (change > 25).sum((1, 2)).min() > least


def test_a_cloud_on_the_nasal_side_is_on_the_right_of_the_picture(factors):
    rows = factors.assign(res_shift_x=0.0, res_gaze_x=0.0, res_rotation=0.0)
    absent = render(clear(rows), 64).astype(int)
    for side, here, there in ((1, np.s_[:, :, 34:], np.s_[:, :, :28]), (-1, np.s_[:, :, :30], np.s_[:, :, 36:])):
        brighter = render(with_cloud(rows, side, 0.25), 64) - absent
        assert brighter[here].mean((1, 2)).min() > 2
        assert (brighter[there] == 0).all()


def test_more_severe_is_brighter_and_wider(factors):
    absent = render(clear(factors), 64).astype(int)
    changes = [render(with_cloud(factors, 1, severity), 64) - absent for severity in (0.25, 0.5, 0.75, 1.0)]
    assert (np.diff([change.sum((1, 2)) for change in changes], axis=0) > 0).all()
    assert (np.diff([(change > 15).sum((1, 2)) for change in changes], axis=0) > 0).all()


def test_identity_changes_nothing_outside_the_iris(factors):
    rows, others = clear(factors), clear(factors)
    names = [name for name in factors if name.startswith("id_")]
    others[names] = sample_factors(9, images=(40, 0, 0), patients=(40, 0, 0))[names].to_numpy()
    outside = (frame_of(rows, 64).radius > 1) & (frame_of(others, 64).radius > 1)
    changed = render(rows, 64) != render(others, 64)
    assert not changed[outside].any()
    assert changed[~outside].mean() > 0.8


def test_gaze_and_dilation_change_the_eye_and_not_the_lids(factors):
    rows = clear(factors).assign(res_gaze_y=0.0)
    f = frame_of(rows, 64)
    lids = f.y < -0.85
    images = render(rows, 64)
    for change in ({"res_gaze_x": 0.1}, {"res_dilation": 0.15}):
        moved = render(rows.assign(**change), 64) != images
        assert not moved[lids].any() and moved.mean() > 0.08


def test_the_pupil_grows_with_dilation(factors):
    rows = clear(factors).assign(res_noise=0.0, **AWAKE)
    areas = [(render(rows.assign(res_dilation=value), 64) < 30).sum((1, 2)) for value in (-0.1, 0.0, 0.1)]
    assert (np.diff(areas, axis=0) > 60).all()


def test_the_texture_stretches_with_the_pupil(factors):
    rows = clear(factors.drop_duplicates("patient")).assign(**AWAKE, res_spot_x=0.0, res_spot_y=0.0)
    narrow, wide = (unwrapped(rows.assign(res_dilation=value), 128) for value in (-0.1, 0.1))
    same = np.corrcoef(narrow, wide)[: len(rows), len(rows) :]
    assert np.diag(same).min() > 0.8


def test_two_images_of_a_person_have_the_same_texture_and_two_people_have_not():
    table = sample_factors(0, images=(160, 0, 0), patients=(40, 0, 0))
    codes = np.corrcoef(unwrapped(clear(table).assign(res_upper_lid=0.1)))
    same = table["patient"].to_numpy()[:, None] == table["patient"].to_numpy()
    own, other = codes[same & ~np.eye(len(table), dtype=bool)], codes[~same]
    assert np.median(own) > 0.7 > 0.2 > abs(np.median(other))
    assert (own > np.quantile(other, 0.99)).mean() > 0.95


def test_a_shift_moves_everything(factors):
    rows = clear(factors).assign(res_noise=0.0, res_shift_x=0.0, res_light_x=0.0, res_light_y=0.0)
    rows = rows.assign(res_rotation=0.0, res_zoom=1.0)
    images, moved = render(rows, 64), render(rows.assign(res_shift_x=2 * 2 / 64), 64)
    assert np.abs(images[:, :, :-2].astype(int) - moved[:, :, 2:]).max() <= 1
    assert (images != moved).mean() > 0.6


def test_noise_and_lashes_depend_on_the_images_own_seeds_alone(factors):
    one = clear(factors.head(4))
    assert (render(one, 64) != render(one.assign(res_noise_seed=1), 64)).mean() > 0.4
    lashes = render(one, 64) != render(one.assign(res_lash_seed=1), 64)
    assert 0.01 < lashes.mean() < 0.25
    centre = frame_of(one, 64)
    assert not lashes[(np.abs(centre.x) < 0.3) & (centre.y > 0) & (centre.y < 0.4)].any()


def test_no_exposure_saturates_and_every_pupil_is_darker_than_its_iris():
    rows = clear(sample_factors(2, (300, 0, 0), (100, 0, 0)))
    images, f = render(rows, 64), frame_of(rows, 64)
    assert (images == 255).mean() < 0.001 and (images == 0).mean() < 0.02
    tissue = (f.depth > 0.15) & (f.depth < 0.85) & (f.down > 0)
    for image, hole, ring in zip(images, f.depth < -0.1, tissue):
        assert np.median(image[hole]) + 15 < np.median(image[ring])


@pytest.mark.parametrize("size", [32, 47, 512])
def test_any_size_shows_the_same_picture(factors, size):
    rows = with_cloud(factors.head(2), 1, 0.5).assign(res_noise=0.0)
    small, other = render(rows, 64), render(rows, size)
    assert other.shape == (2, size, size) and other.dtype == np.uint8
    for image, reference in zip(other, small):
        resized = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(resized.ravel(), reference.ravel())[0, 1] > 0.94


def test_incomplete_and_broken_factors_are_refused(factors):
    with pytest.raises(ValueError, match="id_crypt_depth"):
        render(factors.drop(columns="id_crypt_depth"))
    with pytest.raises(ValueError, match="med_height of row 3 is not finite"):
        render(factors.assign(med_height=np.where(np.arange(len(factors)) == 3, np.nan, 0.0)))
    with pytest.raises(ValueError, match="between 32 and 512"):
        render(factors, 31)


def test_the_evidence_of_a_changed_finding_lies_on_the_eye(factors):
    assert phantom_of(factors).name == "iris"
    rows = factors.head(6)
    inside = evidence(clear(rows), with_cloud(rows, 1, 0.7), 64)
    assert inside.sum((1, 2)).min() > 200
    assert not inside[frame_of(rows, 64).radius > 1.15].any()


def test_turns_go_once_around_and_are_nearly_angles():
    angle = np.linspace(0, 2 * np.pi, 1000, endpoint=False) + 0.001
    turn = turn_of(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    assert (np.diff(turn) > 0).all() and np.abs(turn - angle / (2 * np.pi)).max() < 0.002


def test_depth_is_0_along_the_pupil_and_1_along_the_limbus_also_where_the_pupil_is_off_centre(factors):
    f = frame_of(factors.assign(id_pupil_x=0.1, id_pupil_y=-0.05), 256)
    rim = np.hypot(f.across - 0.1, f.down + 0.05) / f.pupil
    assert np.abs(f.depth[np.abs(rim - 1) < 0.01]).max() < 0.02
    assert np.abs(f.depth[np.abs(f.radius - 1) < 0.01] - 1).max() < 0.03


# --- on disk


@pytest.mark.parametrize(("protocol", "people"), [("closed", (4, 4, 4)), ("disjoint", (4, 2, 2))])
def test_a_cohort_on_disk_is_complete_and_reproduces_from_its_own_table(tmp_path, protocol, people):
    settings = {**SMALL, "patients": people}
    manifest = load_manifest(write_cohort(tmp_path / "cohort", seed=4, protocol=protocol, **settings))
    assert manifest.closed_set == (protocol == "closed")
    assert manifest.extra["phantom"]["protocol"] == protocol
    assert {part: len(entries) for part, entries in manifest.parts.items()} == {
        "training": 12, "validation": 4, "test": 6,
    }  # fmt: skip
    table = pd.read_csv(manifest.folder / "factors.csv")
    pd.testing.assert_frame_equal(
        table, sample_factors(4, SMALL["images"], people, protocol=protocol), check_dtype=False, check_exact=True
    )
    entries = [entry for part in manifest.parts.values() for entry in part]
    for entry, row, pixels in zip(entries, table.itertuples(), render(table, 32), strict=True):
        assert (entry["image"], entry["patient"], entry["finding"]) == (row.image, row.patient, row.finding)
        assert entry["severity"] == row.med_severity
        assert entry["side"] == {-1: "temporal", 0: "none", 1: "nasal"}[row.med_side]
        assert np.array_equal(np.asarray(Image.open(manifest.image_path(entry))), pixels)


def test_ensure_cohort_reuses_and_refuses_another_protocol(tmp_path):
    path = ensure_cohort(tmp_path / "cohort", **SMALL)
    assert ensure_cohort(tmp_path / "cohort", protocol="closed", **SMALL) == path
    with pytest.raises(ValueError, match="protocol is closed, not disjoint"):
        ensure_cohort(tmp_path / "cohort", protocol="disjoint", **SMALL)


def test_a_training_without_a_manifest_gets_the_generated_irises(tmp_path):
    counts = {"images": (8, 3, 3), "patients": (2, 2, 2)}
    closed, disjoint = (
        load_manifest(training_manifest(None, str(tmp_path), 32, "iris", protocol=protocol, **counts))
        for protocol in (None, "disjoint")
    )
    assert closed.closed_set and closed.folder.name == "iris_32"
    assert not disjoint.closed_set and disjoint.folder.name == "iris_disjoint_32"
    with pytest.raises(ValueError, match="generated cohort 'eye'; known are chest, iris"):
        training_manifest(None, str(tmp_path), 32, "eye")
