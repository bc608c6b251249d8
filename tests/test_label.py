import base64
import json
import logging

import numpy as np
import pytest
from PIL import Image
from toy_gate import toy_comparators
from toy_label import KEY, SIDE, deaf, square_images, square_network, toy_tasks, write_archive, write_png

from monai_anon.explaining.counterfactuals import UncheckedGate
from monai_anon.gate import Gate
from monai_anon.integrations.label import Settings, Withheld
from monai_anon.integrations.label_requests import RequestError
from monai_anon.jobs import Naming, plan_files
from monai_anon.keys import Key


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def tasks(archive):
    return toy_tasks(archive)


@pytest.fixture
def image(tmp_path):
    return write_png(tmp_path / "Plant^Quirin.png", square_images(1, seed=11)[0])


def opened(answer, path):
    path.write_bytes(answer.content)
    return np.asarray(Image.open(path))


def test_a_copy_is_another_picture_that_says_its_bound(tasks, image, tmp_path):
    answer = tasks.answer("anonymize", image, {})
    copy = opened(answer, tmp_path / "copy.png")
    assert answer.suffix == ".png"
    assert copy.shape == (SIDE, SIDE)
    assert not np.array_equal(copy, np.asarray(Image.open(image)))
    assert answer.params["bits"] == round(np.log2(8 + 1), 3)
    assert answer.params["gate"] is True


def test_the_same_question_has_the_same_answer_under_one_key_only(tasks, image):
    first = tasks.answer("anonymize", image, {}).content
    assert tasks.answer("anonymize", image, {}).content == first
    assert toy_tasks().answer("anonymize", image, {}).content == first
    assert toy_tasks(key=Key(bytes(32))).answer("anonymize", image, {}).content != first


def test_what_the_gate_refuses_is_withheld_without_a_reason(image, caplog):
    network = square_network()
    shut = toy_tasks(gate=deaf(Gate(network, toy_comparators(network))))
    with caplog.at_level(logging.INFO, "monai_anon"):
        for task in ("anonymize", "counterfactual"):
            with pytest.raises(Withheld) as error:
                shut.answer(task, image, {})
            assert str(error.value) == "withheld: the privacy gate let no image pass"
    assert "near a training patient" in caplog.text
    assert "Plant" not in caplog.text


def test_without_a_gate_it_says_so(image):
    answer = toy_tasks(gate=UncheckedGate(square_network())).answer("anonymize", image, {})
    assert answer.params["gate"] is False


def test_a_counterfactual_is_a_strip_from_one_finding_to_another(tasks, image, tmp_path):
    answer = tasks.answer("counterfactual", image, {"steps": 4})
    assert opened(answer, tmp_path / "strip.png").shape == (SIDE, 4 * SIDE)
    assert answer.params["finding"] != answer.params["to"]
    assert len(answer.params["probabilities"]) == 4


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"steps": 1}, "steps must be a whole number from 2 to 16"),
        ({"steps": True}, "steps must be"),
        ({"to": 7}, "the model's findings are 0 to 1"),
        ({"to": "Plant"}, "to must be a whole number"),
    ],
)
def test_a_counterfactual_out_of_range_is_refused(tasks, image, params, words):
    with pytest.raises(RequestError, match=words):
        tasks.answer("counterfactual", image, params)


def test_cases_are_named_as_a_release_with_the_same_key_names_them(tasks, image, archive):
    answer = tasks.answer("retrieve", image, {"k": 3})
    cases = answer.params["cases"]
    copies = plan_files([archive.parent], archive.parent.parent / "out", naming=Naming(KEY, "keyed")).jobs
    known = {copy.target.stem for copy in copies}
    assert answer.content is None
    assert [case["list"] for case in cases] == ["similar"] * 3 + ["other finding"] * 3
    assert {case["id"] for case in cases} <= known
    assert len({case["id"] for case in cases}) == 6
    assert all((case["finding"] == answer.params["finding"]) == (case["list"] == "similar") for case in cases)
    assert "Plant" not in json.dumps(answer.params)
    assert "Q1" not in json.dumps(answer.params)


def test_cases_with_images_show_none_of_the_archives(tasks, image, archive, tmp_path):
    originals = {path.read_bytes() for path in (archive.parent / "images").iterdir()}
    pixels = {np.asarray(Image.open(path)).tobytes() for path in (archive.parent / "images").iterdir()}
    for case in tasks.answer("retrieve", image, {"k": 3, "images": True}).params["cases"]:
        content = base64.b64decode(case["image"])
        (tmp_path / "case.png").write_bytes(content)
        assert content not in originals
        assert np.asarray(Image.open(tmp_path / "case.png")).tobytes() not in pixels


def test_a_patient_is_no_case_of_his_own_image(tasks, archive):
    for number in (0, 1):
        own = archive.parent / f"images/Plant^Quirin_{number}.png"
        ids = {case["id"] for case in tasks.answer("retrieve", own, {"k": 6}).params["cases"]}
        assert KEY.name("file", own.relative_to(archive.parent).as_posix()) not in ids


@pytest.mark.parametrize(("params", "words"), [({"k": 0}, "from 1 to 50"), ({"k": 50}, "not 50 cases of each kind")])
def test_more_cases_than_there_are_are_refused(tasks, image, params, words):
    with pytest.raises(RequestError, match=words):
        tasks.answer("retrieve", image, params)


def test_without_an_archive_nothing_is_retrieved(image):
    with pytest.raises(RequestError, match="no archive"):
        toy_tasks().answer("retrieve", image, {})


def test_a_file_that_is_no_image_is_refused_without_its_name(tasks, tmp_path):
    for content in (b"", b"no image at all", b"\x89PNG\r\n\x1a\nPlant^Quirin"):
        broken = tmp_path / "Plant^Quirin.png"
        broken.write_bytes(content)
        with pytest.raises(RequestError, match="the image cannot be used") as error:
            tasks.answer("anonymize", broken, {})
        assert "Plant" not in str(error.value)


def test_an_unknown_task_is_refused(tasks, image):
    with pytest.raises(RequestError, match="anonymize, counterfactual, retrieve") as error:
        tasks.answer("segment", image, {})
    assert error.value.status == 404


def test_a_randomised_response_is_refused():
    with pytest.raises(ValueError, match="epsilon must be off"):
        toy_tasks(epsilon=3.0)


def test_a_dicom_file_gives_a_dicom_file_of_nobody(tasks, tmp_path):
    from dicom_files import found_in, planted_header, write_dicom

    pixels = square_images(1, seed=11)[0]
    path = write_dicom(tmp_path / "one.dcm", pixels, header=planted_header())
    answer = tasks.answer("anonymize", path, {})
    assert answer.suffix == ".dcm"
    assert not found_in(answer.content)
    assert pixels.tobytes() not in answer.content


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no gate"),
        ({"no_gate": "true", "site": "SITE"}, "--no-gate goes without"),
        ({"no_gate": "yes"}, "must be true or false"),
        ({"sites": "SITE"}, "did you mean site"),
        ({"no_gate": "true", "weights": "x"}, "no such setting"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Settings.read(given)


def test_settings_are_read():
    found = Settings.read({"site": "SITE", "serve_originals": "TRUE", "origins": "http://viewer.example"})
    assert (found.site, found.serve_originals, found.no_gate, found.bundle) == ("SITE", True, False, "bundles/chest")
    assert found.origins == "http://viewer.example"
