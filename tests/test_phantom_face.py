"""The face phantom: factors, rendering, what a smile may change, the mask, and cohorts in colour on disk."""

import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_anon.cohort import Cohort
from monai_anon.datasets import training_manifest
from monai_anon.evaluation.contents.counterfactual import evidence
from monai_anon.evaluation.contents.factors import known_factors
from monai_anon.evaluation.judge_networks import severities, sides_of
from monai_anon.manifest import load_manifest
from monai_anon.phantoms import face, face_factors, face_render, rendering
from monai_anon.phantoms.face import ensure_cohort, person_mask, render, sample_factors, write_cohort
from monai_anon.phantoms.face_relief import nose_of
from monai_anon.phantoms.face_shapes import Head, Pattern, mouth_of

SMALL = {"images": (12, 4, 6), "patients": (4, 2, 2), "size": 32, "progress": False}
UPRIGHT = {
    "res_shift_x": 0.0, "res_shift_y": 0.0, "res_rotation": 0.0, "res_yaw": 0.0, "res_pitch": 0.0, "res_zoom": 1.0,
    "res_light_x": 0.0,
}  # fmt: skip
SYMMETRIC = {
    **UPRIGHT, "res_gaze_x": 0.0, "res_noise": 0.0, "id_eye_asymmetry": 0.0, "id_hair_part": 0.0, "id_moles": 0.0,
    "id_freckles": 0.0, "id_beard": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def factors():
    return sample_factors(3, images=(24, 0, 0), patients=(10, 0, 0), protocol="scenes")


def masked(rows):
    return rows.assign(res_background=0)


def smiling(rows, severity):
    return rows.assign(med_present=1, med_severity=severity)


def neutral(rows):
    return rows.assign(med_present=0, med_severity=0.0)


def head_of(rows, size):
    return Head({name: rows[name].to_numpy(dtype=np.float64) for name in face_render.COLUMNS}, size)


def luma(images):
    return images.astype(float) @ [0.299, 0.587, 0.114]


# --- the table


def test_default_cohort_has_the_papers_sizes_and_disjoint_people():
    table = sample_factors(0)
    counts = table.groupby("part")["patient"].agg(["size", "nunique"])
    assert counts.loc["training"].tolist() == [8210, 600]
    assert counts.loc["validation"].tolist() == [268, 20]
    assert counts.loc["test"].tolist() == [371, 30]
    assert table["patient"].nunique() == 600 + 20 + 30
    assert table["image"].is_unique and table["res_noise_seed"].is_unique
    people = table.groupby("patient").size()
    assert 2 <= people.min() < 8 and people.max() == 30


def test_57_percent_of_every_part_smile_and_no_person_more_likely_than_another():
    table = sample_factors(1)
    for _, part in table.groupby("part"):
        assert part["finding"].sum() == 57 * len(part) // 100
    assert table.query("finding == 1")["med_severity"].between(0.25, 1).all()
    assert (table.query("finding == 0")[["med_present", "med_severity"]] == 0).all(axis=None)
    # Were smiles drawn per person, their shares would spread far more than binomially.
    shares = table.groupby("patient")["finding"].agg(["mean", "size"])
    z = (shares["mean"] - 0.57) / np.sqrt(0.57 * 0.43 / shares["size"])
    assert 0.8 < z.std() < 1.2
    known = [name for name in table if name.startswith("id_") and not name.endswith("_seed")]
    assert table[known].corrwith(table["med_severity"]).abs().max() < 0.04


def test_identity_is_constant_within_a_person_and_differs_between_people(factors):
    columns = [name for name in factors if name.startswith("id_")]
    assert (factors.groupby("patient")[columns].nunique() == 1).all(axis=None)
    people = factors.drop_duplicates("patient")
    assert people["id_face_width"].is_unique and people["id_hair_seed"].is_unique


def test_a_person_does_not_depend_on_how_many_follow():
    few = sample_factors(0, (40, 0, 0), (5, 0, 0)).drop_duplicates("patient")
    many = sample_factors(0, (400, 0, 0), (50, 0, 0)).drop_duplicates("patient").head(5)
    columns = [name for name in few if name.startswith("id_")]
    pd.testing.assert_frame_equal(few[columns].reset_index(drop=True), many[columns].reset_index(drop=True))


def test_every_factor_of_a_scene_without_a_seed_varies_and_a_smile_has_no_side():
    table = sample_factors(0, protocol="scenes")
    assert "med_side" not in table
    varying = {name for name in face_render.COLUMNS if not name.endswith("_seed")} - {"res_background"}
    assert set(known_factors(table).names) == varying


def test_protocols_show_the_same_people_and_smiles_before_gray_and_before_walls():
    alone, scenes = (sample_factors(5, protocol=name) for name in ("masked", "scenes"))
    behind = ["res_background", *face_factors.BACKGROUND]
    pd.testing.assert_frame_equal(alone.drop(columns=behind), scenes.drop(columns=behind))
    assert (alone["res_background"] == 0).all() and (scenes["res_background"] == 1).all()
    pd.testing.assert_frame_equal(sample_factors(5), alone)


def test_difficulty_shrinks_identity_and_widens_residuals():
    easy, hard = (sample_factors(0, (400, 0, 0), (100, 0, 0), difficulty=value) for value in (0.0, 1.0))
    for name in ("id_face_width", "id_skin_tone"):
        assert hard[name].std() < 0.6 * easy[name].std()
    assert hard["res_yaw"].abs().max() > 1.5 * easy["res_yaw"].abs().max()
    assert hard["res_noise"].mean() > 2.9 * easy["res_noise"].mean()
    assert hard["med_severity"][hard["finding"] == 1].min() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (3, 0, 0), "patients": (2, 0, 0)}, "2 patients have 4 to 60"),
        ({"images": (61, 0, 0), "patients": (2, 0, 0)}, "2 patients have 4 to 60"),
        ({"images": (30, 2)}, "three numbers"),
        ({"difficulty": 1.5}, r"\[0, 1\]"),
    ],
)
def test_impossible_cohorts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sample_factors(0, **change)


# --- the picture


def test_a_row_is_the_same_whatever_surrounds_it(factors, monkeypatch):
    rows = factors.assign(res_background=np.arange(len(factors)) % 2)
    whole = render(rows, 64)
    monkeypatch.setattr(rendering, "_CHUNK_PIXELS", 3 * 64 * 64)
    assert np.array_equal(whole, render(rows, 64))
    monkeypatch.setattr(rendering.os, "cpu_count", lambda: 1)
    assert np.array_equal(whole[::-1], render(rows.iloc[::-1], 64))
    assert np.array_equal(whole[7:8], render(rows.iloc[7:8], 64))


def test_pixels_are_those_of_version_1_on_any_machine():
    # A new value here needs a new `face.VERSION`: cohorts on disk are told apart by it.
    rows = pd.concat([sample_factors(0, (6, 0, 0), (2, 0, 0), protocol=name) for name in face.PROTOCOLS])
    assert (face.VERSION, zlib.crc32(render(rows, 64).tobytes())) == (1, 3714179375)


def test_faces_are_in_colour_and_no_exposure_saturates():
    images = render(sample_factors(2, (160, 0, 0), (60, 0, 0), protocol="scenes"), 64)
    assert images.shape == (160, 64, 64, 3) and images.dtype == np.uint8
    assert (images.max(-1).astype(int) - images.min(-1)).mean((1, 2)).min() > 5
    assert (images == 255).mean((1, 2, 3)).max() < 0.005
    assert (images == 0).mean((1, 2, 3)).max() < 0.05


def test_severity_zero_is_absent(factors):
    assert np.array_equal(render(neutral(factors), 64), render(smiling(factors, 0.0), 64))
    assert np.array_equal(render(neutral(factors), 64), render(neutral(factors).assign(med_severity=0.9), 64))


@pytest.mark.parametrize("size", [64, 128])
def test_a_smile_changes_the_eyes_and_what_is_below_them_within_the_face_and_nothing_else(factors, size):
    head = head_of(factors, size)
    margin = 2 * head.pixel  # slopes and lines reach so much further
    allowed = (head.v > head["id_eye_height"] - 0.13 - margin) & (head.distance > -0.03 - margin)
    before, after = render(neutral(factors), size), render(smiling(factors, 1.0), size)
    changed = (before != after).any(-1)
    assert not changed[~allowed].any()
    assert changed.mean((1, 2)).min() > 0.05


def test_a_smile_touches_mouth_cheeks_and_eyes(factors):
    rows = factors.assign(**UPRIGHT, res_noise=0.0, id_fringe=0.0)
    head = head_of(rows, 128)
    change = np.abs(render(smiling(rows, 1.0), 128).astype(int) - render(neutral(rows), 128)).max(-1)
    for where, least in (
        (head.spot(0.0, head["id_mouth_height"], 0.2, 0.1), 60),
        (head.spot(0.27, 0.15, 0.12, 0.1), 4),
        (head.spot(head["id_eye_spacing"], head["id_eye_height"], 0.13, 0.07), 25),
    ):
        assert np.where(where > 0, change, 0).max((1, 2)).min() > least


def test_the_slightest_smile_is_plain_at_64_pixels(factors):
    rows = factors.assign(res_noise=0.0)
    change = np.abs(luma(render(smiling(rows, 0.25), 64)) - luma(render(neutral(rows), 64)))
    assert (change > 8).sum((1, 2)).min() >= 12


def test_more_severe_is_broader_more_curved_and_more_open(factors):
    rows, changes, widths, lifts, gaps = factors.assign(res_noise=0.0), [], [], [], []
    before = render(neutral(rows), 64).astype(int)
    for severity in (0.25, 0.5, 0.75, 1.0):
        changes.append(np.abs(render(smiling(rows, severity), 64) - before).sum((1, 2, 3)))
        mouth = mouth_of(head_of(smiling(rows, severity), 128))
        widths.append(mouth.half.ravel())
        seam = mouth_of(head_of(smiling(rows.assign(**UPRIGHT), severity), 128))
        # The seam's height in the middle less that at a fixed place beside it: y grows downwards.
        height = seam.upper + head_of(rows.assign(**UPRIGHT), 128).v
        lifts.append(height[:, 90, 64] - height[:, 90, 72])
        gaps.append((mouth.gap > 0).sum((1, 2)))
    for values in (changes, widths, lifts, gaps):
        assert (np.diff(values, axis=0) > 0).all()


def test_a_broad_smile_shows_teeth_brighter_than_the_lips_before_them(factors):
    rows = factors.assign(**UPRIGHT, res_noise=0.0)
    lips = mouth_of(head_of(neutral(rows), 128)).lips > 0.005
    gap = mouth_of(head_of(smiling(rows, 1.0), 128)).gap > 0.02
    before, after = luma(render(neutral(rows), 128)), luma(render(smiling(rows, 1.0), 128))
    for index in range(len(rows)):
        assert gap[index].sum() > 60
        assert np.percentile(after[index][gap[index]], 80) > before[index][lips[index]].mean() + 40


def test_a_face_without_asymmetries_looks_aside_like_its_mirror_image(factors):
    # Patterns of hair and background are the only thing that is not mirrored.
    rows = smiling(factors.assign(**SYMMETRIC, id_fringe=0.0, res_background_texture=0.0, res_background_fall=0.5), 0.5)
    left, right = render(rows.assign(res_yaw=-0.2), 64), render(rows.assign(res_yaw=0.2), 64)
    difference = np.abs(left.astype(int) - right[:, :, ::-1])[:, 24:60, 18:46]
    assert difference.mean() < 2
    assert np.abs(left.astype(int) - right)[:, 24:60, 18:46].mean() > 4


def test_a_turned_face_is_foreshortened_on_one_side_and_its_nose_moves_furthest(factors):
    rows = factors.assign(**{**UPRIGHT, "res_yaw": 0.2})
    head = head_of(rows, 128)
    row = 60
    places = [np.abs(head.u[:, row] - u).argmin(1) for u in (-0.3, 0.0, 0.3)]
    assert (places[2] - places[1] < places[1] - places[0]).all()
    nose = np.abs(nose_of(head).u[:, 76]).argmin(1)
    assert (nose > np.abs(head.u[:, 76]).argmin(1)).all()


def test_the_side_towards_the_lamp_is_brighter(factors):
    rows = neutral(factors.assign(**SYMMETRIC))
    left, right = (luma(render(rows.assign(res_light_x=x), 64)) for x in (-0.8, 0.8))
    cheek = np.s_[:, 34:40, 18:24]
    assert (left[cheek].mean((1, 2)) > right[cheek].mean((1, 2)) + 15).all()


def test_a_warm_lamp_is_redder_and_an_exposure_brighter(factors):
    warm, cold = (render(factors.assign(res_temperature=t), 64).astype(float).mean((1, 2)) for t in (0.13, -0.13))
    assert (warm[:, 0] - warm[:, 2] > cold[:, 0] - cold[:, 2] + 10).all()
    dark, bright = (render(factors.assign(res_gain=e), 64).astype(float).mean((1, 2, 3)) for e in (0.8, 1.25))
    assert (bright > dark + 10).all()


def test_a_shift_moves_the_whole_person(factors):
    rows = factors.assign(res_noise=0.0, res_shift_x=0.0)
    images, moved = (render(masked(r), 64) for r in (rows, rows.assign(res_shift_x=2 * 2 / 64)))
    difference = np.abs(images[:, :, :-2].astype(int) - moved[:, :, 2:])
    # The relief's slopes are one-sided in the outermost columns.
    assert difference[:, :, 1:-1].max() <= 1
    assert (images != moved).any(-1).mean() > 0.3


@pytest.mark.parametrize("name", ["id_skin_tone", "id_iris_tone", "id_lip_tone", "id_hair_tone", "id_freckles"])
def test_a_tone_of_a_person_changes_no_outline_and_no_background(factors, name):
    rows = factors.assign(id_hair_gray=0.0, id_hair_red=0.0)
    low, high = (rows.assign(**{name: value}) for value in (0.05, 0.95))
    mask = person_mask(low, 64)
    assert np.array_equal(mask, person_mask(high, 64))
    changed = (render(low, 64) != render(high, 64)).any(-1)
    assert changed.any((1, 2)).all() and not changed[mask == 0].any()


def test_noise_depends_on_the_images_own_seed_alone(factors):
    one = factors.head(1)
    assert not np.array_equal(render(one, 64), render(one.assign(res_noise_seed=1), 64))


def test_a_pattern_is_smooth_bounded_and_its_seeds_own():
    line = np.broadcast_to(np.linspace(0, 9, 901, dtype=np.float32), (2, 1, 901))
    values = Pattern(np.array([1, 2]))(line, np.full_like(line, 0.3))
    assert np.abs(values).max() <= 1 and np.abs(np.diff(values)).max() < 0.04
    assert not np.array_equal(values[0], values[1])
    assert np.array_equal(values[1:], Pattern(np.array([2]))(line[1:], np.full_like(line[1:], 0.3)))


@pytest.mark.parametrize("size", [32, 47, 512])
def test_any_size_shows_the_same_picture(factors, size):
    rows = factors.head(2).assign(res_noise=0.0)
    small, other = render(rows, 64), render(rows, size)
    assert other.shape == (2, size, size, 3) and other.dtype == np.uint8
    least = min(size, 64)
    for pair in zip(other, small):
        shrunk = [Image.fromarray(image).resize((least, least), Image.Resampling.BOX) for image in pair]
        assert np.corrcoef(*(np.asarray(image, dtype=float).ravel() for image in shrunk))[0, 1] > 0.98


# --- the mask


def test_without_background_all_but_the_person_is_one_gray_and_the_person_is_untouched(factors):
    mask = person_mask(factors, 64)
    whole, alone = render(factors, 64), render(masked(factors), 64)
    assert mask.shape == (24, 64, 64) and mask.min() == 0 and mask.max() == 1
    assert (alone[mask == 0] == face_render.BACKGROUND_LEVEL).all()
    assert np.array_equal(whole[mask == 1], alone[mask == 1])
    assert 0.2 < (mask == 1).mean() < 0.8 and ((mask > 0) & (mask < 1)).mean() < 0.15


def test_the_mask_is_where_the_background_can_be_seen(factors):
    mask = person_mask(factors, 64)
    other = factors.assign(res_background_red=0.99, res_background_green=0.01, res_background_texture=0.9)
    changed = (render(factors, 64) != render(other, 64)).any(-1)
    assert not changed[mask == 1].any()
    assert changed[mask == 0].mean() > 0.99
    assert np.array_equal(render(masked(factors), 64), render(masked(other), 64))


def test_a_smile_changes_no_mask(factors):
    assert np.array_equal(person_mask(neutral(factors), 64), person_mask(smiling(factors, 1.0), 64))


# --- bad inputs


@pytest.mark.parametrize("size", [31, 513])
def test_sizes_out_of_range_are_refused(factors, size, tmp_path):
    for draw in (render, person_mask):
        with pytest.raises(ValueError, match="between 32 and 512"):
            draw(factors, size)
    with pytest.raises(ValueError, match="between 32 and 512"):
        write_cohort(tmp_path / "cohort", **{**SMALL, "size": size})
    assert not list(tmp_path.iterdir())


def test_incomplete_and_broken_factors_are_refused(factors):
    with pytest.raises(ValueError, match="id_face_width"):
        render(factors.drop(columns="id_face_width"))
    with pytest.raises(ValueError, match="res_yaw of row 3 is not finite"):
        render(factors.assign(res_yaw=np.where(np.arange(len(factors)) == 3, np.nan, 0.0)))


# --- on disk


@pytest.mark.parametrize("protocol", ["masked", "scenes"])
def test_a_cohort_on_disk_is_in_colour_and_reproduces_from_its_own_table(tmp_path, protocol):
    manifest = load_manifest(write_cohort(tmp_path / "cohort", seed=4, protocol=protocol, **SMALL))
    assert [len(entries) for entries in manifest.parts.values()] == [12, 4, 6]
    assert manifest.classes == ["neutral", "smiling"]
    assert manifest.extra["phantom"]["name"] == "face" and manifest.extra["phantom"]["protocol"] == protocol
    table = pd.read_csv(manifest.folder / "factors.csv")
    drawn = sample_factors(4, SMALL["images"], SMALL["patients"], protocol=protocol)
    pd.testing.assert_frame_equal(table, drawn, check_dtype=False, check_exact=True)
    entries = [entry for part in manifest.parts.values() for entry in part]
    for entry, row, pixels in zip(entries, table.itertuples(), render(table, 32), strict=True):
        assert (entry["image"], entry["patient"], entry["finding"]) == (row.image, row.patient, row.finding)
        assert entry["severity"] == row.med_severity and "side" not in entry
        assert np.array_equal(np.asarray(Image.open(manifest.image_path(entry))), pixels)


def test_what_is_taken_out_is_no_factor_that_can_be_asked_for():
    asked = known_factors(sample_factors(0, (40, 0, 0), (12, 0, 0))).names
    scenes = known_factors(sample_factors(0, (40, 0, 0), (12, 0, 0), protocol="scenes")).names
    assert set(scenes) - set(asked) == set(face_factors.BACKGROUND)


def test_the_evidence_of_a_smile_is_on_the_face_and_as_good_as_the_same_before_walls():
    alone, scenes = (sample_factors(0, (40, 0, 0), (12, 0, 0), protocol=name) for name in ("masked", "scenes"))
    finding = alone["finding"].to_numpy()
    smiles, neutrals = np.flatnonzero(finding == 1)[:12], np.flatnonzero(finding == 0)[:12]
    inside = evidence(alone.iloc[smiles], alone.iloc[neutrals], 64)
    # Where the outline of a cheek is mixed with what is behind it, a change can be more or less than the threshold.
    assert (inside != evidence(scenes.iloc[smiles], scenes.iloc[neutrals], 64)).mean() < 1e-3
    assert inside.any((1, 2)).all() and not inside[person_mask(alone.iloc[smiles], 64) == 0].any()


def test_a_cohort_is_read_with_three_channels_and_measured_without_sides(tmp_path):
    path = write_cohort(tmp_path / "cohort", seed=4, **SMALL)
    cohort = Cohort.from_manifest(path, "training", 32, channels=3)
    assert tuple(cohort.images.shape) == (12, 3, 32, 32)
    assert sides_of(cohort) == []
    assert ((severities(cohort) > 0) == (cohort.finding.numpy() == 1)).all()


def test_ensure_cohort_reuses_and_refuses_another_protocol(tmp_path):
    path = ensure_cohort(tmp_path / "cohort", **SMALL)
    assert ensure_cohort(tmp_path / "cohort", protocol="masked", **SMALL) == path
    with pytest.raises(ValueError, match="protocol is masked, not scenes"):
        ensure_cohort(tmp_path / "cohort", protocol="scenes", **SMALL)


def test_a_training_without_a_manifest_gets_the_generated_faces(tmp_path):
    counts = {"images": (8, 4, 4), "patients": (2, 2, 2)}
    for protocol, name in ((None, "face_32"), ("scenes", "face_scenes_32")):
        path = training_manifest(None, str(tmp_path), 32, "face", protocol=protocol, **counts)
        assert load_manifest(path).folder.name == name
