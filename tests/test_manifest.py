"""The data contract: what is refused and how it is said; splits that share no patient."""

import json
import os
from collections import Counter
from itertools import chain

import pytest

from monai_anon.manifest import (
    LEAST_TO_DIVIDE,
    PARTS,
    ManifestError,
    load_manifest,
    save_manifest,
    split_images,
    split_patients,
)


@pytest.fixture
def content(tmp_path):
    """A sound manifest's content; its image files exist (load_manifest does not decode them)."""
    entries = {
        part: [{"image": f"{part}{i}.png", "patient": f"{part}-{i // 2}", "finding": i % 2} for i in range(4)]
        for part in PARTS
    }
    for entry in chain(*entries.values()):
        (tmp_path / entry["image"]).write_bytes(b"x")
    return {**entries, "classes": ["absent", "effusion"]}


def write(folder, content):
    (folder / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / "manifest.json"


def problems_of(folder, content):
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(folder, content))
    return str(caught.value)


def test_a_saved_manifest_loads_with_everything_it_was_given(tmp_path, content):
    content["training"][0]["side"] = "left"
    parts = {part: content[part] for part in PARTS}
    path = save_manifest(tmp_path, parts, content["classes"], extra={"settings": {"seed": 3}})
    manifest = load_manifest(tmp_path)
    assert (manifest.path, manifest.parts, manifest.classes) == (path, parts, ["absent", "effusion"])
    assert manifest.extra == {"settings": {"seed": 3}}
    assert manifest.num_classes == 2
    assert manifest.image_path(parts["test"][1]) == tmp_path / "test1.png"


def test_saving_overwrites_only_when_asked_and_leaves_nothing_half_written(tmp_path, content):
    parts = {part: content[part] for part in PARTS}
    path = save_manifest(tmp_path, parts, content["classes"])
    before = path.read_text()
    with pytest.raises(FileExistsError, match=r"manifest\.json exists"):
        save_manifest(tmp_path, parts, content["classes"])
    parts["training"][0]["weight"] = float("nan")  # no JSON
    with pytest.raises(ValueError):
        save_manifest(tmp_path, parts, content["classes"], overwrite=True)
    assert path.read_text() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_saving_refuses_what_loading_would(tmp_path, content):
    content["test"][0]["patient"] = content["training"][0]["patient"]
    with pytest.raises(ManifestError, match="one patient in 2 parts"):
        save_manifest(tmp_path, {part: content[part] for part in PARTS}, content["classes"])
    with pytest.raises(ManifestError, match="no such part"):
        save_manifest(tmp_path, {"train": content["training"]}, content["classes"])
    assert not (tmp_path / "manifest.json").exists()


def test_image_paths_go_up_from_the_real_folder_of_a_link(tmp_path, content):
    (tmp_path / "data").mkdir()
    for part in PARTS:
        for entry in content[part]:
            entry["image"] = f"../{entry['image']}"
    write(tmp_path / "data", content)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "link").symlink_to(tmp_path / "data")
    manifest = load_manifest(tmp_path / "deep" / "er" / "link")
    assert manifest.image_path(manifest.parts["test"][0]) == tmp_path / "test0.png"


def test_a_patient_in_two_parts_is_refused_by_images_not_by_name(tmp_path, content):
    content["test"][1]["patient"] = "training-0"
    message = problems_of(tmp_path, content)
    assert "one patient in 2 parts: training[0] training0.png, test[1] test1.png" in message
    assert '"closed_set": true' in message
    assert "training-0" not in message


def test_a_closed_set_shares_patients_where_it_says_so_and_nothing_else(tmp_path, content):
    assert not load_manifest(write(tmp_path, content)).closed_set
    content["test"][1]["patient"] = content["training"][0]["patient"]
    assert "one patient in 2 parts" in problems_of(tmp_path, {**content, "closed_set": False})
    manifest = load_manifest(write(tmp_path, {**content, "closed_set": True}))
    assert manifest.closed_set and manifest.extra == {"closed_set": True}
    content["test"][1]["image"] = content["training"][0]["image"]
    assert "the same image as training[0]" in problems_of(tmp_path, {**content, "closed_set": True})


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_closed_set_is_true_or_false_and_nothing_like_it(tmp_path, content, value):
    assert "'closed_set' is" in problems_of(tmp_path, {**content, "closed_set": value})


def test_a_closed_set_is_saved_as_one_only_where_asked(tmp_path, content):
    content["test"][0]["patient"] = content["training"][0]["patient"]
    parts = {part: content[part] for part in PARTS}
    for extra in ({}, {"closed_set": False}):
        with pytest.raises(ManifestError, match="one patient in 2 parts"):
            save_manifest(tmp_path, parts, content["classes"], extra=extra)
    assert load_manifest(save_manifest(tmp_path, parts, content["classes"], extra={"closed_set": True})).closed_set


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finding": 2}, "validation[1] validation1.png: finding 2 is out of range; it must be from 0 to 1 (absent"),
        ({"finding": -1}, "finding -1 is out of range"),
        ({"finding": "effusion"}, 'finding is "effusion"; it must be an integer from 0 to 1'),
        ({"finding": True}, "finding is true"),
        ({"patient": 12}, "validation[1] validation1.png: patient is a int or empty; it must be a string"),
        ({"patient": " "}, "patient is a str or empty"),
        ({"image": "gone.png"}, "validation[1] gone.png: no such image"),
        ({"image": 3}, "validation[1]: image is 3; it must be a path"),
        ({"image": "."}, "is a folder"),
        ({"image": "test0.png"}, "test[0] test0.png: the same image as validation[1] test0.png; list an image once"),
        ({"image": "./x/../validation0.png"}, "the same image as validation[0] validation0.png"),
        ({"image": "empty.png"}, "the file is empty (0 bytes)"),
        ({"image": "a\0b.png"}, "no such image"),
    ],
)
def test_a_bad_entry_is_refused_with_its_place_and_reason(tmp_path, content, change, reason):
    (tmp_path / "empty.png").touch()
    content["validation"][1].update(change)
    assert reason in problems_of(tmp_path, content)


@pytest.mark.parametrize("column", ["image", "patient", "finding"])
def test_a_missing_column_is_refused(tmp_path, content, column):
    del content["training"][2][column]
    assert f"column '{column}' is missing" in problems_of(tmp_path, content)


def test_all_problems_are_listed_at_once(tmp_path, content):
    content["training"][0]["finding"] = 7
    content["validation"][0]["image"] = "gone.png"
    del content["test"][0]["patient"]
    content["test"][1] = "image.png"
    with pytest.raises(ManifestError) as caught:
        load_manifest(write(tmp_path, content))
    assert len(caught.value.problems) == 4
    assert all(problem in str(caught.value) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test": None}, "'test' is null; it must be a list"),
        ({"classes": None}, "'classes' is null"),
        ({"classes": []}, "'classes' is []"),
        ({"classes": ["a", "a"]}, "names a finding twice"),
        ({part: [] for part in PARTS}, "all parts are empty"),
    ],
)
def test_a_bad_form_is_refused(tmp_path, content, change, reason):
    assert reason in problems_of(tmp_path, {**content, **change})


def test_a_misnamed_part_is_pointed_at(tmp_path, content):
    content["train"] = content.pop("training")
    assert "part 'training' is missing (it has train)" in problems_of(tmp_path, content)


@pytest.mark.parametrize(("text", "reason"), [("{", "no valid JSON"), ("[]", "it holds []"), ("", "no valid JSON")])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text, reason):
    assert reason in problems_of(tmp_path, text)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="there is no manifest here"):
        load_manifest(tmp_path)


def cohort_entries(patients=200):
    """Patients with one to four images; findings constant, or varying in every third."""
    return [
        {"image": f"{p}-{i}.png", "patient": f"p{p}", "finding": (p + i * (p % 3 == 0)) % 2}
        for p in range(patients)
        for i in range(1 + p % 4)
    ]


def test_a_split_shares_no_patient_loses_no_image_and_keeps_the_order():
    entries = cohort_entries()
    parts = split_patients(entries, seed=1)
    patients = [{entry["patient"] for entry in parts[part]} for part in PARTS]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert list(chain(*parts.values())) == sorted(
        entries, key=lambda e: [e in parts[part] for part in PARTS].index(True)
    )


def test_a_split_is_stratified():
    entries = cohort_entries()
    findings, images = {}, Counter(entry["patient"] for entry in entries)
    for entry in entries:
        findings.setdefault(entry["patient"], set()).add(entry["finding"])
    strata = Counter((tuple(sorted(findings[p])), images[p] > 1) for p in findings)
    parts = split_patients(entries, (0.6, 0.2, 0.2))
    for share, part in zip((0.6, 0.2, 0.2), PARTS, strict=True):
        mine = {entry["patient"] for entry in parts[part]}
        assert abs(len(mine) - share * len(findings)) <= 1
        for stratum, count in Counter((tuple(sorted(findings[p])), images[p] > 1) for p in mine).items():
            assert abs(count - share * strata[stratum]) <= 2


def test_a_split_depends_on_the_seed_and_not_on_the_order():
    entries = cohort_entries()

    def patients(parts):
        return [{entry["patient"] for entry in parts[part]} for part in PARTS]

    assert patients(split_patients(entries, seed=4)) == patients(split_patients(entries[::-1], seed=4))
    assert patients(split_patients(entries, seed=4)) != patients(split_patients(entries, seed=5))


def test_a_fraction_of_zero_gives_an_empty_part():
    assert split_patients(cohort_entries(), (0.5, 0, 0.5))["validation"] == []


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.7, -0.4), (0.5, 0.1, 0.1), (float("nan"), 0.5, 0.5)])
def test_fractions_that_do_not_add_up_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions"):
        split_patients(cohort_entries(10), fractions)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_whether_colour_may_be_gray_is_true_or_false(tmp_path, content, value):
    assert "'to_gray' is" in problems_of(tmp_path, {**content, "to_gray": value})
    assert load_manifest(write(tmp_path, {**content, "to_gray": True})).to_gray
    assert not load_manifest(write(tmp_path, content)).to_gray


def test_images_are_divided_as_asked_and_nobody_is_compared_by_one_image():
    counts = [1, 2, 3, 4, 4, 5, 6, 9, 12, 15, 15, 20] * 4
    entries = [
        {"image": f"{patient}_{number}.png", "patient": str(patient), "finding": 0}
        for patient, count in enumerate(counts)
        for number in range(count)
    ]
    parts = split_images(entries, (0.6, 0.15, 0.25), seed=1)
    divided = sum(count for count in counts if count >= LEAST_TO_DIVIDE)
    assert len(parts["validation"]) == pytest.approx(0.15 * divided, abs=2)
    assert len(parts["test"]) == pytest.approx(0.25 * divided, abs=2)
    assert {entry["patient"] for entry in parts["training"]} == {entry["patient"] for entry in entries}
    for part in PARTS[1:]:
        assert min(Counter(entry["patient"] for entry in parts[part]).values()) >= 2
    assert sorted(entry["image"] for part in PARTS for entry in parts[part]) == sorted(e["image"] for e in entries)
