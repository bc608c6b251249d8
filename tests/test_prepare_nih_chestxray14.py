"""NIH ChestX-ray14 as it is given out becomes a manifest whose test part is of its official list."""

import pytest

from monai_anon.manifest import PARTS

NAME = "prepare_nih_chestxray14"
SMALL = ["--images", "12,4,8", "--patients", "6,2,4"]
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position,"
HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
LABELS = ["No Finding", "Effusion", "Cardiomegaly|Effusion", "Pleural_Thickening"]


@pytest.fixture
def release(tmp_path, noise):
    """Write 20 patients with two images each, the last six in the test list; gives the images' names."""

    def write(table="Data_Entry_2017_v2020.csv", sex="Sex", end="", folder="images_{:03d}/images", leave_out=()):
        names = [f"{patient:08d}_{number:03d}.png" for patient in range(1, 21) for number in (0, 1)]
        lines = [HEADER.format(sex) + end]
        for index, name in enumerate(names):
            patient = int(name[:8])
            lines.append(f"{name},{LABELS[index % 4]},{index % 2},{patient},058Y,M,PA,2682,2749,0.143,0.143{end}")
            if name not in leave_out:
                file = tmp_path / "data" / folder.format(1 + index % 12) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                noise(16, 16).save(file)
        (tmp_path / "data" / table).write_text("\n".join(lines))
        (tmp_path / "data/train_val_list.txt").write_text("\n".join(names[:28]))
        (tmp_path / "data/test_list.txt").write_text("\n".join(names[28:]) + "\n")
        return names

    return write


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"table": "Data_Entry_2017.csv", "sex": "Gender", "end": ","},
        {"folder": "images_{:03d}"},
        {"folder": "images"},
    ],
)
def test_every_layout_is_read_and_the_test_part_is_of_the_test_list(importer, release, layout):
    names = release(**layout)
    code, output, manifest = importer(NAME, *SMALL)
    assert code == 0, output
    assert [len(manifest.parts[part]) for part in PARTS] == [12, 4, 8]
    assert manifest.classes == ["absent", "effusion"]
    for part in PARTS:
        for entry in manifest.parts[part]:
            index = names.index(entry["image"].rpartition("/")[2])
            assert (index >= 28) == (part == "test")
            assert entry["finding"] == int("Effusion" in LABELS[index % 4])
            assert entry["patient"] == str(int(names[index][:8]))
            assert (entry["sex"], entry["age"], entry["view"]) == ("M", "58", "PA")


def test_missing_files_are_counted_and_named_by_row(importer, release):
    release(leave_out=["00000003_000.png", "00000020_001.png"])
    code, output, manifest = importer(NAME, *SMALL)
    assert (code, manifest) == (1, None)
    assert "2 of 40 images of Data_Entry_2017_v2020.csv are not there; unpack every archive" in output
    assert "row 6: …_….png" in output and "00000003" not in output
    code, output, manifest = importer(NAME, *SMALL, "--skip-missing")
    assert code == 0, output


def test_a_wrong_root_lists_all_that_is_expected(importer, release, tmp_path):
    assert "no such folder" in importer(NAME)[1]
    release()
    (tmp_path / "data/Data_Entry_2017_v2020.csv").unlink()
    (tmp_path / "data/test_list.txt").unlink()
    code, output, _ = importer(NAME)
    assert code == 1
    assert "Data_Entry_2017_v2020.csv or Data_Entry_2017.csv: patients and labels - NOT FOUND" in output
    assert "test_list.txt: the images of the test part - NOT FOUND" in output
    assert "train_val_list.txt: the images of training and validation - found" in output
    assert "images_001/images/ ... images_012/images/, or images/: the images - found" in output


def test_an_unknown_finding_or_missing_columns_are_refused(importer, release, tmp_path):
    release()
    output = importer(NAME, "--finding", "Pleural Effusion")[1]
    assert "is none of the dataset's; it has Cardiomegaly, Effusion, Pleural_Thickening" in output
    table = tmp_path / "data/Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Patient Sex", "S").replace("Finding Labels", "L"))
    output = importer(NAME)[1]
    assert "has no column 'Patient Gender' or 'Patient Sex'" in output and "no column 'Finding Labels'" in output


def test_images_in_neither_list_are_left_out_and_lists_that_share_a_patient_refused(importer, release, tmp_path):
    names = release()
    training = tmp_path / "data/train_val_list.txt"
    training.write_text("\n".join(names[2:28]))
    code, output, _ = importer(NAME, *SMALL)
    assert code == 0 and "left out: 2 of 40 images are in neither list" in output
    training.write_text("\n".join(names[:29]))
    (tmp_path / "data/test_list.txt").write_text("\n".join(names[29:]))
    code, output, _ = importer(NAME, *SMALL, "--overwrite")
    assert code == 1 and "share 1 patient(s)" in output


def test_a_smaller_dataset_is_refused_or_taken_whole(importer, release):
    release()
    code, output, _ = importer(NAME)
    assert code == 1
    assert "training + validation: 6200 images of 1875 patients are asked, 28 usable images of 14 patients" in output
    assert "test: 300 images of 130 patients are asked, 12 usable images of 6 patients" in output
    code, output, manifest = importer(NAME, "--all")
    assert code == 0, output
    assert len(manifest.parts["test"]) == 12 and sum(map(len, manifest.parts.values())) == 40
