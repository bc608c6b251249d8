"""`explain` and `counterfactual` with the shipped model on generated people: what is written, and what is not."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from monai_anon.__main__ import app
from monai_anon.bundles import load_anonymizer
from monai_anon.evaluation.judges import Judges
from monai_anon.explaining.cases import encode_archive, read_cohorts, retrieve
from monai_anon.explaining.counterfactuals import UncheckedGate, other_finding, passing, responses
from monai_anon.gate import CALIBRATION
from monai_anon.manifest import load_manifest
from monai_anon.phantoms import chest, load_phantom
from monai_anon.readers import to_model_range, to_uint8
from monai_anon.site import People, make_site

ROOT = Path(__file__).parent.parent
BUNDLE = ROOT / "bundles" / "chest"
SIZE, K = 64, 3


def call(*words):
    result = CliRunner().invoke(app, [*map(str, words), *(["--bundle", str(BUNDLE)] if words[0] != "phantom" else [])])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def written(page):
    """The PNG files of a page, as arrays."""
    found = re.findall(r'data:image/png;base64,([^"]+)', page.read_text(encoding="utf-8"))
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


@pytest.fixture(scope="module")
def network():
    return load_anonymizer(BUNDLE)[0]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "clinic"
    load_phantom("chest").write_cohort(folder, 7, SIZE, (90, 2, 12), (30, 1, 5))
    return folder


@pytest.fixture(scope="module")
def strangers():
    """Images of people who are in no cohort: (120, 1, 64, 64) uint8, and who they are."""
    factors = chest.sample_factors(99, images=(120, 2, 2), patients=(60, 1, 1))
    factors = factors[factors["part"] == "training"]
    images = torch.from_numpy(chest.render(factors, SIZE)[:, None])
    return images, torch.from_numpy(np.unique(factors["patient"], return_inverse=True)[1])


class Judging(Judges):
    """Stands for judges: tells people by the coarse picture, and the finding as the model does."""

    def __init__(self, network):
        super().__init__(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), ["absent", "effusion"], [])
        self.network = network

    def embed(self, images, batch_size=256):
        return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1).numpy()

    @torch.no_grad()
    def read(self, images, batch_size=256):
        medical = self.network.disentangler.encode(images).medical
        return (
            self.network.disentangler.classify(medical).softmax(1).numpy(),
            np.zeros((len(images), 0)),
            np.zeros(len(images)),
        )


@pytest.fixture(scope="module", autouse=True)
def judges(tmp_path_factory, network):
    """A file that is read as judges of the shipped model."""
    file = tmp_path_factory.mktemp("judges") / "judges.safetensors"
    file.write_bytes(b"judges")

    def load(path, device="cpu"):
        if Path(path).read_bytes() != b"judges":
            raise ValueError("no judges")
        return Judging(network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judges, "load", load)
        yield file


@pytest.fixture(scope="module")
def site(tmp_path_factory, network, cohort, strangers, judges):
    """The gate of a clinic whose training patients are the cohort's."""
    folder = tmp_path_factory.mktemp("site")
    (training,) = read_cohorts(load_manifest(cohort), "training", SIZE, 1, None)
    make_site(folder, network, BUNDLE / "models" / "model.pt", judges, People(training, *strangers), 0.05, False, False)
    return folder


@pytest.fixture(scope="module")
def query(cohort):
    """An image with the finding, of the test part."""
    manifest = load_manifest(cohort)
    entry = next(entry for entry in manifest.parts["test"] if entry["finding"] == 1)
    return manifest.image_path(entry)


@pytest.fixture(scope="module")
def explained(tmp_path_factory, cohort, site, query):
    """Folders of an explanation without and with the query; what was printed of the first."""
    folders = [tmp_path_factory.mktemp("explained") / name for name in ("without", "with")]
    words = ("explain", query, "--cases", cohort, "-k", K, "--site", site, "--seed", 4)
    results = [call(*words, "--output", folders[0]), call(*words, "--output", folders[1], "--include-query")]
    assert [result.exit_code for result in results] == [0, 0], results[0].output + results[1].output
    return *folders, results[0].output


def test_folder_gets_a_page_and_a_record_that_fits_its_schema(explained):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "tests" / "schema" / "explanation.schema.json").read_text(encoding="utf-8"))
    for folder, included in zip(explained[:2], (False, True)):
        assert sorted(file.name for file in folder.iterdir()) == ["explanation.html", "explanation.json"]
        record = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        jsonschema.validate(record, schema)
        assert record["query"]["included"] is included and record["gate"]["used"] is True
        assert record["bits_of_a_case"] == 3.17 and record["bits_of_the_query"] == (None if included else 3.17)
        lists = [[case["finding"] for case in record["cases"] if case["list"] == name] for name in LISTS]
        assert lists == [[1] * K, [0] * K] and record["query"]["finding"] == 1
        assert record["query"]["counterfactual"]["finding"] == 0
    assert explained[1].joinpath("explanation.html").stat().st_mode & 0o077 == 0, "the person is for one reader"


LISTS = ("similar", "other finding")


def test_neither_file_nor_message_names_anybody_or_any_file(explained, cohort, query):
    manifest = load_manifest(cohort)
    names = {entry["patient"] for part in manifest.parts.values() for entry in part}
    names |= {Path(entry["image"]).stem for part in manifest.parts.values() for entry in part}
    names |= {query.name, str(cohort)}
    said = [file.read_text(encoding="utf-8") for folder in explained[:2] for file in folder.iterdir()]
    text = re.sub(r"base64,[^\"]+", "", "".join(said)) + explained[2]
    assert not [name for name in names if name in text]
    assert "its patient was left out" in explained[2]


# ---- no pixels of anybody ----


def centred(images, mean):
    """Images `(B, ...)` as unit vectors of what tells one chest from another: without brightness, nor however much of
    a mean image."""
    flat = np.asarray(images, dtype=np.float64).reshape(len(images), -1)
    shared = np.linalg.qr(np.stack([np.ones(flat.shape[1]), mean.ravel()], axis=1))[0]
    flat -= flat @ shared @ shared.T
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def likeness(network, cohort, strangers):
    """How like its nearest original an image is (about the mean image), and from which likeness on it counts as a copy:
    half-way between the likest stranger, as he is or reconstructed, and half of the cohort's own reconstructions."""
    originals = torch.cat([part.images for part in read_cohorts(load_manifest(cohort), "all", SIZE, 1, None)])
    mean = originals.double().mean(0)[0].numpy()
    known = centred(originals[:, 0], mean)

    def measure(images):
        return (centred(images, mean) @ known.T).max(axis=1)

    with torch.no_grad():
        again = {
            name: to_uint8(network.disentangler(to_model_range(images)))[:, 0]
            for name, images in (("strangers", strangers[0]), ("own", originals))
        }
    unlike = max(measure(strangers[0][:, 0]).max(), measure(again["strangers"]).max())
    own = (centred(again["own"], mean) * known).sum(axis=1)
    return measure, (unlike + np.median(own)) / 2, own, originals


def gray(pictures):
    return [picture if picture.ndim == 2 else picture.mean(axis=2) for picture in pictures]


def copies(pictures, likeness):
    measure, limit, _, originals = likeness
    same = {original[0].numpy().tobytes() for original in originals}
    return [
        number
        for number, picture in enumerate(gray(pictures))
        if np.asarray(picture, dtype=np.uint8).tobytes() in same or measure(picture[None])[0] >= limit
    ]


def test_no_picture_of_the_page_is_a_copy_of_anybody(explained, likeness):
    pictures = written(explained[0] / "explanation.html")
    assert len(pictures) == 3 + 2 * K and all(picture.shape[:2] == (SIZE, SIZE) for picture in pictures)
    assert copies(pictures, likeness) == []


def test_the_query_and_its_reconstruction_are_there_only_where_asked_for(explained, likeness, query):
    pictures = written(explained[1] / "explanation.html")
    assert len(pictures) == 7 + 2 * K
    assert np.array_equal(pictures[0], np.asarray(Image.open(query)))
    assert set(copies(pictures, likeness)) >= {0, 1} and set(copies(pictures, likeness)) <= {0, 1, 2}
    assert "do not hand it over" in (explained[1] / "explanation.html").read_text(encoding="utf-8")
    assert "but the query&#39;s own passed" in (explained[1] / "explanation.html").read_text(encoding="utf-8")
    assert "do not hand it over" not in (explained[0] / "explanation.html").read_text(encoding="utf-8")


def test_a_planted_original_or_reconstruction_would_have_been_found(likeness):
    _, limit, own, originals = likeness
    planted = originals[3, 0].numpy()
    assert copies([planted], likeness) == [0]
    altered = np.clip(planted * 0.8 + 20 + np.random.default_rng(0).normal(0, 4, planted.shape), 0, 255)
    assert copies([altered.astype(np.uint8)], likeness) == [0], "nor does contrast or noise hide it"
    assert (own >= limit).mean() > 0.9


# ---- are they similar? ----


def test_similar_cases_have_the_querys_recorded_finding_and_others_have_not(network, cohort):
    manifest = load_manifest(cohort)
    archive, _ = encode_archive(network, manifest, read_cohorts(manifest, "training", SIZE, 1, None), progress=False)
    (tests,) = read_cohorts(manifest, "test", SIZE, 1, None)
    recorded, gate = archive.cohorts[0].finding.numpy(), UncheckedGate(network)
    agree, differ = [], []
    for row in range(len(tests)):
        with torch.no_grad():
            z, response = network.disentangler.encode(tests[row]["image"][None]), responses(network, 1)
            medical = passing(network, z, response)
            other = other_finding(network, z, medical, response)
        finding = int(gate.findings(medical).argmax(1))
        lists = retrieve(archive, medical, other, finding, np.random.default_rng(row), np.arange(len(recorded)))
        truth = int(tests.finding[row])
        agree.append((recorded[lists[0][:5]] == truth).mean())
        differ.append((recorded[lists[1][:5]] != truth).mean())
    assert np.mean(agree) >= 0.95 and np.mean(differ) >= 0.95


# ---- refusals ----


@pytest.fixture
def refused(cohort, query, tmp_path):
    """Calls a verb that must refuse, leaving nothing; gives what it said."""

    def run(*words, verb="explain", asked=query, cases=cohort, output="out"):
        more = ["--cases", cases] if verb == "explain" else []
        result = call(verb, asked, *more, "--output", tmp_path / output, *words)
        assert result.exit_code == 2, result.output
        assert not [file for file in tmp_path.rglob("*") if "explanation" in file.name or ".part" in file.name]
        assert not (tmp_path / output).exists()
        return result.output

    return run


def test_without_a_gate_nothing_is_shown_unless_none_is_wanted(refused, cohort, site, query, tmp_path):
    assert "no gate: give --site SITE" in refused()
    assert "--no-gate goes without" in refused("--site", tmp_path, "--no-gate")
    assert "has no judges, no gallery to compare with" in refused("--site", tmp_path)
    half = shutil.copytree(site, tmp_path / "half")
    (half / "judges.safetensors").unlink()
    assert "has no judges" in refused("--site", half)
    result = call("explain", query, "--cases", cohort, "-k", 1, "--no-gate", "--output", tmp_path / "open")
    assert result.exit_code == 0 and "NO GATE" in result.output
    record = json.loads((tmp_path / "open" / "explanation.json").read_text(encoding="utf-8"))
    assert record["gate"] == {"used": False, "judges": False, "original": "off"} and record["bits_of_a_case"] == 3.0
    assert "NO GATE" in (tmp_path / "open" / "explanation.html").read_text(encoding="utf-8")


def test_bad_queries_are_refused_without_their_names(refused, tmp_path):
    Image.new("L", (40, 40), 9).save(tmp_path / "Doe_John.png")
    (tmp_path / "Doe_Jane.png").write_bytes(b"no picture")
    (tmp_path / "Doe.txt").write_text("x")
    for name, words in {
        "Doe_Jack.png": "no such file",
        "Doe_John.png": "is constant",
        "Doe_Jane.png": "cannot be used: cannot be decoded",
        "Doe.txt": "must be one PNG",
        ".": "must be one PNG",
    }.items():
        said = refused("--no-gate", asked=tmp_path / name)
        assert words in said and "Doe" not in said


def test_archives_that_cannot_answer_are_refused(refused, cohort, tmp_path):
    assert "patients could be shown as cases of effusion, and 40 are asked for" in refused("--no-gate", "-k", 40)
    assert "--part is 'all of it'" in refused("--no-gate", "--part", "all of it")
    empty = {"classes": ["absent", "effusion"], "training": [], "validation": [], "test": []}
    (tmp_path / "manifest.json").write_text(json.dumps(empty), encoding="utf-8")
    assert "all parts are empty" in refused("--no-gate", cases=tmp_path / "manifest.json")
    assert "manifest" in refused("--no-gate", cases=tmp_path / "nowhere")


def test_where_everything_is_withheld_nothing_is_written(refused, site, tmp_path):
    strict = tmp_path / "site"
    shutil.copytree(site, strict)
    file = strict / CALIBRATION.format("model")
    values = json.loads(file.read_text(encoding="utf-8"))
    values["training"]["similarity"] = -1.0
    file.write_text(json.dumps(values), encoding="utf-8")
    assert "near a training patient" in refused("--site", strict)
    assert "near a training patient" in refused("--site", strict, verb="counterfactual", output="out.png")


def test_what_stands_there_is_not_replaced_unasked(explained, cohort, query, tmp_path):
    words = ("explain", query, "--cases", cohort, "-k", 1, "--no-gate", "--output")
    before = (explained[0] / "explanation.json").read_bytes()
    result = call(*words, explained[0])
    assert result.exit_code == 2 and "--overwrite" in result.output
    assert (explained[0] / "explanation.json").read_bytes() == before
    (tmp_path / "other.txt").write_text("mine")
    assert call(*words, tmp_path, "--overwrite").exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["other.txt"]


def test_a_dry_run_writes_nothing(cohort, query, tmp_path):
    result = call("explain", query, "--cases", cohort, "--no-gate", "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0 and "would write" in result.output and list(tmp_path.iterdir()) == []


# ---- counterfactual ----


def test_a_series_is_one_picture_of_pixels_only(site, query, tmp_path, likeness):
    file = tmp_path / "series.png"
    result = call("counterfactual", query, "--site", site, "--steps", 4, "--seed", 1, "--output", file)
    assert result.exit_code == 0 and "finding 1, counterfactual finding 0, 4 images" in result.output
    with Image.open(file) as picture:
        assert picture.info == {} and picture.size == (8 + 5 * 200, 40 + 192 + 52)
        sheet = np.asarray(picture)[40:232]
    images = [sheet[::3, 8 + 200 * n : 200 + 200 * n : 3] for n in range(4)]
    assert copies(images, likeness) == []
    assert call("counterfactual", query, "--site", site, "--output", file).exit_code == 2, "it stands there"


def test_the_persons_own_series_is_marked_private_and_never_through_a_gate(refused, site, query, tmp_path, likeness):
    said = refused("--keep-identity", "--site", site, verb="counterfactual", output="own.png")
    assert "gate of --site is there to refuse" in said
    assert "--steps is 1" in refused("--no-gate", "--steps", 1, verb="counterfactual", output="own.png")
    assert "must be a file name that ends in .png" in refused("--no-gate", verb="counterfactual", output="own")
    assert "no gate" in refused(verb="counterfactual", output="own.png")
    file = tmp_path / "own.png"
    result = call("counterfactual", query, "--keep-identity", "--output", file)
    assert result.exit_code == 0 and "do not share it" in result.output and file.stat().st_mode & 0o077 == 0
    sheet = np.asarray(Image.open(file))
    assert (sheet[:24] == (150, 30, 0)).all(axis=2).sum() > 200, "marked in red"
    assert copies([sheet[64:256:3, 8:200:3]], likeness) == [0], "it is the person"


# ---- in a browser ----

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver")
def test_the_page_opens_complete_and_quiet_in_light_dark_and_on_a_phone(explained, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        for folder, pictures in zip(explained[:2], (3 + 2 * K, 7 + 2 * K)):
            colours = []
            for scheme, width in (("light", 1200), ("dark", 1200), ("light", 360)):
                size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                driver.get((folder / "explanation.html").as_uri())
                assert driver.get_log("browser") == []
                names = "return performance.getEntriesByType('resource').map(e => e.name)"
                assert [name for name in driver.execute_script(names) if not name.startswith("data:")] == []
                widths = "return [...document.images].map(i => i.complete ? i.naturalWidth : 0)"
                assert driver.execute_script(widths) == [SIZE] * pictures
                assert driver.execute_script("return [...document.images].every(i => i.alt.length > 10)")
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width
                assert driver.execute_script("return document.scripts.length") == 0
                colours.append(driver.execute_script("return getComputedStyle(document.body).backgroundColor"))
            assert colours[0] != colours[1]
    finally:
        driver.quit()
