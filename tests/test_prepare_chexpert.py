"""CheXpert as it is given out becomes a manifest: frontal views, stated labels, every layout, missing files told."""

import pytest
from PIL import Image

from monai_anon.manifest import PARTS

FINDINGS = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
]  # fmt: skip
SMALL = ["--images", "12,4,4", "--patients", "6,2,2"]
BATCH = "CheXpert-v1.0 batch"


def row(path, effusion, edema="", **facts):
    """A line of a table."""
    labels = {"Pleural Effusion": effusion, "Edema": edema}
    view = "Lateral" if "lateral" in path else "Frontal"
    values = [path, facts.get("sex", "Female"), "68", view, "AP" if view == "Frontal" else ""]
    return ",".join([*values, *(labels.get(name, "") for name in FINDINGS)])


def header():
    return ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS])


@pytest.fixture
def rows():
    """20 patients with two frontal images in two studies, a lateral one, and an uncertain one."""
    lines = {}
    for patient in range(1, 21):
        for study in (1, 2):
            path = f"train/patient{patient:05d}/study{study}/view1_frontal.jpg"
            lines[path] = ("1.0", "0.0", "")[patient % 3] if study == 1 else ("", "1.0")[patient % 2]
        lines[f"train/patient{patient:05d}/study1/view2_lateral.jpg"] = "1.0"
    lines["train/patient00001/study3/view1_frontal.jpg"] = "-1.0"
    return lines


@pytest.fixture
def release(tmp_path, rows, noise):
    """Write a release: where a path of the table lies, and what the table calls the release."""

    def write(home="data/CheXpert-v1.0", name="CheXpert-v1.0", place=lambda path: path, leave_out=()):
        folder = tmp_path / home
        folder.mkdir(parents=True)
        lines = [header(), *(row(f"{name}/{path}", label) for path, label in rows.items())]
        (folder / "train.csv").write_text("\n".join(lines))
        (folder / "valid.csv").write_text(
            "\n".join([header(), row(f"{name}/valid/patient64541/study1/view1_frontal.jpg", "1.0")])
        )
        for path in [*rows, "valid/patient64541/study1/view1_frontal.jpg"]:
            if path not in leave_out:
                file = folder / place(path)
                file.parent.mkdir(parents=True, exist_ok=True)
                noise(16, 14).save(file)

    return write


@pytest.mark.parametrize("name", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
@pytest.mark.parametrize("where", ["data", "data/{}"])
def test_both_releases_are_read_from_their_folder_or_the_one_above(importer, release, name, where):
    release(f"data/{name}", name)
    code, output, manifest = importer("prepare_chexpert", *SMALL, root=where.format(name))
    assert code == 0, output
    assert [len(manifest.parts[part]) for part in PARTS] == [12, 4, 4]
    assert manifest.classes == ["absent", "pleural effusion"]
    entry = manifest.parts["training"][0]
    assert entry["image"].startswith(f"../data/{name}/train/patient")
    assert (entry["sex"], entry["age"], entry["view"]) == ("Female", "68", "AP")
    assert entry["patient"] in entry["image"]
    assert manifest.extra["preparation"]["uncertain"] == "drop"
    assert "12 images of 6 patients (6 with two or more)" in output


def test_lateral_views_are_left_out_and_blank_is_absent(importer, release, rows):
    release()
    manifest = importer("prepare_chexpert", "--all", *SMALL[2:])[2]
    entries = [entry for part in PARTS for entry in manifest.parts[part]]
    assert len(entries) == 40
    for entry in entries:
        assert "lateral" not in entry["image"]
        assert entry["finding"] == int(rows[entry["image"].removeprefix("../data/CheXpert-v1.0/")] == "1.0")


@pytest.mark.parametrize(
    ("policy", "count", "findings"), [("drop", 40, None), ("positive", 41, 1), ("negative", 41, 0)]
)
def test_an_uncertain_finding_counts_as_asked(importer, release, policy, count, findings):
    release()
    manifest = importer("prepare_chexpert", "--all", *SMALL[2:], "--uncertain", policy)[2]
    entries = [entry for part in PARTS for entry in manifest.parts[part]]
    assert len(entries) == count
    assert [e["finding"] for e in entries if "study3" in e["image"]] == ([] if findings is None else [findings])


def test_the_unpacked_archives_of_the_full_release_are_found(importer, release):
    """Its tables lie in the first archive and name paths without any; patients are spread over the others."""

    def place(path):
        part, _, inside = path.partition("/")
        number = 2 + int(path.split("patient")[1][:5]) % 3
        return f"valid/{inside}" if part == "valid" else f"../{BATCH} {number} (train {number - 1})/{inside}"

    release(f"data/{BATCH} 1 (validate & csv)", place=place)
    code, output, manifest = importer("prepare_chexpert", *SMALL, "--tables", "train.csv,valid.csv")
    assert code == 0, output
    assert "41 frontal images" not in output and "42 frontal images of train.csv and valid.csv" in output
    folders = {entry["image"].split("/")[2] for entry in manifest.parts["training"]}
    assert folders <= {f"{BATCH} {number} (train {number - 1})" for number in (2, 3, 4)} and len(folders) > 1
    assert importer("prepare_chexpert", *SMALL, root=f"data/{BATCH} 1 (validate & csv)", output="again")[0] == 0


def test_missing_files_are_counted_and_named_without_their_patient(importer, release):
    gone = ["train/patient00004/study1/view1_frontal.jpg", "train/patient00009/study2/view1_frontal.jpg"]
    release(leave_out=gone)
    code, output, manifest = importer("prepare_chexpert", *SMALL)
    assert (code, manifest) == (1, None)
    assert "2 of 41 images are not there; unpack every archive" in output
    assert "train.csv row 11: CheXpert-v1.0/train/patient…/study1/view1_frontal.jpg" in output
    assert "00004" not in output and "00009" not in output
    code, output, manifest = importer("prepare_chexpert", *SMALL, "--skip-missing")
    assert code == 0, output
    assert "left out: 2 of 41 images are not there" in output


def test_a_wrong_root_or_a_missing_table_is_refused_with_what_belongs_there(importer, release, tmp_path):
    assert "data: no such folder" in importer("prepare_chexpert")[1]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "patient00001").mkdir()
    code, output, _ = importer("prepare_chexpert")
    assert code == 1
    assert "train.csv: paths and findings - NOT FOUND" in output
    assert "train/patient.../study.../: its images - NOT FOUND" in output
    assert "the folder holds patient…" in output
    release()
    (tmp_path / "data/CheXpert-v1.0/valid.csv").unlink()
    output = importer("prepare_chexpert", "--tables", "train.csv,valid.csv")[1]
    assert "train.csv: paths and findings - found" in output and "valid.csv: paths and findings - NOT FOUND" in output
    release("data/CheXpert-v1.0-small")
    assert "holds CheXpert-v1.0 and CheXpert-v1.0-small; give the one to use" in importer("prepare_chexpert")[1]


def test_an_unknown_finding_column_or_value_is_refused(importer, release, tmp_path):
    release()
    output = importer("prepare_chexpert", "--finding", "Effusion")[1]
    assert "--finding 'Effusion' is none of the dataset's; it has No Finding, Enlarged" in output
    assert "Pleural Effusion, Pleural Other, Fracture, Support Devices" in output and "AP/PA" not in output
    table = tmp_path / "data/CheXpert-v1.0/train.csv"
    text = table.read_text()
    table.write_text(text.replace(",1.0,", ",2,"))
    assert "column 'Pleural Effusion' says 2; it may say 1, 0, -1 or nothing" in importer("prepare_chexpert")[1]
    table.write_text(text.replace("Frontal/Lateral", "Projection").replace("Path", "File"))
    output = importer("prepare_chexpert")[1]
    assert "has no column 'Path'" in output and "has no column 'Frontal/Lateral'; it has File, Sex" in output


def test_a_smaller_dataset_says_how_many_there_are(importer, release):
    release()
    code, output, manifest = importer("prepare_chexpert")
    assert (code, manifest) == (1, None)
    assert "6500 images of 2005 patients are asked, 40 usable images of 20 patients are there" in output


def test_a_seed_decides_and_a_dry_run_writes_nothing(importer, release):
    release()
    code, output, manifest = importer("prepare_chexpert", *SMALL, "--dry-run")
    assert (code, manifest) == (0, None) and "not written" in output
    first = importer("prepare_chexpert", *SMALL, "--seed", "3")[2]
    assert "exists already; use --overwrite" in importer("prepare_chexpert", *SMALL)[1]
    again = importer("prepare_chexpert", *SMALL, "--seed", "3", "--overwrite")[2]
    other = importer("prepare_chexpert", *SMALL, "--seed", "4", "--overwrite")[2]
    assert first.parts == again.parts != other.parts


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--images", "12,4"], "--images 12,4: give three whole numbers"),
        (["--patients", "a,b,c"], "--patients a,b,c: give three whole numbers"),
        (["--share", "2"], "--share 2: give a number between 0 and 1"),
    ],
)
def test_a_bad_option_is_refused(importer, release, options, reason):
    release()
    assert reason in importer("prepare_chexpert", *options)[1]


def test_images_are_decoded_first_and_problems_hide_patients(importer, release, tmp_path):
    release()
    for path in (tmp_path / "data/CheXpert-v1.0/train").rglob("study1/view1_frontal.jpg"):
        Image.new("L", (16, 14)).save(path)
    code, output, manifest = importer("prepare_chexpert", *SMALL)
    assert (code, manifest) == (1, None)
    assert "../data/CheXpert-v1.0/train/patient…/study1/view1_frontal.jpg: is constant" in output
    assert "patient0" not in output
    assert importer("prepare_chexpert", *SMALL, "--no-check")[0] == 0


def test_help_has_an_example(script):
    from typer.testing import CliRunner

    output = CliRunner().invoke(script("prepare_chexpert"), ["--help"], env={"COLUMNS": "200"}).output
    assert "prepare_chexpert.py --root DATA/chexpert" in output
    for option in ("uncertain", "skip-missing", "all", "seed", "dry-run", "overwrite"):
        assert f"--{option}" in output
