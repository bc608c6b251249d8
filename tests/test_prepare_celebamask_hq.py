"""CelebAMask-HQ as it is given out becomes a manifest of persons, their backgrounds removed by the merged masks."""

import numpy as np
import pytest
from PIL import Image

from monai_anon.manifest import PARTS

NAME = "prepare_celebamask_hq"
SMALL = ["--images", "20,4,6", "--patients", "10,2,3", "--size", "16"]
ATTRIBUTES = ["5_o_Clock_Shadow", "Male", "Smiling", "Young"]


@pytest.fixture
def release(tmp_path, noise):
    """Write 40 images of 20 persons: a face on the left and hair above it, each a mask of its own."""

    def write(identities="data/identity_CelebA.txt", leave_out=()):
        root = tmp_path / "data"
        (root / "CelebA-HQ-img").mkdir(parents=True)
        originals = [f"{200 - number:06d}.jpg" for number in range(40)]
        for number in range(40):
            if f"{number}.jpg" not in leave_out:
                noise(32, 32, 3).save(root / f"CelebA-HQ-img/{number}.jpg")
            folder = root / f"CelebAMask-HQ-mask-anno/{number // 20}"
            folder.mkdir(parents=True, exist_ok=True)
            skin, hair = np.zeros((2, 16, 16), dtype=np.uint8)
            skin[8:, :8], hair[:8, 4:12] = 255, 255
            for part, mask in (("skin", skin), ("hair", hair)):
                if f"{number:05d}_{part}.png" not in leave_out:
                    Image.fromarray(np.stack([mask] * 3, -1)).save(folder / f"{number:05d}_{part}.png")
        lines = [f"{number}  {int(name[:6])}  {name}" for number, name in enumerate(originals)]
        (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx orig_idx orig_file", *lines]) + "\n")
        lines = [f"{n}.jpg  -1 {[-1, 1][n % 4 < 2]} {[-1, 1][n % 2]}  1" for n in range(40)]
        (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(["40", " ".join(ATTRIBUTES), *lines]))
        if identities:
            (tmp_path / identities).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / identities).write_text("\n".join(f"{name} {n // 2 + 5000}" for n, name in enumerate(originals)))

    return write


@pytest.mark.parametrize("place", ["data/identity_CelebA.txt", "data/Anno/identity_CelebA.txt", "elsewhere/ids.txt"])
def test_persons_and_findings_are_joined_through_the_mapping(importer, release, tmp_path, place):
    release(place)
    given = ["--identities", str(tmp_path / place)] if "elsewhere" in place else []
    code, output, manifest = importer(NAME, *SMALL, *given)
    assert code == 0, output
    assert [len(manifest.parts[part]) for part in PARTS] == [20, 4, 6]
    assert manifest.classes == ["absent", "smiling"]
    for part in PARTS:
        for entry in manifest.parts[part]:
            number = entry["number"]
            assert (entry["patient"], entry["finding"]) == (str(number // 2 + 5000), number % 2)
            assert entry["sex"] == ("M" if number % 4 < 2 else "F")
            assert (entry["image"], entry["mask"]) == (f"images/{number}.png", f"masks/{number}.png")


def test_the_masks_of_all_parts_are_one_and_the_background_is_gray(importer, release, tmp_path):
    release()
    entry = importer(NAME, *SMALL)[2].parts["training"][0]
    mask = np.asarray(Image.open(tmp_path / "out" / entry["mask"]))
    expected = np.zeros((16, 16), dtype=np.uint8)
    expected[8:, :8], expected[:8, 4:12] = 255, 255
    assert np.array_equal(mask, expected)
    with Image.open(tmp_path / f"data/CelebA-HQ-img/{entry['number']}.jpg") as picture:
        original = np.asarray(picture.resize((16, 16), Image.Resampling.LANCZOS))
    image = np.asarray(Image.open(tmp_path / "out" / entry["image"]))
    assert image.shape == (16, 16, 3)
    assert np.array_equal(image[expected > 0], original[expected > 0])
    assert (image[expected == 0] == 128).all()


def test_a_background_can_be_kept_with_its_mask_beside(importer, release, tmp_path):
    release()
    entry = importer(NAME, *SMALL, "--keep-background")[2].parts["training"][0]
    assert entry["image"] == f"../data/CelebA-HQ-img/{entry['number']}.jpg"
    assert (tmp_path / "out" / entry["mask"]).is_file()
    assert not (tmp_path / "out/images").exists()


def test_no_masks_are_needed_where_the_background_is_kept(importer, release, tmp_path):
    release()
    (tmp_path / "data/CelebAMask-HQ-mask-anno").rename(tmp_path / "masks")
    code, output, _ = importer(NAME, *SMALL)
    assert code == 1 and "CelebAMask-HQ-mask-anno/0 ... 14/: masks, without which --keep-background is needed" in output
    code, output, manifest = importer(NAME, *SMALL, "--keep-background")
    assert code == 0, output
    assert "mask" not in manifest.parts["training"][0]


def test_without_the_file_of_identities_it_is_said_where_to_get_it(importer, release):
    release(None)
    code, output, manifest = importer(NAME, *SMALL)
    assert (code, manifest) == (1, None)
    assert (
        "identity_CelebA.txt: who is in an image; not in CelebAMask-HQ, the CelebA team sends it on request" in output
    )
    assert "(--identities) - NOT FOUND" in output and "CelebA-HQ-img/: the images - found" in output


def test_a_wrong_root_is_refused(importer, tmp_path):
    assert "no such folder" in importer(NAME)[1]
    (tmp_path / "data").mkdir()
    assert importer(NAME)[1].count("NOT FOUND") == 5


def test_incomplete_images_are_counted_and_named(importer, release):
    release(leave_out=["7.jpg", "00009_skin.png", "00011_skin.png", "00011_hair.png"])
    code, output, manifest = importer(NAME, *SMALL)
    assert (code, manifest) == (1, None)
    assert "2 of 40 images are not complete" in output
    assert "7.jpg: no such file in CelebA-HQ-img" in output
    assert "11.jpg: no mask in CelebAMask-HQ-mask-anno" in output
    assert "50" not in output.replace("--", "")  # no identity
    code, output, _ = importer(NAME, *SMALL, "--skip-missing")
    assert code == 0, output


def test_an_unknown_attribute_or_a_broken_line_is_refused(importer, release, tmp_path):
    release()
    assert (
        "'Smile' is none of the dataset's; it has 5_o_Clock_Shadow, Male, Smiling"
        in importer(NAME, "--finding", "Smile")[1]
    )
    (tmp_path / "data/identity_CelebA.txt").write_text("000001.jpg\n")
    output = importer(NAME)[1]
    assert "identity_CelebA.txt: every line must have 2 words" in output and "line 1: 1 words" in output


def test_a_dry_run_writes_no_image_and_a_seed_decides(importer, release, tmp_path):
    release()
    code, output, manifest = importer(NAME, *SMALL, "--dry-run")
    assert (code, manifest) == (0, None) and "not written" in output
    assert not (tmp_path / "out").exists()
    first = importer(NAME, *SMALL, "--seed", "1")[2]
    other = importer(NAME, *SMALL, "--seed", "2", "--overwrite")[2]
    assert first.parts != other.parts == importer(NAME, *SMALL, "--seed", "2", "--overwrite")[2].parts


def test_too_few_images_are_told_and_all_can_be_taken(importer, release):
    release()
    assert "8849 images of 650 patients are asked, 40 usable images of 20 patients are there" in importer(NAME)[1]
    code, output, manifest = importer(NAME, "--all", "--patients", "10,2,3", "--size", "16")
    assert code == 0, output
    assert sum(map(len, manifest.parts.values())) == 40
