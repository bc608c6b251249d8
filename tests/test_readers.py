"""Every format gives the same picture in the same range; everything else is refused with file and reason."""

import numpy as np
import pytest
import torch
from PIL import Image

from monai_anon.readers import (
    SUFFIXES,
    ReadError,
    fit_square,
    has_image_suffix,
    read_image,
    restore_shape,
    to_model_range,
    to_stored,
    to_uint8,
)

GRADIENT = np.linspace(0, 255, 12 * 10).reshape(12, 10).astype(np.uint8)  # height 12, width 10: shows a transposition


def save(path, values, **options):
    Image.fromarray(values).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".PNG", ".tiff"])
@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_are_read_exactly_at_8_and_16_bit(tmp_path, suffix, bits):
    values = GRADIENT if bits == 8 else GRADIENT.astype(np.uint16) * 257
    image = read_image(save(tmp_path / f"a{suffix}", values))
    assert (image.shape, image.dtype) == ((1, 12, 10), np.float32)
    np.testing.assert_array_equal(to_stored(image)[0], GRADIENT)
    assert (image.min(), image.max()) == (0, 1)


def test_the_reason_of_a_broken_picture_does_not_quote_its_path(tmp_path):
    """Copies under keyed names are told of by number; whatever a name holds, it is not in the reason."""
    for name in ("Doe_Jane.png", "Doe  Jane.png", "Doe\tJane's.png", "Doe\nJane.png"):
        (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(ReadError) as error:
            read_image(tmp_path / name)
        assert "Doe" not in error.value.reason and "cannot be decoded" in error.value.reason


def test_jpeg_is_read(tmp_path):
    image = read_image(save(tmp_path / "a.jpg", GRADIENT, quality=100))
    assert np.abs(image[0] * 255 - GRADIENT).max() <= 3


def test_12_bit_values_in_a_16_bit_file_fill_the_range(tmp_path):
    values = (GRADIENT.astype(np.uint16) * 16).clip(max=4095)
    assert read_image(save(tmp_path / "a.png", values)).max() == pytest.approx(4080 / 4095)


def test_a_tiff_where_white_is_zero_is_inverted_at_both_depths(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for name, values in (("8.tif", GRADIENT), ("16.tif", GRADIENT.astype(np.uint16) * 257)):
        tifffile.imwrite(tmp_path / name, values, photometric="miniswhite")
        np.testing.assert_array_equal(to_stored(read_image(tmp_path / name))[0], 255 - GRADIENT)


def test_equal_channels_are_gray_and_other_ones_colour(tmp_path):
    gray = save(tmp_path / "gray.png", np.stack([GRADIENT] * 3, -1))
    np.testing.assert_array_equal(read_image(gray)[0] * 255, GRADIENT)
    assert read_image(gray, channels=3).shape == (3, 12, 10)
    values = np.stack([GRADIENT] * 3, -1)
    values[0, 0, 0] ^= 1
    colour = save(tmp_path / "colour.png", values)
    with pytest.raises(ReadError, match=r"colour\.png: a colour image where gray is expected \(.* in 0\.8% of"):
        read_image(colour)
    np.testing.assert_array_equal(to_stored(read_image(colour, channels=3)), np.moveaxis(values, -1, 0))


def test_palettes_and_opaque_alpha_are_read_transparency_is_refused(tmp_path):
    Image.fromarray(GRADIENT).convert("P").save(tmp_path / "p.png")
    np.testing.assert_array_equal(to_stored(read_image(tmp_path / "p.png"))[0], GRADIENT)
    alpha = np.full_like(GRADIENT, 255)
    opaque = save(tmp_path / "opaque.png", np.stack([GRADIENT] * 3 + [alpha], -1))
    np.testing.assert_array_equal(to_stored(read_image(opaque))[0], GRADIENT)
    alpha[3, 3] = 0
    with pytest.raises(ReadError, match="transparent pixels"):
        read_image(save(tmp_path / "clear.png", np.stack([GRADIENT] * 3 + [alpha], -1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path, bad):
    values = GRADIENT.astype(np.float32) / 255
    values[2, 3] = bad
    with pytest.raises(ReadError, match=r"a\.tif: 1 value\(s\) are NaN or infinite"):
        read_image(save(tmp_path / "a.tif", values))


def test_fractions_are_taken_as_they_are_inside_0_to_1_and_else_stretched(tmp_path):
    values = GRADIENT.astype(np.float32) / 510
    assert read_image(save(tmp_path / "a.tif", values)).max() == 0.5
    assert read_image(save(tmp_path / "b.tif", values * 10 - 7.3)).max() == 1


def broken_files(folder):
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "text.jpg").write_text("no image")
    (folder / "text.dcm").write_text("no image")
    (folder / "text.nii.gz").write_text("no image")
    (folder / "text.txt").write_text("no image")
    whole = save(folder / "whole.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.png").mkdir()
    Image.fromarray(GRADIENT).save(folder / "two.tif", save_all=True, append_images=[Image.fromarray(GRADIENT)])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", r"the file is empty \(0 bytes\)"),
        ("text.png", "cannot be decoded"),
        ("text.jpg", "cannot be decoded"),
        ("text.dcm", "is no DICOM file"),
        ("text.nii.gz", "cannot be decoded"),
        ("text.txt", r"no supported type; supported are \.png"),
        ("cut.png", "cannot be decoded"),
        ("folder.png", "is a folder"),
        ("gone.png", "no such file"),
        ("two.tif", "holds 2 pictures; one is expected"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_reason(tmp_path, name, reason):
    broken_files(tmp_path)
    with pytest.raises(ReadError, match=reason) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.reason in str(caught.value)


def test_nifti_slices_are_read_upright(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for dtype in (np.uint8, np.int16, np.float32):
        for values in (GRADIENT.T, GRADIENT.T[..., None]):
            nibabel.Nifti1Image(values.astype(dtype), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
            np.testing.assert_array_equal(to_stored(read_image(tmp_path / "a.nii.gz"))[0], GRADIENT)
    hounsfield = GRADIENT.T.astype(np.float32) - 1000.5
    nibabel.Nifti1Image(hounsfield, np.eye(4)).to_filename(tmp_path / "ct.nii")
    np.testing.assert_array_equal(to_stored(read_image(tmp_path / "ct.nii"))[0], GRADIENT)
    nibabel.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "volume.nii")
    with pytest.raises(ReadError, match="has the shape 4x4x3; one slice is expected"):
        read_image(tmp_path / "volume.nii")
    hounsfield[0, 0] = np.nan
    nibabel.Nifti1Image(hounsfield, np.eye(4)).to_filename(tmp_path / "nan.nii")
    with pytest.raises(ReadError, match="NaN"):
        read_image(tmp_path / "nan.nii")


def write_dicom(path, values, **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.1")
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = values.shape[-2:] if values.shape[-1] != 3 else values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.shape[-1] == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def test_dicom_windows_follow_the_standard(tmp_path):
    # PS3.3 C.11.2.1.2, LINEAR, on Hounsfield units: ((x - (c - 0.5)) / (w - 1) + 0.5), clipped.
    stored = (np.arange(120, dtype=np.int16) * 20 - 200).reshape(12, 10)
    path = write_dicom(
        tmp_path / "a.dcm", stored, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    expected = np.clip((stored * 2.0 - 1024 - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-6)


def test_dicom_voi_luts_are_applied(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.Dataset()
    item.LUTDescriptor = [256, 0, 12]
    item.add_new("LUTData", "OW", (4095 - 16 * np.arange(256)).astype("<u2").tobytes())
    path = write_dicom(tmp_path / "a.dcm", GRADIENT, VOILUTSequence=pydicom.Sequence([item]))
    np.testing.assert_allclose(read_image(path)[0], (4095 - 16 * GRADIENT.astype(float)) / 4095, atol=1e-6)


def test_dicom_without_window_fills_the_range_padding_apart(tmp_path):
    values = GRADIENT.astype(np.uint16) + 1000
    np.testing.assert_array_equal(to_stored(read_image(write_dicom(tmp_path / "a.dcm", values)))[0], GRADIENT)
    values[0, 0] = 0
    padded = read_image(write_dicom(tmp_path / "b.dcm", values, PixelPaddingValue=0))
    assert np.abs(padded[0] * 255 - GRADIENT).max() <= 3


def test_monochrome1_is_inverted_and_a_name_without_suffix_suffices(tmp_path):
    path = write_dicom(tmp_path / "IM0001", GRADIENT, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(to_stored(read_image(path))[0], 255 - GRADIENT)


def test_dicom_colour_and_frames_are_refused(tmp_path):
    colour = np.stack([GRADIENT, GRADIENT, 255 - GRADIENT], -1)
    path = write_dicom(tmp_path / "rgb.dcm", colour, PhotometricInterpretation="RGB")
    np.testing.assert_array_equal(to_stored(read_image(path, channels=3)), np.moveaxis(colour, -1, 0))
    with pytest.raises(ReadError, match="colour image where gray"):
        read_image(path)
    with pytest.raises(ReadError, match="holds 2 frames"):
        read_image(write_dicom(tmp_path / "f.dcm", np.stack([GRADIENT] * 2), NumberOfFrames=2))
    with pytest.raises(ReadError, match="photometric interpretation is PALETTE"):
        read_image(write_dicom(tmp_path / "p.dcm", GRADIENT, PhotometricInterpretation="PALETTE COLOR"))


def test_a_picture_in_all_formats_is_one_picture(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    save(tmp_path / "a.png", GRADIENT)
    save(tmp_path / "a.tif", GRADIENT)
    write_dicom(tmp_path / "a.dcm", GRADIENT)
    nibabel.Nifti1Image(GRADIENT.T, np.eye(4)).to_filename(tmp_path / "a.nii")
    images = [read_image(tmp_path / f"a{suffix}") for suffix in (".png", ".tif", ".dcm", ".nii")]
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], atol=1e-6)


def test_a_strip_that_would_be_padded_to_a_huge_square_is_refused_before_it_is(tmp_path):
    path = tmp_path / "strip.png"
    values = (np.arange(20_000 * 4) % 251).astype(np.uint8).reshape(4, 20_000)
    Image.fromarray(values).save(path)
    with pytest.raises(ReadError, match="4 x 20000: padded to a square"):
        read_image(path)
    Image.fromarray(values[:, :2_000]).save(path)
    assert fit_square(read_image(path), 32).shape == (1, 32, 32)


def test_almost_square_images_are_squeezed_and_long_ones_padded_with_black():
    assert fit_square(np.ones((1, 60, 50), np.float32), 32).min() == 1
    padded = fit_square(np.ones((1, 100, 50), np.float32), 32)
    assert padded.shape == (1, 32, 32)
    assert padded[0, :, 9:23].min() > 0.99
    assert max(padded[0, :, :7].max(), padded[0, :, 25:].max()) < 0.01


def test_an_image_of_the_right_size_is_left_alone():
    image = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    assert fit_square(image, 32) is image


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 1], np.float32), 64)[None, None].repeat(128, axis=1)
    assert np.abs(fit_square(stripes, 32)[:, :, 2:-2] - 0.5).max() < 0.05


@pytest.mark.parametrize(("height", "width"), [(48, 48), (48, 44), (80, 40), (40, 81)])
def test_restoring_the_shape_undoes_fitting(height, width):
    y, x = np.mgrid[0:height, 0:width]
    image = (0.5 + 0.3 * np.sin(y / 9) * np.cos(x / 7)).astype(np.float32)[None]
    restored = restore_shape(fit_square(image, 64), height, width)
    assert restored.shape == image.shape
    assert np.abs(restored - image)[:, 4:-4, 4:-4].max() < 0.02


def test_the_model_range_and_bytes_are_inverse_and_clamped():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    scaled = to_model_range(images)
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(to_uint8(scaled), images)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(TypeError, match="uint8"):
        to_model_range(scaled)


def test_suffixes_are_recognised_in_any_case():
    assert all(has_image_suffix(f"a{suffix}") and has_image_suffix(f"a{suffix.upper()}") for suffix in SUFFIXES)
    assert not has_image_suffix("manifest.json")


@pytest.mark.parametrize("kind", ["bmp", "gif", "webp", "ppm"])
def test_a_picture_of_another_form_than_its_names_is_not_decoded(tmp_path, kind):
    path = tmp_path / "a.png"
    Image.effect_noise((8, 8), 50).save(path, format=kind)
    with pytest.raises(ReadError, match="cannot be decoded"):
        read_image(path)
