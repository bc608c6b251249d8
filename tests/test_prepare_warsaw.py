"""Warsaw-BioBase-Disease-Iris becomes a manifest, closed-set or of disjoint persons, whatever its sheet looks like."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_anon.manifest import PARTS

NAME = "prepare_warsaw"
SMALL = ["--images", "30,8,10", "--patients", "8,2,2"]


@pytest.fixture
def sheet():
    """A row an eye; every fourth person has glaucoma in the right eye, some with more."""
    rows = [[f"{person}", eye] for person in range(1, 13) for eye in ("left", "right")]
    table = pd.DataFrame(rows, columns=["Person", "Eye"])
    table["Diagnosis"] = "cataract"
    table.loc[(table["Eye"] == "right") & (table["Person"].astype(int) % 4 == 0), "Diagnosis"] = "Glaucoma, cataract"
    return table


@pytest.fixture
def release(tmp_path, noise, sheet):
    """Write 12 persons with two images of each eye, near infrared and colour."""

    def write(table=sheet, suffix="bmp", name="sheet.csv"):
        for person in range(1, 13):
            for eye in "lr":
                for number in (1, 2):
                    place = f"{person:04d}/{person:04d}_{eye}_IG_1_{number}"
                    for folder, file in (("images-NIR", f"{place}.{suffix}"), ("images-visible", f"{place}.jpg")):
                        (tmp_path / "data" / folder / f"{person:04d}").mkdir(parents=True, exist_ok=True)
                        shape = (12, 16) if folder == "images-NIR" else (12, 16, 3)
                        noise(*shape).save(tmp_path / "data" / folder / file)
        if table is not None:
            table.to_csv(tmp_path / "data" / name, index=False)

    return write


def test_closed_set_is_the_default_with_everybody_in_training(importer, release):
    release()
    code, output, manifest = importer(NAME, *SMALL)
    assert code == 0, output
    assert manifest.extra["closed_set"] is True
    assert [len(manifest.parts[part]) for part in PARTS] == [30, 8, 10]
    persons = [{entry["patient"] for entry in manifest.parts[part]} for part in PARTS]
    assert len(persons[0]) == 12 and persons[1] <= persons[0] and persons[2] <= persons[0]
    assert manifest.classes == ["absent", "glaucoma"]
    shares = [np.mean([entry["finding"] for entry in manifest.parts[part]]) for part in PARTS]
    assert shares == pytest.approx([6 / 48] * 3, abs=0.03)


def test_bmp_files_become_png_without_loss_and_other_files_stay(importer, release, tmp_path):
    release()
    entry = importer(NAME, *SMALL)[2].parts["test"][0]
    assert entry["image"].startswith("images/images-NIR_") and entry["image"].endswith(".png")
    number = entry["image"].split("_", 1)[1].split("_", 1)[1].removesuffix(".png")
    original = tmp_path / f"data/images-NIR/{entry['patient']}/{number}.bmp"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / entry["image"])), np.asarray(Image.open(original)))
    release(suffix="png")
    for path in (tmp_path / "data/images-NIR").rglob("*.bmp"):
        path.unlink()
    entry = importer(NAME, *SMALL, output="second")[2].parts["test"][0]
    assert entry["image"].startswith("../data/images-NIR/")
    assert not (tmp_path / "second/images").exists()


def test_disjoint_persons_are_the_other_protocol(importer, release):
    release()
    code, output, manifest = importer(NAME, "--images", "32,8,8", "--patients", "8,2,2", "--protocol", "disjoint")
    assert code == 0, output
    assert "closed_set" not in manifest.extra
    persons = [{entry["patient"] for entry in manifest.parts[part]} for part in PARTS]
    assert [len(part) for part in persons] == [8, 2, 2]
    assert not persons[0] & persons[1] and not persons[0] & persons[2] and not persons[1] & persons[2]


def test_the_finding_is_an_eyes_and_eye_and_camera_are_columns(importer, release):
    release()
    manifest = importer(NAME, *SMALL)[2]
    for part in PARTS:
        for entry in manifest.parts[part]:
            assert entry["finding"] == int(entry["eye"] == "R" and int(entry["patient"]) % 4 == 0)
            assert entry["camera"] == "IG"


@pytest.mark.parametrize("kind", ["persons", "images", "numbers"])
def test_the_sheet_may_have_rows_of_persons_or_images_and_other_columns(importer, release, kind):
    persons = list(range(1, 13))
    if kind == "images":
        names = [f"{p:04d}_{eye}_IG_1_{n}.bmp" for p in persons for eye in "lr" for n in (1, 2)]
        table = pd.DataFrame({"File": names, "Dx": ["glaucoma" if n.startswith("0004_r") else "" for n in names]})
        options = ["--image-column", "File", "--diagnosis-column", "Dx"]
    else:
        table = pd.DataFrame({"ID": persons, "Dx": [["no", "glaucoma"][p % 4 == 0] for p in persons]})
        options = ["--person-column", "ID", "--eye-column", "", "--diagnosis-column", "Dx"]
    if kind == "numbers":
        table["Dx"] = (table["Dx"] == "glaucoma").astype(int)
        options += ["--positive", "^1$"]
    release(table)
    code, output, manifest = importer(NAME, *SMALL, *options)
    assert code == 0, output
    found = sum(entry["finding"] for part in PARTS for entry in manifest.parts[part])
    assert found == (2 if kind == "images" else 12)


def test_colour_images_need_both_options(importer, release):
    release()
    visible = ["--folder", "images-visible"]
    code, output, _ = importer(NAME, *SMALL, *visible)
    assert code == 1 and "a colour image where gray is expected" in output and "0001_" not in output
    assert importer(NAME, *SMALL, *visible, "--channels", "3")[0] == 0


def test_a_wrong_root_or_sheet_is_refused_with_what_belongs_there(importer, release, tmp_path, sheet):
    assert "no such folder" in importer(NAME)[1]
    release(None)
    output = importer(NAME)[1]
    assert "images-NIR/: the images, in a folder a person (--folder) - found" in output
    assert "*.csv or *.xlsx: the sheet of diagnoses (--table) - NOT FOUND" in output
    sheet.to_csv(tmp_path / "data/one.csv", index=False)
    sheet.to_csv(tmp_path / "data/two.csv", index=False)
    assert "holds several sheets (one.csv, two.csv); name the one" in importer(NAME)[1]
    table = ["--table", str(tmp_path / "data/one.csv")]
    output = importer(NAME, *table, "--person-column", "ID", "--diagnosis-column", "Dx")[1]
    assert "one.csv has no column 'ID'; it has Person, Eye, Diagnosis" in output and "no column 'Dx'" in output
    assert "nothing in column 'Diagnosis' fits 'uveitis'" in importer(NAME, *table, "--finding", "uveitis")[1]
    output = importer(NAME, *table, "--eye-column", "")[1]
    assert "row 9: another answer than a row before for the same person" in output


def test_images_without_a_row_and_names_of_another_kind_are_named_without_the_person(
    importer, release, tmp_path, sheet
):
    release(sheet[sheet["Person"] != "7"])
    code, output, _ = importer(NAME, *SMALL)
    assert code == 1
    assert "4 of 48 images have no row in sheet.csv" in output and "…_l_IG_1_1.bmp" in output and "0007" not in output
    assert importer(NAME, "--images", "28,6,8", "--patients", "7,2,2", "--skip-missing")[0] == 0
    (tmp_path / "data/images-NIR/0001/eye0001.bmp").write_bytes(b"")
    output = importer(NAME, *SMALL, "--skip-missing", "--overwrite")[1]
    assert "1 of 49 names do not fit --pattern" in output and "eye….bmp" in output


def test_too_few_images_are_told_and_all_can_be_taken(importer, release):
    release()
    code, output, _ = importer(NAME)
    assert code == 1
    assert "1795 images of 115 patients are asked, 48 usable images of 12 patients are there" in output
    code, output, manifest = importer(NAME, "--all")
    assert code == 0, output
    assert [len(manifest.parts[part]) for part in PARTS] == [31, 7, 10]
    code, output, manifest = importer(NAME, "--all", "--dry-run", output="dry")
    assert (code, manifest) == (0, None)
