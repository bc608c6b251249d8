"""Any table of images, patients and findings becomes a manifest, or is refused with all reasons."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from monai_anon.manifest import PARTS, load_manifest


@pytest.fixture
def command(script):
    return script("prepare_table")


@pytest.fixture
def table(tmp_path):
    """40 images of 20 patients; the split column has all parts."""
    generator = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / f"data/images/{i}.png")
        patient = i // 2
        split = "train" if patient < 12 else "val" if patient < 15 else "test"
        finding = ["normal", "bacteria", "virus"][i % 3]
        rows.append([f"{i}.png", f"{patient:03d}", split, i % 2, finding, int(i < 30), "PA"])
    return pd.DataFrame(rows, columns=["image", "patient_id", "split", "effusion", "type", "id_known", "view"])


@pytest.fixture
def prepare(command, tmp_path):
    """Write a table, run the command on it, and give (exit code, output, manifest or None)."""

    def run(table, *options, finding="effusion", output="out", separator=","):
        table.to_csv(tmp_path / "data" / "labels.csv", index=False, sep=separator)
        given = ["--table", "data/labels.csv", "--patient-column", "patient_id", "--finding-column", finding]
        given = [str(tmp_path / word) if word.startswith("data/") else word for word in given]
        result = CliRunner().invoke(command, [*given, "--output", str(tmp_path / output), *options])
        written = (tmp_path / output).exists()
        return result.exit_code, result.output, load_manifest(tmp_path / output) if written else None

    return run


def test_a_table_with_a_split_column_becomes_its_manifest(prepare, table, tmp_path):
    code, output, manifest = prepare(table, "--split-column", "split", "--keep-columns", "view")
    assert code == 0, output
    assert [len(manifest.parts[part]) for part in PARTS] == [24, 6, 10]
    assert manifest.classes == ["absent", "effusion"]
    expected = {"image": "../data/images/1.png", "patient": "000", "finding": 1, "view": "PA"}
    assert manifest.parts["training"][1] == expected
    assert manifest.image_path(expected) == tmp_path / "data" / "images" / "1.png"
    assert "24 images of 12 patients (12 with two or more): absent 12, effusion 12" in output


def test_without_split_column_patients_are_split_by_seed(prepare, table):
    first = prepare(table, "--seed", "3")[2]
    again = prepare(table, "--seed", "3", output="again")[2]
    other = prepare(table, "--seed", "4", output="other")[2]
    assert first.parts == again.parts != other.parts
    assert [len(first.parts[part]) for part in PARTS] == [28, 4, 8]


def test_a_split_column_without_test_rows_says_what_to_do(prepare, table):
    table.loc[table["split"] == "test", "split"] = "val"
    code, output, manifest = prepare(table, "--split-column", "split")
    assert (code, manifest) == (1, None)
    assert "gives no image to test (it says train: 24, val: 16). Use --resplit" in output
    code, output, manifest = prepare(table, "--split-column", "split", "--resplit")
    assert code == 0, output
    assert all(manifest.parts[part] for part in PARTS)


def test_classes_choose_and_order_the_findings(prepare, table):
    assert prepare(table, finding="type")[2].classes == ["bacteria", "normal", "virus"]
    code, output, manifest = prepare(table, "--classes", "normal,virus", finding="type", output="two")
    assert code == 0, output
    assert manifest.classes == ["normal", "virus"]
    assert sum(map(len, manifest.parts.values())) == 27
    assert "27 of 40 rows used (0 left out by --where, 13 by --classes)" in output
    assert prepare(table, "--classes", "1=sick,0=well", output="named")[2].classes == ["sick", "well"]
    assert prepare(table, "--classes", "no,yes", output="numbered")[2].classes == ["no", "yes"]


def test_where_filters_rows(prepare, table):
    code, output, manifest = prepare(table, "--where", "id_known=1", "--where", "view=PA")
    assert code == 0, output
    assert sum(map(len, manifest.parts.values())) == 30


def test_semicolons_and_decimal_labels_are_read(prepare, table):
    table["effusion"] = table["effusion"].astype(float)
    code, output, manifest = prepare(table, separator=";")
    assert code == 0, output
    assert manifest.classes == ["absent", "effusion"]


def test_a_dry_run_writes_nothing_and_a_manifest_is_not_overwritten_unasked(prepare, table, tmp_path):
    code, output, manifest = prepare(table, "--dry-run")
    assert (code, manifest) == (0, None)
    assert "not written" in output
    assert not (tmp_path / "out").exists()
    prepare(table)
    code, output, _ = prepare(table, "--seed", "5")
    assert code == 1
    assert "exists already; use --overwrite" in output
    assert prepare(table, "--seed", "5", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--split-column", "part"], "--split-column: labels.csv has no column 'part'; it has image, patient_id"),
        (["--image-column", "file"], "--image-column: labels.csv has no column 'file'"),
        (["--keep-columns", "age,view"], "--keep-columns: labels.csv has no column 'age'"),
        (["--keep-columns", "sex"], "no column 'sex'"),
        (["--where", "id_known"], "write column=value"),
        (["--where", "id_known=7"], "leaves no row; values of id_known are 0, 1"),
        (["--classes", "0,2"], "class '2' is in no row; values are 0, 1"),
        (["--classes", "0"], "1 class(es): 0; pairs need two or more"),
        (["--classes", "0=a,1=a"], "a class is given twice"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--fractions", "a,b"], "give three numbers"),
        (["--fractions", "1,1,1"], "they must sum to 1"),
        (["--fractions", "0.99,0.005,0.005"], "20 patients are too few"),
    ],
)
def test_a_bad_option_is_refused_with_what_would_be_right(prepare, table, options, reason):
    code, output, manifest = prepare(table, *options)
    assert (code, manifest) == (1, None)
    assert reason in output


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.assign(effusion=["0", "1"] * 19 + ["0", ""]), "row 41 39.png: finding '' is out of range"),
        (lambda t: t.assign(split=["train"] * 39 + ["later"]), "'later' in 1 row(s)"),
        (
            lambda t: t.assign(split=["val", *t["split"][1:]]),
            "one patient in 2 parts: training[0] ../data/images/1.png",
        ),
        (lambda t: t.iloc[:0], "has no rows"),
    ],
)
def test_bad_rows_are_refused(prepare, table, change, reason):
    code, output, manifest = prepare(change(table), "--split-column", "split")
    assert (code, manifest) == (1, None)
    assert reason in output


def test_a_label_beyond_the_named_ones_is_out_of_range(prepare, table):
    table.loc[5, "effusion"] = 2
    code, output, _ = prepare(table, "--classes", "absent,present")
    assert code == 1
    assert "row 7 5.png: finding '2' is out of range; it must be one of 0, 1" in output


def test_all_bad_rows_and_files_are_listed_at_once(prepare, table, tmp_path):
    (tmp_path / "data/images/4.png").unlink()
    (tmp_path / "data/images/9.png").write_bytes(b"")
    table.loc[7, "patient_id"] = ""
    table.loc[11, "image"] = "10.png"
    code, output, manifest = prepare(table, "--split-column", "split")
    assert (code, manifest) == (1, None)
    for reason in ("row 9 7.png: column 'patient_id' is empty", "4.png: no such image", "9.png: the file is empty"):
        assert reason in output
    assert "training[11] ../data/images/10.png: the same image as training[10] ../data/images/10.png" in output


def test_images_are_decoded_before_anything_is_written(prepare, table, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data/images/3.png")
    (tmp_path / "data/images/5.png").unlink()
    (tmp_path / "data/images/30.png").write_bytes((tmp_path / "data/images/0.png").read_bytes())
    code, output, manifest = prepare(table, "--split-column", "split")
    assert (code, manifest) == (1, None)
    assert "3.png: is constant" in output
    assert output.count("5.png") == 1  # missing, and told once
    assert "30.png: the same pixels as training[0] ../data/images/0.png (a leak between parts)" in output
    assert prepare(table.drop(index=5), "--split-column", "split", "--no-check")[0] == 0


def test_help_names_every_option(command):
    output = CliRunner().invoke(command, ["--help"], env={"COLUMNS": "200"}).output
    for option in ("table", "images", "split-column", "resplit", "classes", "where", "dry-run", "overwrite", "seed"):
        assert f"--{option}" in output


# ---- a closed set ----


def many(table, per_patient):
    """The same images, of fewer patients with more images each."""
    return table.assign(patient_id=[f"{i // per_patient:03d}" for i in range(len(table))])


def people(manifest):
    return [{entry["patient"] for entry in manifest.parts[part]} for part in PARTS]


def test_a_closed_set_divides_the_images_of_each_patient(prepare, table):
    code, output, manifest = prepare(many(table, 8), "--closed-set")
    assert code == 0, output
    assert manifest.closed_set
    training, validation, test = people(manifest)
    assert len(training) == 5 and test and validation and (test | validation) <= training
    assert [len(manifest.parts[part]) for part in PARTS] == [28, 4, 8]
    assert "a closed set:" in output
    again = prepare(many(table, 8).sample(frac=1, random_state=0), "--closed-set", output="again")[2]
    other = prepare(many(table, 8), "--closed-set", "--seed", "1", output="other")[2]
    names = [
        {part: {entry["image"] for entry in one.parts[part]} for part in PARTS} for one in (manifest, again, other)
    ]
    assert names[0] == names[1] != names[2]


def test_patients_with_too_few_images_are_in_training_only(prepare, table):
    table.loc[:29, "patient_id"] = [f"{i // 6:03d}" for i in range(30)]  # the last ten images are of five patients
    code, output, manifest = prepare(table, "--closed-set")
    assert code == 0, output
    few = {f"{i:03d}" for i in range(15, 20)}
    training, validation, test = people(manifest)
    assert few <= training and not few & (validation | test)
    for part in PARTS[1:]:
        counts = pd.Series([entry["patient"] for entry in manifest.parts[part]]).value_counts()
        assert counts.min() >= 2, "who is compared with people needs two images"


def test_a_closed_set_that_cannot_be_is_refused(prepare, table):
    code, output, manifest = prepare(table, "--closed-set")
    assert (code, manifest) == (1, None)
    assert "0 of 20 patients have 3 images or more, too few for --fractions 0.7,0.1,0.2: test stays empty" in output
    code, output, _ = prepare(many(table, 8), "--closed-set", "--fractions", "0,0.5,0.5")
    assert code == 1 and "everybody is in training, which gets nothing" in output


def test_a_closed_set_may_follow_a_column_that_has_everybody_in_training(prepare, table):
    table["split"] = ["train", "val", "train", "test"] * 10
    closed = many(table, 4)
    code, output, manifest = prepare(closed, "--closed-set", "--split-column", "split")
    assert code == 0, output
    assert manifest.closed_set and [len(one) for one in people(manifest)] == [10, 10, 10]
    assert "one patient in" in prepare(closed, "--split-column", "split", output="apart")[1]
    closed.loc[closed["patient_id"] == "003", "split"] = "test"
    code, output, _ = prepare(closed, "--closed-set", "--split-column", "split", output="unknown")
    assert code == 1 and output.count("its patient has no image in training") == 4 and "003" not in output
