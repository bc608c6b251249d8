"""The chest phantom: what its factors do to the picture, and that a cohort is exactly what was asked for."""

import json
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_anon.manifest import load_manifest, save_manifest
from monai_anon.phantoms import chest, chest_render, counter, rendering
from monai_anon.phantoms.chest import ensure_cohort, render, sample_factors, write_cohort
from monai_anon.phantoms.chest_shapes import Frame

SMALL = {"images": (12, 4, 6), "patients": (4, 2, 2), "size": 32, "progress": False}


@pytest.fixture(scope="module")
def factors():
    return sample_factors(3, images=(40, 0, 0), patients=(12, 0, 0))


def with_effusion(rows, side, severity):
    return rows.assign(med_present=1, med_side=side, med_severity=severity)


def without_effusion(rows):
    return rows.assign(med_present=0, med_side=0, med_severity=0.0)


def lung_mask(rows, size):
    """Where a pixel shows a part of a lung, whatever fills it: bool (n, size, size)."""
    frame = Frame({name: rows[name].to_numpy(dtype=float) for name in chest_render.COLUMNS}, size)
    return chest_render._Lungs(frame).mask > 0


# --- the table


def test_default_cohort_has_the_papers_sizes_and_disjoint_patients():
    table = sample_factors(0)
    counts = table.groupby("part")["patient"].agg(["size", "nunique"])
    assert counts.loc["training"].tolist() == [6000, 1791]
    assert counts.loc["validation"].tolist() == [200, 84]
    assert counts.loc["test"].tolist() == [300, 130]
    assert table["patient"].nunique() == 1791 + 84 + 130
    assert table["image"].is_unique and table["res_noise_seed"].is_unique


def test_images_a_patient_lie_between_2_and_11_with_a_heavy_tail():
    counts = sample_factors(0).groupby("patient").size()
    assert counts.min() == 2 and counts.max() == 11
    assert (counts <= 3).mean() > 0.6


def test_findings_and_sides_are_balanced_in_every_part():
    for _, part in sample_factors(1).groupby("part"):
        assert part["finding"].mean() == 0.5
        assert part["med_side"].sum() == 0
    assert (sample_factors(1).query("finding == 1")["med_severity"].between(0.25, 1)).all()
    assert (sample_factors(1).query("finding == 0")[["med_present", "med_side", "med_severity"]] == 0).all(axis=None)


def test_identity_is_constant_within_a_patient_and_differs_between_patients(factors):
    columns = [name for name in factors if name.startswith("id_") and name != "id_vessel_spread"]
    assert (factors.groupby("patient")[columns].nunique() == 1).all(axis=None)
    assert factors.drop_duplicates("patient")["id_half_width"].is_unique


def test_same_seed_same_table_and_another_seed_another_one():
    counts = {"images": (9, 4, 4), "patients": (3, 2, 2)}
    pd.testing.assert_frame_equal(sample_factors(5, **counts), sample_factors(5, **counts))
    assert not sample_factors(5, **counts)["id_half_width"].equals(sample_factors(6, **counts)["id_half_width"])


def test_a_patient_does_not_depend_on_how_many_follow():
    few = sample_factors(0, (20, 0, 0), (5, 0, 0)).drop_duplicates("patient")
    many = sample_factors(0, (200, 0, 0), (50, 0, 0)).drop_duplicates("patient").head(5)
    columns = [name for name in few if name.startswith("id_")]
    pd.testing.assert_frame_equal(few[columns].reset_index(drop=True), many[columns].reset_index(drop=True))


def test_difficulty_shrinks_identity_and_widens_residuals():
    easy, hard = (sample_factors(0, (400, 0, 0), (100, 0, 0), difficulty=value) for value in (0.0, 1.0))
    assert hard["id_half_width"].std() < 0.6 * easy["id_half_width"].std()
    assert hard["res_shift_x"].abs().max() > 1.5 * easy["res_shift_x"].abs().max()
    assert hard["res_noise"].mean() > 2.9 * easy["res_noise"].mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (3, 0, 0), "patients": (2, 0, 0)}, "2 patients have 4 to 22"),
        ({"images": (30, 0, 0), "patients": (2, 0, 0)}, "2 patients have 4 to 22"),
        ({"images": (30, 2)}, "three numbers"),
        ({"difficulty": 1.5}, r"\[0, 1\]"),
    ],
)
def test_impossible_cohorts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sample_factors(0, **change)


# --- the picture


def test_a_row_is_the_same_whatever_surrounds_it(factors, monkeypatch):
    whole = render(factors, 64)
    monkeypatch.setattr(rendering, "_CHUNK_PIXELS", 3 * 64 * 64)
    assert np.array_equal(whole, render(factors, 64))
    monkeypatch.setattr(rendering.os, "cpu_count", lambda: 1)
    assert np.array_equal(whole[::-1], render(factors.iloc[::-1], 64))
    assert np.array_equal(whole[7:8], render(factors.iloc[7:8], 64))


def test_pixels_are_those_of_version_1_on_any_machine():
    # A new value here needs a new `chest.VERSION`: cohorts on disk are told apart by it.
    rows = sample_factors(0, (6, 0, 0), (2, 0, 0))
    assert (chest.VERSION, zlib.crc32(render(rows, 64).tobytes())) == (1, 764702611)


def test_severity_zero_is_absent(factors):
    absent = render(without_effusion(factors), 64)
    for side in (-1, 1):
        assert np.array_equal(absent, render(with_effusion(factors, side, 0.0), 64))


def test_medical_factors_change_nothing_outside_the_lungs_and_much_inside(factors):
    lungs = lung_mask(factors, 64)
    absent = render(without_effusion(factors), 64)
    for side in (-1, 1):
        changed = absent != render(with_effusion(factors, side, 0.7), 64)
        assert not changed[~lungs].any()
        assert (changed & lungs).sum((1, 2)).min() > 150


def test_effusion_on_the_right_is_on_the_left_of_the_picture(factors):
    rows = factors.assign(res_rotation=0.0, res_shift_x=0.0)
    absent = render(without_effusion(rows), 64).astype(int)
    for side, here, there in ((-1, np.s_[:, :, :28], np.s_[:, :, 36:]), (1, np.s_[:, :, 36:], np.s_[:, :, :28])):
        brighter = render(with_effusion(rows, side, 0.6), 64) - absent
        assert brighter[here].mean((1, 2)).min() > 5
        assert (brighter[there] == 0).all()


def test_more_severe_is_brighter_and_reaches_higher(factors):
    sums, tops = [], []
    absent = render(without_effusion(factors), 64).astype(int)
    for severity in (0.25, 0.5, 0.75, 1.0):
        brighter = render(with_effusion(factors, 1, severity), 64) - absent
        sums.append(brighter.sum((1, 2)))
        tops.append((brighter > 20).any(2).argmax(1))
    assert (np.diff(sums, axis=0) > 0).all()
    assert (np.diff(tops, axis=0) < 0).all()


def test_the_meniscus_rises_along_the_lateral_wall(factors):
    rows = factors.assign(res_rotation=0.0, res_shift_x=0.0, res_zoom=1.0, res_noise=0.0)
    brighter = render(with_effusion(rows, 1, 0.4), 128).astype(int) - render(without_effusion(rows), 128)
    top = (brighter > 15).argmax(1).astype(float)  # of every column; 0 where it has no fluid
    wall = np.array([np.flatnonzero(row)[-1] for row in top])
    image = np.arange(len(rows))
    assert (top[image, wall - 3] < top[image, 90] - 3).mean() > 0.9


def test_the_hearts_apex_is_on_the_right_of_the_picture(factors):
    rows = without_effusion(factors).assign(res_rotation=0.0, res_shift_x=0.0, id_rib_contrast=0.0, id_breast=0.0)
    band = render(rows, 64)[:, 36:42].astype(float).mean(1)
    assert band[:, 36:44].mean() > band[:, 20:28].mean() + 25


def test_lungs_are_darker_than_what_is_around_them(factors):
    images = render(without_effusion(factors), 64).astype(float)
    inside = images[:, 20:34, 16:24].mean((1, 2))
    assert (inside < images[:, 20:34, 30:34].mean((1, 2)) - 30).all()
    assert (inside < images[:, 56:, 20:44].mean((1, 2)) - 30).all()


def test_a_shift_moves_everything(factors):
    rows = without_effusion(factors).assign(res_noise=0.0, res_shift_x=0.0)
    images, moved = render(rows, 64), render(rows.assign(res_shift_x=2 * 2 / 64), 64)
    difference = np.abs(images[:, :, :-2].astype(int) - moved[:, :, 2:])
    assert difference.max() <= 1
    assert (images != moved).mean() > 0.6


def test_noise_depends_on_the_images_own_seed_alone(factors):
    one = factors.head(1)
    assert not np.array_equal(render(one, 64), render(one.assign(res_noise_seed=1), 64))
    noise = counter.pixel_noise(np.arange(50, dtype=np.uint64), 4096)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert np.abs(np.corrcoef(noise) - np.eye(50)).max() < 0.08


def test_ribs_stay_inside_the_thorax(factors):
    rows = without_effusion(factors).assign(res_noise=0.0, res_shift_y=0.0, res_rotation=0.0)
    ribs = render(rows, 64).astype(int) - render(rows.assign(id_rib_contrast=0.0), 64)
    assert ribs.max() > 10
    assert (ribs[:, 58:] == 0).all()


def test_no_exposure_saturates():
    images = render(sample_factors(2, (300, 0, 0), (100, 0, 0)), 64)
    assert images.max() < 255
    assert (images == 0).mean((1, 2)).max() < 0.05


@pytest.mark.parametrize("size", [32, 47, 512])
def test_any_size_shows_the_same_picture(factors, size):
    rows = factors.head(2).assign(res_noise=0.0)
    small = render(rows, 64)
    other = render(rows, size)
    assert other.shape == (2, size, size) and other.dtype == np.uint8
    for image, reference in zip(other, small):
        resized = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(resized.ravel(), reference.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("size", [31, 513])
def test_sizes_out_of_range_are_refused(factors, size, tmp_path):
    with pytest.raises(ValueError, match="between 32 and 512"):
        render(factors, size)
    with pytest.raises(ValueError, match="between 32 and 512"):
        write_cohort(tmp_path / "cohort", **{**SMALL, "size": size})
    assert not list(tmp_path.iterdir())


def test_incomplete_and_broken_factors_are_refused(factors):
    with pytest.raises(ValueError, match="id_half_width"):
        render(factors.drop(columns="id_half_width"))
    with pytest.raises(ValueError, match="res_gain of row 3 is not finite"):
        render(factors.assign(res_gain=np.where(np.arange(len(factors)) == 3, np.nan, 1.0)))


def test_progress_ends_with_all_images(factors):
    calls = []
    render(factors, 64, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(factors), len(factors))


# --- on disk


def test_a_cohort_on_disk_is_complete_and_reproduces_from_its_own_table(tmp_path):
    manifest = load_manifest(write_cohort(tmp_path / "new" / "cohort", seed=4, **SMALL))
    assert {part: len(entries) for part, entries in manifest.parts.items()} == {
        "training": 12, "validation": 4, "test": 6,
    }  # fmt: skip
    assert manifest.classes == ["absent", "effusion"]
    table = pd.read_csv(manifest.folder / "factors.csv")
    pd.testing.assert_frame_equal(
        table, sample_factors(4, SMALL["images"], SMALL["patients"]), check_dtype=False, check_exact=True
    )
    images = render(table, 32)
    entries = [entry for part in manifest.parts.values() for entry in part]
    for entry, row, pixels in zip(entries, table.itertuples(), images, strict=True):
        assert (entry["image"], entry["patient"], entry["finding"]) == (row.image, row.patient, row.finding)
        assert entry["severity"] == row.med_severity
        assert entry["side"] == {-1: "right", 0: "none", 1: "left"}[row.med_side]
        assert np.array_equal(np.asarray(Image.open(manifest.image_path(entry))), pixels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cohort"]


def test_an_existing_folder_is_not_overwritten_unasked(tmp_path):
    path = write_cohort(tmp_path / "cohort", seed=0, **SMALL)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        write_cohort(tmp_path / "cohort", seed=1, **SMALL)
    assert path.read_bytes() == before
    write_cohort(tmp_path / "cohort", seed=1, overwrite=True, **SMALL)
    assert json.loads(path.read_text())["phantom"]["seed"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["cohort"]


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    save_manifest(tmp_path, {"training": [{"image": "a.png", "patient": "a", "finding": 0}]}, ["absent"])
    with pytest.raises(FileExistsError, match="no generated cohort"):
        write_cohort(tmp_path, overwrite=True, **SMALL)
    assert (tmp_path / "a.png").exists()


def test_a_run_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_anon.phantoms.writing.save_manifest", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_cohort(tmp_path / "cohort", **SMALL)
    assert not list(tmp_path.iterdir())


def test_ensure_cohort_writes_reuses_and_refuses_other_settings(tmp_path):
    path = ensure_cohort(tmp_path / "cohort", seed=0, **SMALL)
    stamp = path.stat().st_mtime_ns
    assert ensure_cohort(tmp_path / "cohort", seed=0, **SMALL) == path
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="seed is 0, not 1"):
        ensure_cohort(tmp_path / "cohort", seed=1, **SMALL)
    next((tmp_path / "cohort" / "images").iterdir()).unlink()
    with pytest.raises(ValueError, match="no such image"):
        ensure_cohort(tmp_path / "cohort", seed=0, **SMALL)
