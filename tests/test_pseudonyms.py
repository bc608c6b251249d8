"""Whose image is whose: by headers, tables, manifests; as digests that only a key makes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from dicom_files import write_dicom
from PIL import Image

from monai_anon.dicom import read_header
from monai_anon.jobs import Naming, Plan, plan_files
from monai_anon.keys import Key
from monai_anon.pseudonyms import TOO_MANY, group, images_a_patient, patient_finder

KEY = Key(b"k" * 32)


def grouped(folder: Path, source: str | None = None, header: str = "groups", key: Key = KEY, **options) -> Plan:
    plan = plan_files([folder], folder.parent / "out", naming=Naming(key))
    group(plan, patient_finder(source, key), True, header, **options)
    return plan


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, tags in {
        "a": {"PatientID": "PLANTQ"}, "b": {"PatientID": "PLANTQ"},
        "c": {"PatientID": "PLANTQ", "IssuerOfPatientID": "x"},
        "d": {"StudyInstanceUID": "1.2.3"}, "e": {"StudyInstanceUID": "1.2.3"}, "f": {"StudyInstanceUID": "1.2.4"},
    }.items():  # fmt: skip
        write_dicom(folder / f"{name}.dcm", SOPInstanceUID=f"1.2.9.{ord(name)}", **tags)
    Image.effect_noise((8, 8), 50).save(folder / "g.png")
    (folder / "h.dcm").write_text("PLANTQ no DICOM")
    return folder


def test_headers_tell_by_issuer_and_id_or_by_the_study_and_nothing_tells_of_pictures(archive: Path) -> None:
    plan = grouped(archive)
    jobs = {job.name[0]: job for job in plan.jobs}
    who = {name: job.patient for name, job in jobs.items()}
    assert who["a"] == who["b"] and who["d"] == who["e"] and who["g"] == ""
    assert [(one.path.name, one.reason) for one in plan.refusals] == [("h.dcm", "is no DICOM file")]
    assert len({who[name] for name in "acdf"}) == 4
    assert all(job.identity == job.patient for job in jobs.values())
    assert images_a_patient(list(jobs.values())) == {1: 3, 2: 2}
    other = {job.name[0]: job.patient for job in grouped(archive, key=Key(b"o" * 32)).jobs}
    assert not {*who.values()} & {*other.values()} - {""} and "PLANTQ" not in str(who)


def test_a_file_whose_header_cannot_be_read_just_then_is_nobodys_and_not_released(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not be counted with its patient's others, and could be read when its turn comes."""

    def read(path: Path, name: str) -> object:
        if path.name == "b.dcm":
            raise OSError(errno.EIO, "Input/output error")
        return read_header(path, name)

    monkeypatch.setattr("monai_anon.pseudonyms.read_header", read)
    plan = grouped(archive)
    reasons = {refusal.path.name: refusal.reason for refusal in plan.refusals}
    assert reasons.pop("h.dcm") == "is no DICOM file"
    assert reasons == {"b.dcm": "its header, which tells the patient, cannot be read (Input/output error)"}
    assert {job.name for job in plan.beyond} == {"b.dcm", "h.dcm"}  # what an earlier run made of them is taken away
    assert "b" not in {job.name[0] for job in plan.jobs}


def test_a_header_that_is_to_tell_no_groups_gets_no_shared_identity_but_is_counted(archive: Path) -> None:
    plan = grouped(archive, header="none", most=1)
    assert {job.identity for job in plan.jobs} == {""}
    withheld = {refusal.path.name: refusal.withheld for refusal in plan.refusals}
    assert withheld == {"b.dcm": (TOO_MANY,), "e.dcm": (TOO_MANY,), "h.dcm": ()} and len(plan.beyond) == 3


@pytest.mark.parametrize("form", ["manifest", "folder", "table"])
def test_a_manifest_or_a_table_tells_and_what_it_does_not_name_is_refused(tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.effect_noise((8, 8), 50).save(tmp_path / "in" / f"{name}.png")
    entries = [{"image": f"in/{name}.png", "patient": "PLANTQ", "finding": 0} for name in "ab"]
    source = tmp_path / ("table.csv" if form == "table" else "manifest.json")
    if form == "table":
        source.write_text("\ufeffpatient,image\nPLANTQ,in/a.png\nPLANTQ, in/b.png\n", encoding="utf-8")
    else:
        source.write_text(json.dumps({"training": entries, "validation": [], "test": [], "classes": ["x", "y"]}))
    plan = grouped(tmp_path / "in", str(tmp_path if form == "folder" else source))
    assert len({job.patient for job in plan.jobs}) == 1 and len(plan.jobs) == 2
    assert [(refusal.path.name, refusal.reason) for refusal in plan.refusals] == [
        ("c.png", "--patients names no patient of it")
    ]
