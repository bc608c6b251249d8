"""`monai-anon anonymize` from end to end through the gate: what leaves, what does not, what the certificate says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from toy_release import identity, load, medical, toys, training, write_bundle, write_originals, write_site
from typer.testing import CliRunner, Result

from monai_anon import release
from monai_anon.__main__ import app
from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.evaluation.judges import Judges
from monai_anon.readers import to_model_range

ROOT = Path(__file__).parent.parent
MADE = {"statements.jsonl", "certificate.json", "certificate.html"}
SITE_FILES = (
    "gallery_model.safetensors", "gallery_verifier.safetensors", "calibration_model.json",
    "calibration_verifier.json", "judges.safetensors",
)  # fmt: skip


@pytest.fixture(autouse=True)
def toy_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judges, "load", staticmethod(load))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundle`, `site`, `in`, `patients.csv` and a `key`; nothing writes there."""
    place = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judges, "load", staticmethod(load))
        write_site(place / "site", write_bundle(place / "bundle"))
    write_originals(place / "in")
    (place / "key").write_text("0a" * 32)
    (place / "key").chmod(0o600)
    return place


def words(made: Path, out: Path, *options: object, gate: bool = True, key: bool = True) -> list[str]:
    found = ["anonymize", made / "in", out, "--bundle", made / "bundle", *options]
    found += ["--site", made / "site"] if gate else ["--no-gate"]
    found += ["--key", made / "key", "--patients", made / "patients.csv"] if key else []
    return [str(word) for word in found]


def call(*given: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in given])


def anonymize(made: Path, out: Path, *options: object, **settings: bool) -> Result:
    result = call(*words(made, out, *options, **settings))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def certificate(out: Path) -> dict:
    content = json.loads((out / "certificate.json").read_text())
    schema = json.loads((ROOT / "docs" / "certificate.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(content)
    return content


def copies(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.png"))}


def statements(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "statements.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def released(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The whole release in one go, and what the command said."""
    out = tmp_path_factory.mktemp("released") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judges, "load", staticmethod(load))
        return out, anonymize(made, out)


# ---- what leaves ----


def test_without_a_site_nothing_leaves_and_without_a_gate_it_is_said(made: Path, tmp_path: Path) -> None:
    result = call("anonymize", made / "in", tmp_path / "out", "--bundle", made / "bundle")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "--site SITE" in result.stderr and "monai-anon calibrate" in result.stderr and "--no-gate" in result.stderr
    free = anonymize(made, tmp_path / "free", gate=False, key=False)
    assert free.exit_code == 0 and "NOT checked by the privacy gate" in free.stdout
    content = certificate(tmp_path / "free")
    assert content["gate"] is None and content["bound"]["bits_an_image"] == 3 and content["counts"]["released"] == 24
    assert {row["gate"] for row in statements(tmp_path / "free")} == {None}
    assert "No privacy gate" in (tmp_path / "free" / "certificate.html").read_text()
    both = call(*words(made, tmp_path / "both"), "--no-gate")
    assert both.exit_code == 2 and "contradicts" in both.stderr


def test_what_does_not_pass_is_withheld_counted_and_told_by_the_exit_code(made: Path, released) -> None:
    out, result = released
    content, left = certificate(out), copies(out)
    withheld = content["counts"]["withheld"]
    assert result.exit_code == 1 and 0 < withheld < 24 and len(left) == 24 - withheld == content["counts"]["released"]
    assert result.stderr.count("withheld: ") == withheld
    assert {row["image"] for row in statements(out)} == left.keys()
    assert {path.name for path in out.iterdir()} == left.keys() | MADE
    bits = content["bound"]["bits_an_image"]
    assert math.log2(9) <= bits < math.log2(9) + 0.001 and {row["bits"] for row in statements(out)} == {bits}
    assert content["bound"]["pseudonyms"] == [
        {"images": 3, "pseudonyms": 8, "bits": round(3 * bits, 3), "epsilon": None}
    ]
    assert content["identities"] == {"one_for_each": "patient", "patients_known_from": "table", "most_images": None}
    assert content["model"]["name"] == "toy" and content["model"]["version"] == "1.2.3"
    assert content["gate"]["comparison_with_original"] == "veto" and content["gate"]["judges"]
    assert content["likeness_to_training"]["model"]["copies"] == len(left)
    for one in content["gate"]["comparators"]:
        assert (
            content["likeness_to_training"][one["name"]]["most"] <= one["thresholds"]["training"]["similarity"] + 0.005
        )
    told = content["withheld_for"]
    assert told is None if withheld < 10 else sum(told.values()) >= withheld


def test_no_identifier_and_no_key_is_in_any_output(made: Path, released) -> None:
    out, result = released
    secret = (made / "key").read_text()
    everything = b"".join(path.read_bytes() for path in out.iterdir()) + result.output.encode()
    assert b"PLANTQ" not in everything and secret.encode() not in everything and bytes.fromhex(secret) not in everything
    certified = (out / "certificate.json").read_text() + (out / "certificate.html").read_text()
    assert ".png" not in certified and str(made) not in certified and str(out) not in certified


@pytest.mark.parametrize("name", SITE_FILES)
def test_where_anything_of_the_site_is_missing_or_of_another_model_nothing_leaves(
    made: Path, tmp_path: Path, name: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for other in SITE_FILES:
        if other != name:
            (site / other).symlink_to(made / "site" / other)
    given = ["anonymize", made / "in", tmp_path / "out", "--bundle", made / "bundle", "--site", site]
    missing = call(*given)
    assert missing.exit_code == 2 and "nothing was released" in missing.stderr and not (tmp_path / "out").exists()
    wrong = "model" if "verifier" in name else "verifier"
    (site / name).symlink_to(
        made / "site" / (name.replace("verifier", wrong) if wrong in "model" else "judges.safetensors")
    )
    if name != "judges.safetensors":
        other = call(*given)
        assert other.exit_code == 2 and "nothing was released" in other.stderr and not (tmp_path / "out").exists()


def test_a_near_copy_of_a_training_patient_never_leaves(made: Path, tmp_path: Path, monkeypatch) -> None:
    """Planted: whatever is drawn, the second of two files gets a training patient's identity."""
    planted = to_model_range(training().images[10:11])
    drawn = LatentSwapAnonymizer.drawn

    def with_training_identity(self, z, noise):
        found = drawn(self, z, noise)
        found.identity[:] = self.disentangler.encode(planted).identity
        return found

    monkeypatch.setattr(LatentSwapAnonymizer, "drawn", with_training_identity)
    result = anonymize(made, tmp_path / "out")
    assert result.exit_code == 1 and copies(tmp_path / "out") == {}
    assert result.stderr.count("near a training patient") == 24
    content = certificate(tmp_path / "out")
    assert content["counts"]["withheld"] == 24 and content["withheld_for"]["near a training patient"] == 24


def test_calibrate_makes_a_site_that_anonymize_takes(made: Path, tmp_path: Path) -> None:
    """The same as the library makes of the same people; a closed set holds nobody out."""
    parts = {"training": training().images, "test": toys(150, 2)}
    content: dict = {"validation": [], "classes": ["absent", "present"]}
    for part, images in parts.items():
        content[part] = []
        for number, pixels in enumerate(images):
            name, each = f"{part}_{number}.png", 2 if part == "training" else 1
            Image.fromarray(pixels[0].numpy()).save(tmp_path / name)
            content[part].append({"image": name, "patient": f"{part} {number // each:03}", "finding": number % 2})
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    given = ["calibrate", tmp_path / "site", "--bundle", made / "bundle", "--judges", made / "judges", "--rate", 0.02]
    planned = call(*given, "--manifest", tmp_path, "--dry-run")
    assert planned.exit_code == 0 and planned.stdout.count("would write") == 5 and not (tmp_path / "site").exists()
    result = call(*given, "--manifest", tmp_path)
    assert result.exit_code == 0, result.output
    for name in SITE_FILES:
        assert (tmp_path / "site" / name).read_bytes() == (made / "site" / name).read_bytes()
        assert "calibration" in name or (tmp_path / "site" / name).stat().st_mode & 0o77 == 0
    assert "300 training" not in result.stdout and "150 training patients" in result.stdout
    again = call(*given, "--manifest", tmp_path)
    assert again.exit_code == 2 and "--overwrite replaces" in again.stderr
    own = [*given[:4], "--judges", tmp_path / "site", "--rate", 0.03]
    renewed = call(*own, "--manifest", tmp_path, "--overwrite")  # with the judges that the folder holds
    assert renewed.exit_code == 0, renewed.output
    assert (tmp_path / "site" / "judges.safetensors").read_bytes() == (made / "judges").read_bytes()
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"closed_set": True}))
    closed = call(*given, "--manifest", tmp_path, "--overwrite")
    assert closed.exit_code == 2 and "is a closed set" in closed.stderr and "--strangers" in closed.stderr
    few = call(*given[:-1], 0.01, "--manifest", tmp_path, "--strangers", tmp_path, "--overwrite")
    assert few.exit_code == 2 and "150 people are held out" in few.stderr


# ---- pseudonyms ----


def alike(out: Path, first: str, second: str) -> bool:
    """Whether two copies of one finding show one identity, up to the rounding of pixels."""
    return float(identity(out / first) @ identity(out / second)) > 0.99


def pairs(out: Path, same: bool) -> list[tuple[str, str]]:
    """Pairs of copies that show one finding, of one patient or of two."""
    names = list(copies(out))
    return [
        (a, b)
        for at, a in enumerate(names)
        for b in names[at + 1 :]
        if (int(a[:2]) // 3 == int(b[:2]) // 3) == same
        and (medical(out / a).mean() > 1.5) == (medical(out / b).mean() > 1.5)
    ]


def test_with_a_key_a_patient_has_one_identity_and_another_key_gives_another(
    made: Path, tmp_path: Path, released
) -> None:
    out, _ = released
    assert len(pairs(out, True)) > 3 and all(alike(out, *pair) for pair in pairs(out, True))
    assert not any(alike(out, *pair) for pair in pairs(out, False))
    (tmp_path / "key").write_text("0b" * 32)
    (tmp_path / "key").chmod(0o600)
    given = words(made, tmp_path / "other", key=False)
    call(*given, "--key", tmp_path / "key", "--patients", made / "patients.csv")
    both = copies(out).keys() & copies(tmp_path / "other").keys()
    assert both and all(float(identity(out / name) @ identity(tmp_path / "other" / name)) < 0.9 for name in both)
    assert all(alike(tmp_path / "other", *pair) for pair in pairs(tmp_path / "other", True))


def test_without_a_key_each_image_has_its_own(made: Path, tmp_path: Path) -> None:
    anonymize(made, tmp_path / "out", key=False)
    assert not any(alike(tmp_path / "out", *pair) for pair in pairs(tmp_path / "out", True))
    content = certificate(tmp_path / "out")
    assert content["identities"]["one_for_each"] == "image" and content["identities"]["patients_known_from"] is None
    assert [row["images"] for row in content["bound"]["pseudonyms"]] == [1]
    refused = call(*words(made, tmp_path / "o", key=False), "--patients", made / "patients.csv")
    assert refused.exit_code == 2 and "--patients needs --key" in refused.stderr


def test_what_becomes_of_an_image_does_not_hang_on_others_of_its_patient(made: Path, tmp_path: Path, released) -> None:
    """Else the bits of a pseudonym would not just add up: the second image of each patient, without the first one."""
    whole, alone = copies(released[0]), ["01", "04", "07", "10", "13", "16", "19", "22"]
    given = words(made, tmp_path / "out")
    given[1:2] = [str(made / "in" / f"{name}.png") for name in alone]
    call(*given, "--batch-size", "3")
    assert copies(tmp_path / "out") == {f"{name}.png": whole[f"{name}.png"] for name in alone if f"{name}.png" in whole}


def test_images_beyond_the_most_of_a_patient_are_withheld(made: Path, tmp_path: Path, released) -> None:
    result = anonymize(made, tmp_path / "out", "--most-images-per-patient", 2)
    content = certificate(tmp_path / "out")
    assert content["counts"]["withheld_beyond_most_images"] == 8 and content["identities"]["most_images"] == 2
    assert [(row["images"], row["pseudonyms"]) for row in content["bound"]["pseudonyms"]] == [(2, 8)]
    assert result.stderr.count("more images of a patient") == 8
    first = {name: content for name, content in copies(released[0]).items() if int(name[:2]) % 3 < 2}
    assert copies(tmp_path / "out") == first


def test_folders_tell_patients_and_what_lies_in_none_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "in" / "PLANTQ").mkdir(parents=True)
    for name, place in (("00", "PLANTQ"), ("02", "PLANTQ"), ("04", ".")):
        (tmp_path / "in" / place / f"{name}.png").write_bytes((made / "in" / f"{name}.png").read_bytes())
    given = words(made, tmp_path / "out", gate=False, key=False)
    given[1] = str(tmp_path / "in")
    result = call(*given, "--key", made / "key", "--patients", "folders", "--names", "keyed")
    assert result.exit_code == 1 and "it lies in no folder below INPUT" in result.stderr
    assert [row["images"] for row in certificate(tmp_path / "out")["bound"]["pseudonyms"]] == [2]
    assert "PLANTQ" not in result.output.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("picture,patient\n", "has no column image"),
        ("image,patient\nin/00.png,\n", "line 2 lacks an image or a patient"),
        ("image,patient\nin/00.png,PLANTQ a\nin/00.png,PLANTQ b\n", "line 3 names another patient"),
        (None, "No such file"),
    ],
)
def test_a_table_of_patients_that_cannot_be_used_is_refused(made: Path, tmp_path: Path, table, message: str) -> None:
    if table is not None:
        (tmp_path / "t.csv").write_text(table)
    given = words(made, tmp_path / "out", key=False)
    result = call(*given, "--key", made / "key", "--patients", tmp_path / "t.csv")
    assert result.exit_code == 2 and message in result.stderr and "PLANTQ" not in result.stderr
    assert not (tmp_path / "out").exists()


# ---- stopped runs, faults ----


def same_release(first: Path, second: Path) -> None:
    assert copies(first) == copies(second)
    assert sorted(map(json.dumps, statements(first))) == sorted(map(json.dumps, statements(second)))
    assert certificate(first) | {"date": ""} == certificate(second) | {"date": ""}
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


def program(*given: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests" / "toy_release.py"), *given]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_half_copy_and_goes_on_to_the_same(made: Path, tmp_path: Path, released) -> None:
    out, whole = tmp_path / "out", released[0]
    given = words(made, out, "--batch-size", 4)
    killed = subprocess.run(program("--kill-at", "6", *given), check=False, env=ENVIRONMENT, capture_output=True)
    assert killed.returncode == -9
    partly = copies(out)
    assert 0 < len(partly) < len(copies(whole)) and not (out / "certificate.json").exists()
    assert all(copies(whole)[name] == content for name, content in partly.items())
    assert list(out.glob(".*.part"))  # the draft of the copy that was being written
    assert call(*given).exit_code == 2
    result = anonymize(made, out, "--continue", "--batch-size", 5)
    assert result.exit_code == 1 and " were there already" in result.stdout
    same_release(out, whole)
    kept = {name: (out / name).stat().st_mtime_ns for name in copies(out)}
    again = anonymize(made, out, "--continue")
    assert again.exit_code == 1 and {name: (out / name).stat().st_mtime_ns for name in copies(out)} == kept
    same_release(out, whole)


def test_going_on_needs_the_draws_of_before(made: Path, tmp_path: Path) -> None:
    result = anonymize(made, tmp_path / "out", "--continue", key=False)
    assert result.exit_code == 2 and "--continue through the gate needs the run's --key" in result.stderr
    result = anonymize(made, tmp_path / "out", "--continue", "--seed", 1, "--epsilon", 1, key=False)
    assert result.exit_code == 2 and "--continue through the gate needs the run's --key" in result.stderr


def test_a_disk_that_is_full_or_read_only_costs_copies_and_no_more(
    made: Path, tmp_path: Path, monkeypatch, released
) -> None:
    out, written = tmp_path / "out", []

    def failing(path: Path, *rest) -> Path:
        written.append(path)
        if len(written) > 4:
            error = (28, "No space left on device") if len(written) % 2 else (30, "Read-only file system")
            raise OSError(*error)
        return write(path, *rest)

    write = release.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(release, "write_bytes", failing)
        result = anonymize(made, out, "--batch-size", 3)
    assert result.exit_code == 1 and len(copies(out)) == 4
    assert "cannot be written (No space left on device)" in result.stderr and "(Read-only file system)" in result.stderr
    assert certificate(out)["counts"]["released"] == 4
    assert anonymize(made, out, "--continue").exit_code == 1
    same_release(out, released[0])


def test_where_statements_cannot_be_written_there_is_no_certificate(made: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monai_anon.statements.append_statements", full)
    result = anonymize(made, tmp_path / "out")
    assert result.exit_code == 2 and "No space left" in result.stderr
    assert not (tmp_path / "out" / "certificate.json").exists()


def test_what_is_replaced_does_not_outlive_its_refusal(made: Path, tmp_path: Path, released) -> None:
    """A copy of an earlier run without a gate must not stand where the gate withholds its image."""
    out = tmp_path / "out"
    assert anonymize(made, out, gate=False).exit_code == 0 and len(copies(out)) == 24
    refused = anonymize(made, out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert anonymize(made, out, "--overwrite").exit_code == 1
    same_release(out, released[0])


def test_a_single_copy_that_is_withheld_leaves_none_of_before(made: Path, tmp_path: Path, released) -> None:
    withheld = next(path for path in sorted((made / "in").iterdir()) if path.name not in copies(released[0]))
    target = tmp_path / withheld.name
    target.write_text("a copy of before")
    given = words(made, target, "--overwrite")
    given[1] = str(withheld)
    assert call(*given).exit_code == 1 and not target.exists()


@pytest.mark.slow
def test_several_processes_make_the_release_of_one(made: Path, tmp_path: Path, released) -> None:
    out = tmp_path / "out"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = start + program("--blind", *words(made, out))[1:]  # the first one decides for all whose images there are
    ended = subprocess.run(command, check=False, env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True)
    said = ended.stdout.decode()
    assert ended.returncode == 1 and said.count("of 24 images to") == 1, ended.stderr.decode()[-3000:]
    same_release(out, released[0])


# ---- what stays on site ----


def test_distances_to_originals_are_kept_for_the_site_alone(made: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    anonymize(made, tmp_path / "out", "--site-record", record)
    assert record.stat().st_mode & 0o777 == 0o600
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(rows) == 24 and all(set(row["likeness_to_training"]) == {"model", "verifier"} for row in rows)
    assert any(row["likeness_to_original"] for row in rows) and {row["released"] for row in rows} == {True, False}
    for inside in (tmp_path / "out" / "record", tmp_path / "out" / "deep" / "record"):
        result = anonymize(made, tmp_path / "out", "--overwrite", "--site-record", inside)
        assert result.exit_code == 2 and "lies in OUTPUT" in result.stderr
    again = anonymize(made, tmp_path / "new", "--site-record", record)
    assert again.exit_code == 2 and "exists already" in again.stderr
    assert anonymize(made, tmp_path / "new", "--site-record", record, "--overwrite").exit_code == 1
    table = tmp_path / "patients.csv"
    table.write_text("image,patient\n")
    other = anonymize(made, tmp_path / "new", "--site-record", table, "--overwrite")
    assert other.exit_code == 2 and "no record of before" in other.stderr and table.read_text() == "image,patient\n"


def test_randomised_responses_cost_epsilon_an_image_and_are_the_same_with_a_key(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        anonymize(made, tmp_path / name, "--epsilon", 1)
    same_release(tmp_path / "a", tmp_path / "b")
    content = certificate(tmp_path / "a")
    assert content["gate"]["comparison_with_original"] == "off" and content["bound"]["bits_an_image"] == 3
    assert content["bound"]["pseudonyms"] == [{"images": 3, "pseudonyms": 8, "bits": 9, "epsilon": 3}]
    before = {name: medical(made / "in" / name) for name in copies(tmp_path / "a")}
    changed = [(medical(tmp_path / "a" / name).mean() > 1.5) != (mean.mean() > 1.5) for name, mean in before.items()]
    assert any(changed)


def test_dry_run_with_a_gate_writes_nothing(made: Path, tmp_path: Path) -> None:
    result = anonymize(made, tmp_path / "out", "--dry-run")
    assert result.exit_code == 0 and result.stdout.count("would read") == 25 and not (tmp_path / "out").exists()
