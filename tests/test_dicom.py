"""A DICOM copy holds new pixels and a new header: nothing of the original that was not asked for, in any byte."""

from __future__ import annotations

import errno
import gzip
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import DX, GRADIENT, PLANTED, SC, ULTRASOUND, found_in, planted_header, pydicom, write_dicom
from PIL import Image
from tiny import FakeAnonymizer
from tiny_bundle import SIZE, tiny_anonymizer, write_bundle
from torch import nn
from typer.testing import CliRunner, Result

from monai_anon.__main__ import app
from monai_anon.dicom import DicomSettings, read_header
from monai_anon.drawing import Drawing
from monai_anon.jobs import Naming, plan_files
from monai_anon.keys import Key, KeyFileError, read_key, write_key
from monai_anon.readers import read_image
from monai_anon.release import FileAnonymizer

KEY = Key(b"k" * 32)
CODE = DicomSettings(KEY, bits=5.0, policy="code")


CONSTANT = FakeAnonymizer(lambda image: torch.full_like(image, 0.25))
INVERTED = FakeAnonymizer(lambda image: -image)


def run(folder: Path, out: Path, model: nn.Module = CONSTANT, dicom: DicomSettings = CODE, **options):
    """Copies of a folder; gives the refusals' reasons by their files' names, and the copies."""
    plan = plan_files([folder], out, naming=Naming(dicom.key))
    options = {"keep_form": False} | options
    refusals = FileAnonymizer(Drawing(model, 1), SIZE, dicom=dicom, **options).run(plan.jobs, progress=False)
    return {refusal.path.name: refusal.reason for refusal in refusals}, {job.name: job.target for job in plan.jobs}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "PLANTQ_archive"
    folder.mkdir()
    return folder


# ---- nothing of the header passes ----


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A DICOM file with a planted value in every attribute."""
    return write_dicom(tmp_path_factory.mktemp("planted") / "a.dcm", header=planted_header()).read_bytes()


@pytest.mark.parametrize(("header", "bits"), [("none", 5.0), ("groups", 5.0), ("view", None)])
def test_no_planted_value_is_in_any_byte_of_a_copy(archive: Path, tmp_path: Path, planted, header: str, bits) -> None:
    source = archive / "PLANTQ.dcm"
    source.write_bytes(planted)
    assert set(found_in(source.read_bytes())) == set(PLANTED) - {"7771234567"}  # as long as IS may be, below
    settings = DicomSettings(KEY, header, bits, "code", no_text=True)
    refusals, copies = run(archive, tmp_path / "out", dicom=settings, keep_form=bits is None)
    assert refusals == {}
    (copy,) = copies.values()
    content = copy.read_bytes()
    assert found_in(content) == [] and b"777123456" not in content and "PLANTQ" not in copy.name
    before = {str(element.value) for element in pydicom.dcmread(source).iterall() if element.VR == "UI"}
    after = {str(element.value) for element in pydicom.dcmread(copy).iterall() if element.VR == "UI"}
    assert {uid for uid in before & after if not uid.startswith("1.2.840.10008")} == set()


def test_under_a_bound_a_copy_tells_no_more_than_its_pixels(tmp_path: Path, planted: bytes) -> None:
    """Where nothing of the originals reaches the pixels, copies are the same bytes but for UIDs and pseudonym."""
    forms = {
        "plain": {},
        "planted": None,
        "deep": {"pixels": GRADIENT * 16, "bits": 12},
        "inverted": {"PhotometricInterpretation": "MONOCHROME1"},
        "wide": {"pixels": np.tile(GRADIENT, (1, 2))},
        "captured": {"SOPClassUID": SC, "ConversionType": "DF", "BurnedInAnnotation": "YES"},
    }
    contents = []
    for name, form in forms.items():
        (tmp_path / name).mkdir()
        if form is None:
            (tmp_path / name / "a.dcm").write_bytes(planted)
        else:
            write_dicom(tmp_path / name / "a.dcm", **form)
        refusals, copies = run(tmp_path / name, tmp_path / f"out_{name}")
        assert refusals == {}
        copy = pydicom.dcmread(copies["a.dcm"])
        for holder in (copy, copy.file_meta):
            for keyword in (
                "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID",
                "MediaStorageSOPInstanceUID", "FileMetaInformationGroupLength",
            ):  # fmt: skip
                if keyword in holder:
                    setattr(holder, keyword, 0 if "Length" in keyword else "0")
        stream = io.BytesIO()
        copy.save_as(stream, enforce_file_format=True)
        contents.append(stream.getvalue())
    assert len(set(contents)) == 1


def test_nifti_copies_are_the_same_bytes_whatever_they_copy(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    contents = []
    for name, dtype, scale in (("a.nii", np.uint8, 1), ("a.nii.gz", np.int16, 10)):
        folder = tmp_path / f"in_{name}"
        folder.mkdir()
        image = nibabel.Nifti1Image((GRADIENT.T * scale).astype(dtype), np.diag([2, 3, 4, 1]))
        for field in ("descrip", "intent_name", "aux_file", "db_name"):
            image.header[field] = b"PLANTQ"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"PLANTQ comment"))
        image.to_filename(folder / name)
        refusals, copies = run(folder, tmp_path / f"out_{name}")
        assert refusals == {}
        contents.append(copies[name].read_bytes())
        read = nibabel.load(copies[name])
        assert found_in(contents[-1]) == found_in(gzip.decompress(contents[-1])) == []
        assert (read.affine == np.eye(4)).all() and read.shape == (SIZE, SIZE) and not read.header.extensions
    assert contents[0] == contents[1]


def test_a_tiffs_copy_is_a_png_of_pixels_alone(archive: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(archive / "a.tif", GRADIENT.astype(np.uint8), description="PLANTQ", software="PLANTQ")
    tifffile.imwrite(archive / "b.tiff", GRADIENT.astype(np.uint16) * 16, description="PLANTQ")
    refusals, copies = run(archive, tmp_path / "out", INVERTED, keep_form=True)
    assert refusals == {} and [copy.name for copy in copies.values()] == ["a.png", "b.png"]
    assert all(found_in(copy.read_bytes()) == [] for copy in copies.values())
    for copy, full in zip(copies.values(), (255, 4095)):
        expected = full - GRADIENT * (1 if full == 255 else 16)
        assert np.abs(np.asarray(Image.open(copy)).astype(int) - expected).mean() < 0.02 * full


def test_the_view_passes_only_if_asked_and_only_in_the_standards_words(archive: Path, tmp_path: Path) -> None:
    write_dicom(archive / "a.dcm", Modality="CR", BodyPartExamined="CHEST", ViewPosition="PA", StudyDate="19630704")
    write_dicom(archive / "b.dcm", Modality="CR", BodyPartExamined="QUIRIN", ViewPosition="PA ")
    for header, expected in (("groups", ("OT", None, None)), ("view", ("CR", "CHEST", "PA"))):
        _, copies = run(archive, tmp_path / header, dicom=DicomSettings(KEY, header, 5.0, "code"))
        a, b = (pydicom.dcmread(copies[name]) for name in ("a.dcm", "b.dcm"))
        assert (a.Modality, a.get("BodyPartExamined"), a.get("ViewPosition")) == expected
        assert "BodyPartExamined" not in b and a.StudyDate == ""


# ---- what the new header says ----


def test_a_copy_is_a_valid_secondary_capture(archive: Path, tmp_path: Path, monkeypatch) -> None:
    """Attributes of type 1 and 2 of PS3.3 A.8.1; pydicom reads and writes it without a complaint."""
    write_dicom(archive / "a.dcm", GRADIENT * 16, 12)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for keep_form, bits, sides in ((False, 8, (SIZE, SIZE)), (True, 12, GRADIENT.shape)):
        _, copies = run(archive, tmp_path / str(keep_form), INVERTED, keep_form=keep_form)
        copy = pydicom.dcmread(copies["a.dcm"])
        list(copy.iterall())
        with_values = (
            "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ConversionType SamplesPerPixel "
            "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData"
        )
        present = (
            "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
            "AccessionNumber SeriesNumber InstanceNumber PatientOrientation Laterality"
        )
        assert [word for word in with_values.split() if not copy.get(word) and copy.get(word) != 0] == []
        assert [word for word in present.split() if word not in copy] == []
        assert copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID and copy.preamble == b"\0" * 128
        assert all(element.value.is_valid for element in copy.iterall() if element.VR == "UI")
        assert (copy.Rows, copy.Columns) == sides and copy.BitsStored == bits == copy.HighBit + 1
        assert (copy.WindowCenter, copy.WindowWidth) == (2 ** (bits - 1), 2**bits)
        np.testing.assert_allclose(read_image(copies["a.dcm"])[0], copy.pixel_array / (2**bits - 1), atol=1e-6)


def test_a_header_claims_only_what_is_so(archive: Path, tmp_path: Path) -> None:
    write_dicom(archive / "a.dcm")
    for bits, codes, said in (
        (5.0, ["113100", "113101", "113102"], ("YES", "NO", "NO")),
        (None, [], ("NO", "YES", None)),
    ):
        _, copies = run(archive, tmp_path / str(bits), dicom=DicomSettings(KEY, "groups", bits, "any"))
        copy = pydicom.dcmread(copies["a.dcm"])
        assert [item.CodeValue for item in copy.DeidentificationMethodCodeSequence] == [*codes, "IDENTITY_DRAWN"]
        assert (copy.PatientIdentityRemoved, copy.RecognizableVisualFeatures, copy.get("BurnedInAnnotation")) == said
        assert copy.ImageType == ["DERIVED", "SECONDARY"] and copy.SyntheticData == "YES"
        assert copy.LongitudinalTemporalInformationModified == "REMOVED" and copy.ConversionType == "SYN"


def test_text_in_pixels_is_feared_only_where_pixels_pass(archive: Path, tmp_path: Path) -> None:
    feared = {
        "yes": {"BurnedInAnnotation": "YES"}, "capture": {"SOPClassUID": SC}, "ultrasound": {"SOPClassUID": ULTRASOUND},
        "film": {"ConversionType": "DF"}, "odd": {"BurnedInAnnotation": "PERHAPS", "SOPClassUID": SC},
    }  # fmt: skip
    safe = {"cr": {}, "dx": {"SOPClassUID": DX}, "no": {"SOPClassUID": SC, "BurnedInAnnotation": "NO"}}
    for name, tags in (feared | safe).items():
        write_dicom(archive / f"{name}.dcm", **tags)
    unbounded = DicomSettings(KEY, policy="latents")
    refusals, _ = run(archive, tmp_path / "refused", dicom=unbounded)
    assert refusals.keys() == {f"{name}.dcm" for name in feared}
    assert all("burned into" in reason and "--no-burned-in-text" in reason for reason in refusals.values())
    assert len(list((tmp_path / "refused").iterdir())) == len(safe)
    assert run(archive, tmp_path / "said", dicom=DicomSettings(KEY, no_text=True))[0] == {}
    assert run(archive, tmp_path / "bound")[0] == {}


# ---- keys ----


def test_uids_hang_on_the_key_and_keep_patient_study_and_series_together(archive: Path, tmp_path: Path) -> None:
    who = {"PatientID": "7", "StudyInstanceUID": "1.2.3.1", "SeriesInstanceUID": "1.2.3.2"}
    write_dicom(archive / "a.dcm", SOPInstanceUID="1.2.3.3", **who)
    write_dicom(archive / "b.dcm", SOPInstanceUID="1.2.3.4", **who)
    write_dicom(archive / "c.dcm", SOPInstanceUID="1.2.3.5", **who | {"StudyInstanceUID": "1.2.3.6"})
    kinds = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

    def ids(out: str, key: Key, header: str = "groups") -> tuple[list[tuple[str, ...]], list[str]]:
        _, copies = run(archive, tmp_path / out, dicom=DicomSettings(key, header, 5.0, "code"))
        read = [pydicom.dcmread(copies[f"{name}.dcm"]) for name in "abc"]
        return [tuple(str(copy[kind].value) for copy in read) for kind in kinds], [c.name for c in copies.values()]

    once, again, other = ids("1", KEY), ids("2", KEY), ids("3", Key(b"o" * 32))
    assert once == again
    assert not {uid for uids in once[0] for uid in uids} & {uid for uids in other[0] for uid in uids}
    assert not set(once[1]) & set(other[1])
    assert [len(set(uids)) for uids in once[0]] == [1, 2, 1, 3]
    assert [len(set(uids)) for uids in ids("4", KEY, "none")[0]] == [3, 3, 3, 3]
    assert all(b"k" * 32 not in path.read_bytes() for path in (tmp_path / "1").iterdir())


def test_a_key_file_is_private_or_refused_and_never_shown(tmp_path: Path) -> None:
    path, key = tmp_path / "key", Key.random()
    write_key(key, path)
    assert path.stat().st_mode & 0o777 == 0o600 and read_key(path).name("x") == key.name("x")
    secret = path.read_text().strip()
    assert secret not in repr(key) + str(key)
    with pytest.raises(KeyFileError, match="never replaced"):
        write_key(Key.random(), path)
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="open to others") as caught:
            read_key(path)
        assert secret not in str(caught.value)
    path.chmod(0o600)
    path.write_text(secret[:-2])
    with pytest.raises(KeyFileError, match="holds no key") as caught:
        read_key(path)
    assert secret[:20] not in str(caught.value)
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_key(tmp_path / "absent")


def test_digests_are_kept_apart_by_kind_and_parts() -> None:
    assert len({KEY.digest("a", "bc"), KEY.digest("ab", "c"), KEY.digest("a", "b", "c"), KEY.digest("a")}) == 4
    assert len(KEY.uid("1.2")) <= 64 and pydicom.uid.UID(KEY.uid("1.2")).is_valid


# ---- pixels ----


@pytest.mark.parametrize("form", ["deep", "monochrome1", "lut", "rle", "jpeg2000", "signed"])
def test_white_is_white_in_every_encoding(archive: Path, tmp_path: Path, form: str) -> None:
    """A model that turns black to white gives the negative of what a viewer shows of the original."""
    tags, shown = {}, GRADIENT / 255
    if form == "deep":
        tags, shown = {"pixels": GRADIENT * 100, "bits": 16, "WindowCenter": 10000, "WindowWidth": 20000}, None
        shown = np.clip((GRADIENT * 100 - 9999.5) / 19999 + 0.5, 0, 1)
    elif form == "monochrome1":
        tags, shown = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 128, "WindowWidth": 256}, 1 - shown
    elif form == "lut":
        item = pydicom.Dataset()
        item.LUTDescriptor = [256, 0, 8]
        item.add_new("LUTData", "OW", np.arange(255, -1, -1).astype("<u2").tobytes())
        tags, shown = {"VOILUTSequence": pydicom.Sequence([item])}, 1 - shown
    elif form == "signed":
        tags = {"pixels": GRADIENT * 8, "bits": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}
        tags |= {"WindowCenter": -4, "WindowWidth": 2040}
        shown = np.clip((GRADIENT * 8 - 1024 + 4.5) / 2039 + 0.5, 0, 1)
    else:
        syntax = {"rle": pydicom.uid.RLELossless, "jpeg2000": pydicom.uid.JPEG2000Lossless}[form]
        tags = {"compressed": syntax, "WindowCenter": 128, "WindowWidth": 256}
    write_dicom(archive / "a.dcm", **tags)
    refusals, copies = run(archive, tmp_path / "out", INVERTED, keep_form=True)
    assert refusals == {}
    assert np.abs(read_image(copies["a.dcm"])[0] - (1 - shown)).mean() < 0.02


def test_monai_reads_copies(archive: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    from monai.transforms import LoadImage

    write_dicom(archive / "a.dcm")
    nibabel.Nifti1Image(GRADIENT.T.astype(np.uint8), np.eye(4)).to_filename(archive / "b.nii")
    _, copies = run(archive, tmp_path / "out", tiny_anonymizer())
    for name, reader in (("a.dcm", "PydicomReader"), ("b.nii", "NibabelReader")):
        image = LoadImage(reader=reader, image_only=True)(copies[name])
        np.testing.assert_allclose(np.asarray(image).squeeze().T / 255, read_image(copies[name])[0], atol=1e-6)


def test_colour_needs_a_colour_model(archive: Path, tmp_path: Path) -> None:
    colour = np.stack([GRADIENT, GRADIENT.max() - GRADIENT, GRADIENT // 2], -1)
    write_dicom(archive / "a.dcm", colour)
    refusals, _ = run(archive, tmp_path / "gray")
    assert "a colour image where gray is expected" in refusals["a.dcm"]
    refusals, copies = run(archive, tmp_path / "colour", INVERTED, channels=3, keep_form=True)
    assert refusals == {}
    copy = pydicom.dcmread(copies["a.dcm"])
    assert copy.PhotometricInterpretation == "RGB" and "WindowCenter" not in copy
    assert np.abs(copy.pixel_array.astype(int) - (255 - colour)).mean() < 5


# ---- bad files ----


def test_bad_files_are_refused_alone_and_their_headers_not_quoted(archive: Path, tmp_path: Path) -> None:
    good = write_dicom(archive / "good.dcm")
    write_dicom(archive / "frames.dcm", np.tile(GRADIENT, (1, 1)), NumberOfFrames=2, PatientName="Plant^Quirin")
    write_dicom(archive / "huge.dcm", Rows=60000, Columns=60000)
    write_dicom(archive / "flat.dcm", GRADIENT * 0 + 7)
    write_dicom(archive / "terms.dcm", PhotometricInterpretation="PLANTQ")
    write_dicom(archive / "bare.dcm", PixelData=None)
    odd = pydicom.dcmread(good)
    odd.add_new("NumberOfFrames", "CS", "PLANTQ")  # Python's message of this quotes it
    odd.save_as(archive / "odd.dcm")
    content = good.read_bytes()
    (archive / "cut.dcm").write_bytes(content[: len(content) // 2])
    (archive / "head.dcm").write_bytes(content[:140])
    (archive / "empty.dcm").touch()
    (archive / "text.dcm").write_text("PLANTQ")
    (archive / "wrong.png").write_bytes(content)
    (archive / "DICOMDIR").write_bytes(content)
    (archive / "IM0001").write_bytes(content)
    refusals, copies = run(archive, tmp_path / "out")
    assert refusals.keys() == {path.name for path in archive.iterdir()} - {"good.dcm", "IM0001", "DICOMDIR"}
    assert not any(found_in(reason.encode()) for reason in refusals.values())
    for name, words in (("frames", "2 frames"), ("huge", "178,956,970 pixels"), ("flat", "constant")):
        assert words in refusals[f"{name}.dcm"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {copies[n].name for n in ("good.dcm", "IM0001")}


def test_files_that_unpack_to_something_huge_are_refused_before_they_are_unpacked(
    archive: Path, tmp_path: Path, monkeypatch
) -> None:
    deflated = pydicom.dcmread(write_dicom(archive / "small.dcm", WindowCenter=128, WindowWidth=256))
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated.save_as(archive / "small.dcm", enforce_file_format=True)
    deflated.Rows = deflated.Columns = 2000
    deflated.PixelData = bytes(2000 * 2000)
    deflated.save_as(archive / "bomb.dcm", enforce_file_format=True)
    assert (archive / "bomb.dcm").stat().st_size < 10_000
    picture = b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    picture += struct.pack(">I", zlib.crc32(picture[4:])) + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (archive / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + picture)
    monkeypatch.setattr("monai_anon.readers._MOST_UNPACKED", 1_000_000)
    unpacked, unpack = [], zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda *a, **k: unpacked.append(unpack(*a, **k)) or unpacked[-1])
    refusals, copies = run(archive, tmp_path / "out")
    assert "unpacked to more than 1,000,000 bytes" in refusals["bomb.dcm"]
    assert "exceeds limit" in refusals["bomb.png"] and copies["small.dcm"].exists()
    assert unpacked and max(map(len, unpacked)) < 10_000


def test_pydicoms_own_files_go_through_or_are_refused(tmp_path: Path) -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not folder.is_dir():
        pytest.skip("this pydicom comes without its test files")
    plan = plan_files([folder], tmp_path / "out", naming=Naming(KEY))
    refusals = FileAnonymizer(Drawing(CONSTANT, 1), SIZE, batch_size=8, dicom=CODE).run(plan.jobs, progress=False)
    copies = list((tmp_path / "out").iterdir())
    assert len(copies) + len(refusals) == len(plan.jobs) and len(copies) > 20
    for copy in copies:
        assert pydicom.dcmread(copy).pixel_array.shape == (SIZE, SIZE)
    gone_through = {job.source.name for job in plan.jobs} - {refusal.path.name for refusal in refusals}
    compressed = {"JPEG2000.dcm", "JPEGLSNearLossless_16.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"}
    assert (compressed & {path.name for path in folder.iterdir()}) <= gone_through


# ---- the command ----


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_shows_no_name_makes_a_key_and_goes_on(
    archive: Path, bundle: Path, tmp_path: Path, planted: bytes
) -> None:
    for name in ("PLANTQ_1.dcm", "PLANTQ_2", "PLANTQ_3.dcm"):
        (archive / name).write_bytes(planted)
    (archive / "PLANTQ_4.dcm").write_text("Plant^Quirin")
    out, key = tmp_path / "out", tmp_path / "keys" / "key"
    words = ("anonymize", archive, out, "--no-gate", "--bundle", bundle, "--policy", "code", "--key", key)
    words = (*words, "--batch-size", 2)
    planned = call(*words, "--make-key", "--dry-run")
    assert planned.exit_code == 1 and not out.exists() and not key.exists()
    assert "0 picture, 0 nifti, 3 dicom; 1 of 4 images would be refused" in planned.stdout
    made = call(*words, "--make-key")
    assert made.exit_code == 1 and "wrote 3 of 4 images" in made.stdout, made.output
    assert "not anonymised: file 4 of 4: is no DICOM file" in made.stderr
    secret = key.read_text().strip()
    shown = (planned.output + made.output).replace(str(archive), "")
    assert "PLANTQ" not in shown and "Plant^Quirin" not in shown and secret not in shown
    contents = {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(found_in(content) == [] and secret.encode() not in content for content in contents.values())
    rows = [json.loads(line) for line in contents["statements.jsonl"].splitlines()]
    assert {row["image"] for row in rows} == {name for name in contents if name.endswith(".dcm")}
    assert contents.keys() - {row["image"] for row in rows} == {
        "statements.jsonl",
        "certificate.json",
        "certificate.html",
    }
    assert all(row["header"] == "groups" and row["form"] == "model" for row in rows)

    # stopped in the middle: one copy is not there, of another the statement is half written
    (out / rows[1]["image"]).unlink()
    lines = contents["statements.jsonl"].decode().splitlines()
    (out / "statements.jsonl").write_text("\n".join([*lines[:2], lines[2][:30]]))
    assert call(*words).exit_code == 2
    went_on = call(*words, "--continue")
    assert "wrote 2 of 4 images" in went_on.stdout and "1 were there already" in went_on.stdout, went_on.output
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".dcm"} == {
        name: content for name, content in contents.items() if name.endswith(".dcm")
    }
    other = call(*words, "--continue", "--prototypes", 4)
    assert other.exit_code == 2 and "made with another bits" in other.stderr
    assert call(*words[:8], "--continue").exit_code == 2
    assert call(*words[:8], "--key", out / "key", "--make-key").exit_code == 2 and not (out / "key").exists()
    assert "PLANTQ_4.dcm: is no DICOM" in call(*words, "--continue", "--paths").stderr


def test_no_copy_outlives_a_run_whose_certificate_does_not_count_it(
    archive: Path, bundle: Path, tmp_path: Path, planted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.dcm", "2.dcm"):
        (archive / name).write_bytes(planted)
    out, key = tmp_path / "out", tmp_path / "key"
    words = ("anonymize", archive, out, "--no-gate", "--bundle", bundle, "--policy", "code", "--key", key)

    def released() -> int:
        copies = {path.name for path in out.glob("*.dcm")}
        assert copies == {json.loads(line)["image"] for line in (out / "statements.jsonl").read_text().splitlines()}
        assert json.loads((out / "certificate.json").read_text())["counts"]["released"] == len(copies)
        return len(copies)

    assert call(*words, "--make-key").exit_code == 0 and released() == 2

    def read(path: Path, name: str) -> object:
        if path.name == "2.dcm":
            raise OSError(errno.EIO, "Input/output error")
        return read_header(path, name)

    monkeypatch.setattr("monai_anon.pseudonyms.read_header", read)
    assert call(*words, "--overwrite").exit_code == 1 and released() == 1
    monkeypatch.undo()
    assert call(*words, "--overwrite").exit_code == 0 and released() == 2
    (archive / "2.dcm").rename(tmp_path / "2.dcm")
    for others in (words, words[:-2]):  # one of the two files is given; names by another key
        refused = call(*others, "--overwrite")
        assert refused.exit_code == 2 and "so no certificate would count them" in refused.stderr, refused.output
        assert released() == 2
