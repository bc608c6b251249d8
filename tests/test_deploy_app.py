"""The MONAI Deploy application end to end, in its own environment, on generated radiographs (`make test-deploy`).

Prints what docs/deploy.md states: size of the environment, start, memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

PYTHON = os.environ.get("DEPLOY_PYTHON", "")
if not PYTHON:
    pytest.skip("the MONAI Deploy app is tested by `make test-deploy`", allow_module_level=True)

import pydicom  # noqa: E402
from app_site import write_site  # noqa: E402
from dicom_files import found_in, planted_header, write_dicom  # noqa: E402

from monai_anon.keys import Key, write_key  # noqa: E402
from monai_anon.phantoms import chest  # noqa: E402

IMAGES = 4
Ended = subprocess.CompletedProcess


def command(*words: object, python: str = sys.executable, **environment: str) -> Ended:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MONAI_ANON_")}
    clean |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **environment}
    line = [python, *map(str, words)]
    return subprocess.run(line, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=1800, check=False)


def anonymised(*words: object) -> Ended:
    ended = command("-m", "monai_anon", *words)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported model, a key, and `in`: radiographs of two kinds, a CT image, text, a broken file."""
    folder = tmp_path_factory.mktemp("deploy")
    anonymised("export", "--format", "torchscript", "--output", folder)
    (folder / "in" / "Plant^Quirin").mkdir(parents=True)
    pixels = chest.render(chest.sample_factors(5, images=(IMAGES, 0, 0), patients=(2, 0, 0)), 64)
    for number, image in enumerate(np.asarray(pixels)):
        header = planted_header()
        names = {"SOPInstanceUID": f"1.2.3.4444.5555.{number}", "SeriesInstanceUID": f"1.2.3.4444.5555.9{number}"}
        names |= {"StudyInstanceUID": "1.2.3.4444.5555.8", "Modality": ("DX", "CR")[number % 2]}
        write_dicom(folder / "in" / "Plant^Quirin" / f"{number}.dcm", np.repeat(image, 2, 1), header=header, **names)
    names |= {"SOPInstanceUID": "1.2.3.4444.5555.77", "SeriesInstanceUID": "1.2.3.4444.5555.78", "Modality": "CT"}
    write_dicom(folder / "in" / "ct.dcm", np.asarray(pixels[0]), header=planted_header(), **names)
    (folder / "in" / "notes.txt").write_text("Plant^Quirin")
    (folder / "in" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"PLANTQ")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Callable[..., Ended]:
    def started(name: str, **environment: str) -> Ended:
        options = ("-i", place / "in", "-o", place / name, "-m", place / "model.ts")
        (place / name).mkdir(exist_ok=True)
        ended = command("-m", "monai_anon.integrations.deploy", *options, python=PYTHON, **environment)
        assert found_in((ended.stdout + ended.stderr).encode()) == []
        return ended

    return started


def measured(run: Callable[[], Ended]) -> tuple[Ended, float]:
    start = time.monotonic()
    return run(), time.monotonic() - start


def test_without_a_gate_copies_equal_the_commands(place: Path, run: Callable[..., Ended]) -> None:
    """Header by header, and pixels within one gray level of 255; other kinds of images are left out."""
    key = place / "site.key"
    made = command(
        "-m", "monai_anon", "anonymize", place / "in", place / "cli", "--no-gate", "--key", key, "--make-key"
    )
    assert made.returncode == 1 and "wrote 5 of 6" in made.stdout, made.stderr  # but for the broken file
    ended, seconds = measured(lambda: run("app", MONAI_ANON_GATE="off", MONAI_ANON_KEY=str(key)))
    assert ended.returncode == 0, ended.stderr
    assert f"wrote {IMAGES} of {IMAGES} radiographs" in ended.stdout
    assert "no privacy gate" in ended.stderr and "left out: 2 file(s)" in ended.stderr
    copies = sorted((place / "app").glob("*.dcm"))
    assert len(copies) == IMAGES
    for file in copies:
        assert found_in(file.read_bytes()) == []
        ours, theirs = pydicom.dcmread(file), pydicom.dcmread(place / "cli" / file.name)
        assert ours.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7" and ours.PatientIdentityRemoved == "YES"
        assert (ours.Rows, ours.Columns, ours.BitsStored) == (64, 64, 8) and ours.pixel_array.std() > 5
        assert np.abs(ours.pixel_array.astype(int) - theirs.pixel_array).max() <= 1
        for element in ours:
            if element.keyword not in ("PixelData", "SOPInstanceUID"):  # an instance's UID hangs on its pixels
                assert theirs[element.tag] == element, element.keyword
    disk = subprocess.run(["du", "-sm", str(Path(PYTHON).parents[1])], capture_output=True, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nenvironment {disk.stdout.split()[0]} MB; {IMAGES} images in {seconds:.0f} s; {peak:.0f} MB of memory")


def test_through_a_sites_gate(place: Path, run: Callable[..., Ended]) -> None:
    """Released or withheld, each with its reason; and nothing at all where a file of the site is missing."""
    _, site = write_site(place, 0.02)
    key = place / "gate.key"
    write_key(Key(bytes(range(32))), key)
    ended = run("gated", MONAI_ANON_SITE=str(site), MONAI_ANON_KEY=str(key))
    count = len(list((place / "gated").glob("*.dcm")))
    command("-m", "monai_anon", "anonymize", place / "in", place / "cli_gated", "--site", site, "--key", key)
    theirs = {file.name: pydicom.dcmread(file).pixel_array.astype(int) for file in (place / "cli_gated").glob("*.dcm")}
    ours = {file.name: pydicom.dcmread(file).pixel_array for file in (place / "gated").glob("*.dcm")}
    assert set(ours) <= set(theirs) and all(np.abs(ours[name] - theirs[name]).max() <= 1 for name in ours)
    assert count > 0 and ended.stdout.strip().endswith(f"wrote {count} of {IMAGES} radiographs to {place}/gated")
    assert ended.stderr.count("withheld: ") == IMAGES - count
    lines = (place / "gated" / "statements.jsonl").read_text().splitlines()
    assert len(lines) == count and {json.loads(line)["bits"] for line in lines} == {3.17}
    (site / "calibration_model.json").unlink()
    ended = run("closed", MONAI_ANON_SITE=str(site))
    assert ended.returncode == 1 and f"wrote 0 of {IMAGES}" in ended.stdout
    assert ended.stderr.count("withheld: no thresholds") + ended.stderr.count("withheld: no gallery") == IMAGES
    assert list((place / "closed").iterdir()) == []


def test_without_a_word_on_the_gate_it_does_not_start(place: Path, run: Callable[..., Ended]) -> None:
    ended = run("none")
    assert ended.returncode == 2 and "Error: MONAI_ANON_SITE is not set" in ended.stderr
    assert list((place / "none").iterdir()) == []
