"""The verbs from end to end: what they write, what they print, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_bundle import write_bundle
from typer.testing import CliRunner, Result

from monai_anon import __version__
from monai_anon.__main__ import app
from monai_anon.evaluation.judges import JudgeSchedule, judges_for
from monai_anon.manifest import load_manifest
from monai_anon.phantoms.sizes import part_sizes

PAPER = ((6000, 200, 300), (1791, 84, 130))


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated cohort of 24 images."""
    out = tmp_path_factory.mktemp("cohort") / "chest"
    result = call("phantom", "chest", out, "--images", "8,8,8", "--patients", "3,3,3", "--size", 40, "--seed", 4)
    assert result.exit_code == 0, result.output
    return out


# ---- the command ----


def test_version_and_help_need_no_heavy_module() -> None:
    assert call("--version").stdout == f"monai-anon {__version__}\n"
    code = "import sys, monai_anon.__main__; sys.exit(bool({'torch', 'monai', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "verb",
    [
        ["phantom", "chest"],
        ["judges"],
        ["evaluate"],
        ["report"],
        ["ablation"],
        ["anonymize"],
        ["calibrate"],
        ["explain"],
        ["counterfactual"],
    ],
)
def test_the_help_of_every_verb_has_an_example(verb: list[str]) -> None:
    result = call(*verb, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    monai-anon {' '.join(verb)} " in result.stdout


def test_bad_usage_ends_with_2() -> None:
    assert call("anonymise").exit_code == 2
    assert call("anonymize", "x.png").exit_code == 2
    assert call("phantom", "chest", "out", "--sized", "3").exit_code == 2


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    words = ("anonymize", tmp_path / "absent.png", tmp_path / "out")
    plain = call(*words)
    assert plain.exit_code == 2 and isinstance(plain.exception, SystemExit)
    assert plain.stderr == f"Error: nothing was written: {tmp_path}/absent.png: no such file or folder\n"
    for debug in (("--debug", *words), (*words, "--debug")):
        assert type(call(*debug).exception).__name__ == "PlanError"
    assert "--debug: no such file" in call("anonymize", "--", "--debug", tmp_path).stderr


# ---- phantom ----


def test_phantom_chest_writes_the_cohort_that_was_asked_for(cohort: Path) -> None:
    manifest = load_manifest(cohort)
    assert {part: len(entries) for part, entries in manifest.parts.items()} == {
        "training": 8, "validation": 8, "test": 8
    }  # fmt: skip
    assert (cohort / "factors.csv").is_file() and len(list((cohort / "images").glob("*.png"))) == 24
    assert manifest.extra["phantom"] | {"seed": 4, "size": 40} == manifest.extra["phantom"]


def test_phantom_chest_replaces_nothing_unless_asked(cohort: Path, tmp_path: Path) -> None:
    assert call("phantom", "chest", cohort).exit_code == 2
    options = ("--images", "6,4,4", "--patients", "3,2,2", "--size", "32", "--difficulty", "1")
    assert call("phantom", "chest", tmp_path / "c", *options, "--dry-run").exit_code == 0
    assert list(tmp_path.iterdir()) == []
    for overwrite in ((), ("--overwrite",)):
        assert call("phantom", "chest", tmp_path / "c", *options, *overwrite).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "5,x,5"), "give three whole numbers, training,validation,test"),
        (("--images", "5,5"), "give three whole numbers"),
        (("--patients", "-1"), "give three whole numbers"),
        (("--images", "10,10,10", "--patients", "9,3,3"), "training: 10 images of 9 patients cannot be made"),
        (("--size", "8"), "size"),
        (("--difficulty", "2"), "difficulty is 2"),
        (("--protocol", "closed"), "protocol 'closed': chest phantoms have disjoint"),
    ],
)
def test_phantom_chest_refuses_settings_in_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    for dry_run in ((), ("--dry-run",)):
        result = call("phantom", "chest", tmp_path / "c", *options, *dry_run)
        assert result.exit_code == 2
        assert message in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_phantom_iris_is_a_closed_set_unless_people_are_to_be_apart(tmp_path: Path) -> None:
    words = ("phantom", "iris", tmp_path / "iris", "--images", "9,3,3", "--patients", "3", "--size", "32")
    closed, disjoint = call(*words), call(*words, "--protocol", "disjoint", "--overwrite")
    assert "15 images (32 x 32) of the same 3 patients, as (9, 3, 3) of (3, 3, 3)" in closed.stdout
    assert "15 images (32 x 32) of 9 patients, as (9, 3, 3) of (3, 3, 3)" in disjoint.stdout
    assert load_manifest(tmp_path / "iris").extra["phantom"]["protocol"] == "disjoint"


def test_phantom_face_has_backgrounds_where_asked_for(tmp_path: Path) -> None:
    words = ("phantom", "face", tmp_path / "face", "--images", "9,4,4", "--patients", "3,2,2", "--size", "32")
    for options, protocol in (((), "masked"), (("--protocol", "scenes", "--overwrite"), "scenes")):
        assert "17 images (32 x 32) of 7 patients, as (9, 4, 4) of (3, 2, 2)" in call(*words, *options).stdout
        manifest = load_manifest(tmp_path / "face")
        assert manifest.extra["phantom"]["protocol"] == protocol
        image = Image.open(manifest.image_path(manifest.parts["training"][0]))
        assert image.mode == "RGB" and (image.getpixel((0, 0)) == (128, 128, 128)) == (protocol == "masked")


def test_an_unknown_phantom_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    result = call("phantom", "cheste", tmp_path / "c")
    assert result.exit_code == 2 and "generated cohort 'cheste'; known are chest" in result.stderr


def test_sizes_left_out_keep_the_papers_proportions() -> None:
    assert part_sizes(None, None, PAPER) == PAPER
    assert part_sizes("6000,200,300", None, PAPER) == part_sizes("6000", None, PAPER) == PAPER
    assert part_sizes(None, "1791,84,130", PAPER) == PAPER
    assert part_sizes("600", None, PAPER) == ((600, 20, 30), (179, 8, 13))
    assert part_sizes("60", "20", PAPER) == ((60, 8, 8), (20, 3, 3))
    assert part_sizes("40,0,9", "20,0,4", PAPER) == ((40, 0, 9), (20, 0, 4))


def test_sizes_left_out_can_always_be_made() -> None:
    for count in (2, 3, 5, 11, 23, 100, 1234, 20000):
        for images, people in (part_sizes(str(count), None, PAPER), part_sizes(None, str(count), PAPER)):
            assert all(2 * p <= i <= 11 * p for i, p in zip(images, people)), (count, images, people)


# ---- anonymize ----


def test_anonymize_copies_a_manifests_folder_without_the_manifest(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    result = call(
        "anonymize", "--no-gate", cohort, tmp_path / "out", "--bundle", bundle, "--seed", 1, "--batch-size", 5
    )
    assert result.exit_code == 0, result.output
    made = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file())
    originals = sorted(path.relative_to(cohort) for path in (cohort / "images").iterdir())
    assert made == [Path("certificate.html"), Path("certificate.json"), *originals, Path("statements.jsonl")]
    for name in originals:
        copy, original = (np.asarray(Image.open(folder / name)) for folder in (tmp_path / "out", cohort))
        assert copy.shape == original.shape == (40, 40) and copy.dtype == np.uint8
        assert (copy != original).mean() > 0.5
    assert "wrote 24 of 24 images" in result.stdout
    assert "left out: 2 file(s)" in result.stderr


def test_the_same_seed_gives_the_same_bytes_and_is_not_shown(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    image = sorted((cohort / "images").iterdir())[0]
    for name, seed in (("a", ("--seed", 123456789)), ("b", ("--seed", 123456789)), ("c", ()), ("d", ())):
        result = call("anonymize", "--no-gate", image, tmp_path / f"{name}.png", "--bundle", bundle, *seed)
        assert result.exit_code == 0 and "123456789" not in result.output
    a, b, c, d = ((tmp_path / f"{name}.png").read_bytes() for name in "abcd")
    assert a == b and len({a, c, d}) == 3


def test_dry_run_prints_what_would_be_done_and_writes_nothing(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    result = call("anonymize", "--no-gate", cohort, tmp_path / "out", "--bundle", bundle, "--dry-run")
    assert result.exit_code == 0 and list(tmp_path.iterdir()) == []
    image = sorted((cohort / "images").iterdir())[0]
    assert f"would read {image} and write {tmp_path / 'out' / 'images' / image.name}\n" in result.stdout
    assert result.stdout.count("would read") == 25


def test_nothing_is_overwritten_unless_asked(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    image = sorted((cohort / "images").iterdir())[0]
    (tmp_path / image.name).write_text("mine")
    words = ("anonymize", "--no-gate", cohort / "images", tmp_path, "--bundle", bundle)
    result = call(*words)
    assert result.exit_code == 2 and f"{image.name} exists already" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    assert call(*words, "--overwrite").exit_code == 0
    assert len(list(tmp_path.glob("*.png"))) == 24 and Image.open(tmp_path / image.name).size == (40, 40)


def test_where_output_or_the_sites_record_cannot_be_written_nothing_is_made_or_taken_away(
    cohort: Path, bundle: Path, tmp_path: Path
) -> None:
    image, mine = sorted((cohort / "images").iterdir())[0], tmp_path / "mine"
    mine.write_text("mine")
    words = ("anonymize", "--no-gate", "--bundle", bundle, image)
    result = call(*words, mine / "out", "--key", tmp_path / "key", "--make-key")
    assert result.exit_code == 2 and f"OUTPUT cannot be made: {mine} is no folder" in result.stderr
    assert not (tmp_path / "key").exists()
    assert call(*words, tmp_path / "out").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for record, reason in (
        (tmp_path, "is a folder"),
        (image, "or in INPUT"),
        (mine / "record", f"--site-record cannot be made: {mine} is no folder"),
    ):
        result = call(*words, tmp_path / "out", "--overwrite", "--site-record", record)
        assert result.exit_code == 2 and reason in result.stderr
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert Image.open(image).size == (40, 40)


@pytest.mark.parametrize(
    "words",
    [
        ("counterfactual", "x.png", "--no-gate", "--output", "FILE/x.png"),
        ("explain", "x.png", "--no-gate", "--cases", "x", "--output", "FILE/x"),
        ("export", "--format", "torchscript", "--output", "FILE"),
        ("calibrate", "FILE/x", "--judges", "x"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("mine")
    result = call(*(word.replace("FILE", str(tmp_path / "file")) for word in words), "--bundle", tmp_path / "absent")
    assert result.exit_code == 2 and f"cannot be made: {tmp_path / 'file'} is no folder" in result.stderr
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_calibrate_refuses_a_rate_or_a_place_before_it_reads_an_image(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "judges.safetensors").write_text("theirs")
    for site, rate, reason in (
        ("new", "0", "rate is 0.0; it must be above 0 and below 0.5"),
        ("file", "0.01", "which is no folder"),
        ("site", "0.01", "holds judges.safetensors already; --overwrite replaces them"),
    ):
        result = call("calibrate", tmp_path / site, "--judges", tmp_path, "--bundle", tmp_path, "--rate", rate)
        assert result.exit_code == 2 and reason in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "site"]


def test_where_files_have_numbers_a_refusal_says_how_to_see_their_paths(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "Doe  Jane.png").write_text("no picture")
    words = ("anonymize", "--no-gate", tmp_path / "Doe  Jane.png", tmp_path / "out", "--bundle", bundle)
    result = call(*words, "--names", "keyed")
    assert result.exit_code == 1 and "not anonymised: file 1 of 1: cannot be decoded" in result.stderr
    assert "--paths shows paths" in result.stderr and "Doe" not in result.output


def test_a_failure_in_part_ends_with_1_and_names_what_was_not_done(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    good = sorted((cohort / "images").iterdir())[0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.png").write_bytes(good.read_bytes())
    (tmp_path / "in" / "bad.png").write_text("Patient: somebody")
    (tmp_path / "in" / "link.png").symlink_to(good)
    result = call("anonymize", "--no-gate", tmp_path / "in", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 1
    assert "wrote 1 of 3 images" in result.stdout
    assert result.stderr.count("not anonymised: ") == 2
    assert "bad.png: cannot be decoded" in result.stderr and "link.png: a link that leads out" in result.stderr
    assert "somebody" not in result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("[!c]*")) == ["good.png", "statements.jsonl"]
    assert [row["image"] for row in statements(tmp_path / "out")] == ["good.png"]


def statements(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "statements.jsonl").read_text().splitlines()]


def test_every_copy_has_a_statement_of_what_it_may_say(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    images = sorted((cohort / "images").iterdir())[:3]
    for name, options, policy, bits, epsilon in (
        ("code", ("--policy", "code", "--prototypes", 4), "code", 2.0, None),
        ("noisy", ("--policy", "code", "--epsilon", 2), "code", 3.0, 2.0),
        ("residual", ("--policy", "residual"), "residual", None, None),
        ("latents", (), "latents", None, None),
    ):
        result = call(
            "anonymize", "--no-gate", *images, tmp_path / name, "--bundle", bundle, "--batch-size", 2, *options
        )
        assert result.exit_code == 0, result.output
        found = statements(tmp_path / name)
        assert [row["image"] for row in found] == [image.name for image in images]
        assert all(row["policy"] == policy and row["bits"] == bits and row["epsilon"] == epsilon for row in found)
        assert all((row["patients"] is None) == (bits is None) and row["patients"] != 0 for row in found)
        assert {row["form"] for row in found} == {"model" if bits else "original"}
        said = f"at most {bits:.2f} bits" if bits else "nothing bounds"
        assert f"policy {policy}: " in result.stdout and said in result.stdout


def test_the_originals_form_is_kept_under_a_code_only_if_asked_and_the_statement_says_so(
    cohort: Path, bundle: Path, tmp_path: Path
) -> None:
    with Image.open(next((cohort / "images").iterdir())) as image:
        image.resize((50, 40)).save(tmp_path / "a.png")
    for options, size, form in (((), None, "model"), (("--keep-form",), (50, 40), "original")):
        out = tmp_path / form
        result = call(
            "anonymize", "--no-gate", tmp_path / "a.png", out, "--bundle", bundle, "--policy", "code", *options
        )
        assert result.exit_code == 0, result.output
        with Image.open(out / "a.png") as copy:
            assert (copy.size == (50, 40)) == (size is not None)
        assert statements(out)[0]["form"] == form
        assert ("original's size, depth and mode" in result.stdout) == (form == "original")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "prototype"), "policy is 'prototype'; it must be one of latents, residual, code"),
        (("--prototypes", 5), "prototypes is 5; it must be one of 2, 4, 8, 16"),
        (("--policy", "code", "--epsilon", 0), "epsilon is 0.0; it must be a number above 0"),
        (("--policy", "latents", "--epsilon", 1), "goes with the policy code only"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(
    cohort: Path, bundle: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    result = call("anonymize", "--no-gate", cohort, tmp_path / "out", "--bundle", bundle, *options)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_the_bundle_or_the_device_is_told_before_any_work(
    cohort: Path, bundle: Path, tmp_path: Path
) -> None:
    for options, message in (
        (("--bundle", tmp_path), "has no configs/inference.json"),
        (("--bundle", bundle, "--model", tmp_path / "absent.pt"), "absent.pt is missing; train one with"),
        (("--bundle", bundle, "--device", "abacus"), "device 'abacus' cannot be used here"),
    ):
        result = call("anonymize", "--no-gate", cohort, tmp_path / "out", *options)
        assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


# ---- evaluate, report ----


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated cohort of 64 pixels, as the shipped model wants it."""
    out = tmp_path_factory.mktemp("people") / "chest"
    assert call("phantom", "chest", out, "--images", "12,6,9", "--patients", "4,2,3", "--size", 64).exit_code == 0
    return out


def test_without_a_verifier_that_knows_people_there_is_no_verdict_and_the_exit_code_says_so(
    people: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_anon.evaluation.judges.LEAST_VERIFIER_AUC", 1.1)
    quick = JudgeSchedule(verifier_steps=2, medical_steps=2, planes=(8, 8, 8, 8))
    monkeypatch.setattr(
        "monai_anon.evaluation.evaluation.judges_for", lambda *a, **k: judges_for(*a, **k | {"schedule": quick})
    )
    run, few = tmp_path / "run", ("--attacks", "static,linkage", "--content", "no", "--budget", 1, "--bootstrap", 5)
    where = ("--bundle", root / "bundles" / "chest", "--manifest", people, "--judges-dir", tmp_path / "judges")
    result = call("evaluate", *where, "--anonymizer", "monai_anon.baselines:Blur", "--output", run, *few)
    assert result.exit_code == 3, result.output
    assert "no verdict: the verifier's own AUC is" in result.stderr
    rows = (run / "rows.jsonl").read_text()
    assert '"metric": "static_auc", "value": null' in rows and '"method": "Blur"' in rows
    page = call("report", run, "--output", tmp_path / "page.html")
    assert page.exit_code == 3 and "no verdict" in page.stderr
    assert "no verdict" in (tmp_path / "page.html").read_text().lower()
    other = call("evaluate", *where, "--anonymizer", "monai_anon.baselines:Constant", "--output", run, *few)
    assert other.exit_code == 2 and "holds the run of 'Blur', not of 'Constant'" in other.stderr
    elsewhere = tmp_path / "elsewhere"
    assert call("phantom", "chest", elsewhere, "--images", "12,6,9", "--patients", "4,2,3", "--seed", 5).exit_code == 0
    where = ("--bundle", root / "bundles" / "chest", "--manifest", elsewhere, "--judges-dir", tmp_path / "judges")
    moved = call("evaluate", *where, "--anonymizer", "monai_anon.baselines:Blur", "--output", run, *few)
    assert moved.exit_code == 2 and "holds a run on another cohort" in moved.stderr


def test_evaluate_refuses_an_unknown_attack_and_plans_without_doing(people: Path, tmp_path: Path, root: Path) -> None:
    where = ("--bundle", root / "bundles" / "chest", "--manifest", people, "--output", tmp_path / "run")
    wrong = call("evaluate", *where, "--attacks", "telepathy")
    assert wrong.exit_code == 2 and "telepathy" in wrong.stderr and "static" in wrong.stderr
    nothing = call("evaluate", *where, "--attacks", ",")
    assert nothing.exit_code == 2 and "--attacks names nothing" in nothing.stderr
    planned = call("evaluate", *where, "--attacks", "static", "--content", "no", "--dry-run")
    assert planned.exit_code == 0 and "none: static" in planned.stdout and not (tmp_path / "run").exists()


def test_several_bundles_are_measured_in_one_run_each_into_its_own_folder(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Path, str]] = []

    class Told:
        def __init__(self, bundle: Path, settings: dict[str, object]) -> None:
            measured.append((bundle, str(settings["output_dir"])))
            self.note = "no verdict: too little" if bundle.name == "iris" else ""

        def run(self) -> list[Told]:
            return [self]

    monkeypatch.setattr("monai_anon.evaluation.evaluation.bundle_evaluation", Told)
    chest, iris = (root / "bundles" / name for name in ("chest", "iris"))
    result = call("evaluate", "--bundle", iris, "--bundle", chest, "--output", tmp_path)
    assert measured == [(iris, str(tmp_path / "iris")), (chest, str(tmp_path / "chest"))]
    assert result.exit_code == 3 and f"{iris}: no verdict" in result.stderr and str(chest) not in result.stderr
    one = call("evaluate", "--bundle", iris, "--bundle", chest, "--model", chest / "models" / "model.pt")
    assert one.exit_code == 2 and "--model is one bundle's, and --bundle names 2" in one.stderr
    twice = call("evaluate", "--bundle", iris, "--bundle", iris)
    assert twice.exit_code == 2 and "['iris', 'iris']" in twice.stderr and len(measured) == 2


def test_a_dry_run_makes_no_cohort(tmp_path: Path, root: Path) -> None:
    configs = tmp_path / "bundle" / "configs"
    configs.mkdir(parents=True)
    (configs / "evaluate.json").write_text((root / "bundles" / "chest" / "configs" / "evaluate.json").read_text())
    planned = call("evaluate", "--bundle", tmp_path / "bundle", "--dry-run")
    assert planned.exit_code == 0 and "the generated cohort, made where absent" in planned.stdout
    assert "code of 8: channel" in planned.stdout
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["bundle", "configs", "evaluate.json"]
    wrong = call("evaluate", "--bundle", tmp_path / "bundle", "--content", "magic", "--dry-run")
    assert wrong.exit_code == 2 and "content: unknown ['magic']" in wrong.stderr
