"""A folder of anybody's photographs, of all forms and sizes, becomes a cohort of one channel or of three."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from monai_anon.cohort import Cohort
from monai_anon.manifest import PARTS, load_manifest
from monai_anon.readers import LUMA, ReadError, fit_square, read_image
from monai_anon.release import read_original

SIZE = 32
QUARTER_TURN = 6  # EXIF: the camera was held upright, the rows of the file are columns of the picture
ORIENTATION = 0x0112


def scene(seed, height, width):
    """A picture (H, W, 3) in [0, 1]: a bright corner at the top left, colours that run across, somebody's own mark."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    own = np.random.default_rng(seed).uniform(0.2, 0.8, 3)
    picture = np.stack([own[0] * x, own[1] * y, own[2] * (1 - x)], -1)
    picture[: height // 4, : width // 4] = 1.0
    return picture


def write_colour(path, picture):
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(path, quality=95)


def write_turned(path, picture):
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER_TURN
    Image.fromarray(np.rint(np.rot90(picture) * 255).astype(np.uint8)).save(path, quality=95, exif=exif)


def write_gray(path, picture):
    Image.fromarray(np.rint(picture @ LUMA * 255).astype(np.uint8)).save(path)


def write_16_bit(path, picture):
    Image.fromarray(np.rint(picture @ LUMA * 65535).astype(np.uint16)).save(path)


def write_opaque(path, picture):
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).convert("RGBA").save(path)


def write_palette(path, picture):
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).quantize(256).save(path)


def write_with_preview(path, picture):
    pages = [Image.fromarray(np.rint(one * 255).astype(np.uint8)) for one in (picture, 1 - picture[::4, ::4])]
    pages[0].save(path, format="MPO", save_all=True, append_images=pages[1:], quality=95)


FORMS = {
    "colour.jpg": write_colour, "turned.jpg": write_turned, "gray.png": write_gray, "deep.png": write_16_bit,
    "opaque.png": write_opaque, "palette.png": write_palette, "preview.jpg": write_with_preview,
    "colour.tif": write_colour,
}  # fmt: skip
GRAY = ("gray.png", "deep.png")
SHAPES = ((48, 48), (72, 40), (40, 72), (131, 97))  # square, portrait, landscape, large and odd


@pytest.fixture
def photographs(tmp_path):
    """Every form in every shape, eight images of each of four people."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    rows = []
    for person, shape in enumerate(SHAPES):
        for number, (form, write) in enumerate(FORMS.items()):
            name = f"{person}_{form}"
            write(folder / name, scene(10 * person + number, *shape))
            rows.append([name, f"person {person}", number % 2])
    pd.DataFrame(rows, columns=["image", "who", "smile"]).to_csv(tmp_path / "data" / "labels.csv", index=False)
    return folder


@pytest.fixture
def prepare(script, tmp_path):
    def run(*options):
        words = ["--table", tmp_path / "data" / "labels.csv", "--patient-column", "who", "--finding-column", "smile"]
        words += ["--output", tmp_path / "out", "--fractions", "0.5,0.25,0.25", *options]
        return CliRunner().invoke(script("prepare_table"), [str(word) for word in words])

    return run


def cohort_of(folder, channels):
    """All images of a manifest by name, and whether it is a closed set."""
    manifest = load_manifest(folder)
    found = {}
    for part in PARTS:
        cohort = Cohort.from_manifest(manifest, part, SIZE, channels, progress=False)
        names = [entry["image"].rpartition("/")[2] for entry in cohort.entries]
        found |= dict(zip(names, cohort.images.float() / 255))
    return found, manifest.closed_set


@pytest.mark.parametrize(("channels", "options"), [(3, ["--channels", "3"]), (1, ["--to-gray"])])
def test_photographs_of_all_forms_and_shapes_are_read_upright_in_their_colours(prepare, photographs, channels, options):
    result = prepare("--closed-set", *options)
    assert result.exit_code == 0, result.output
    found, closed_set = cohort_of(photographs.parents[1] / "out", channels)
    assert closed_set and len(found) == len(SHAPES) * len(FORMS)
    for person, shape in enumerate(SHAPES):
        for number, form in enumerate(FORMS):
            picture = np.moveaxis(scene(10 * person + number, *shape), -1, 0)
            if channels == 1 or form in GRAY:
                picture = np.broadcast_to(np.tensordot(LUMA, picture, axes=1), (channels, *shape))
            expected = fit_square(picture.astype(np.float32), SIZE)
            image = found[f"{person}_{form}"].numpy()
            assert image.shape == expected.shape
            assert np.abs(image - expected).mean() < 0.02, (form, shape)


def test_colour_is_refused_for_one_channel_unless_it_is_to_be_gray(prepare, photographs):
    result = prepare()
    assert result.exit_code == 1
    assert "0_colour.jpg: a colour image where gray is expected" in result.output and "--to-gray" in result.output
    assert "gray.png" not in result.output and "deep.png" not in result.output
    result = prepare("--channels", "3", "--to-gray")
    assert result.exit_code == 1 and "--to-gray is for networks of one channel" in result.output


def test_gray_of_colour_is_its_luma_and_gray_stays_as_it_is(tmp_path):
    picture = scene(0, 24, 24)
    write_opaque(tmp_path / "colour.png", picture)
    write_gray(tmp_path / "gray.png", picture)
    gray = read_image(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png", to_gray=True), gray)
    np.testing.assert_allclose(read_image(tmp_path / "colour.png", to_gray=True), gray, atol=2 / 255)
    with pytest.raises(ReadError, match="colour image where gray"):
        read_image(tmp_path / "colour.png")
    assert read_original(tmp_path / "colour.png", 24, 1, to_gray=True).pixels.shape == (1, 24, 24)


def test_what_was_read_as_gray_is_no_answer_to_who_refuses_colour(prepare, photographs, tmp_path):
    assert prepare("--to-gray").exit_code == 0
    path = tmp_path / "out" / "manifest.json"
    ways = {"progress": False}, {"progress": False, "cache_dir": tmp_path / "cache"}
    for options in ways:
        assert Cohort.from_manifest(path, "training", SIZE, 1, **options).images.shape[1:] == (1, SIZE, SIZE)
    path.write_text(path.read_text().replace('"to_gray": true', '"to_gray": false'))
    for options in ways:
        with pytest.raises(ValueError, match="colour image where gray") as refused:
            Cohort.from_manifest(path, "training", SIZE, 1, **options)
        assert "test[" in str(refused.value), "the other parts are asked anew, too"


def test_of_a_photograph_with_a_preview_the_photograph_is_read(tmp_path):
    write_with_preview(tmp_path / "a.jpg", scene(0, 64, 48))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.n_frames == 2
    image = torch.from_numpy(read_image(tmp_path / "a.jpg", 3))
    assert image.shape == (3, 64, 48) and image[:, 2:14, 2:10].min() > 0.9
