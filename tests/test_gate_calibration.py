"""Thresholds have the stated share among strangers, are refused where too few people are, and come back from a file."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from monai_anon.gallery_search import SearchableGallery, unit
from monai_anon.gate_calibration import Calibration, CalibrationError, calibrate, least_patients
from monai_anon.identities import Gallery


def people(count, images=2, size=6, seed=0):
    """Vectors of people whose images differ a little, and their codes."""
    generator = torch.Generator().manual_seed(seed)
    patient = torch.arange(count).repeat_interleave(images)
    person = torch.randn(count, size, generator=generator)
    return person[patient] + 0.1 * torch.randn(len(patient), size, generator=generator), patient


@pytest.fixture
def gallery():
    return SearchableGallery.of(Gallery(*people(200, seed=9)), "aa")


def test_shares_of_strangers_are_the_stated_ones(gallery):
    vectors, patient = people(60)
    found = calibrate(vectors, patient + 500, gallery, 0.05)
    similarity, different = unit(vectors) @ unit(vectors).T, patient[:, None] != patient
    shares = {
        "original": (similarity[different] >= found.original.similarity).double().mean(),
        "training": (gallery.nearest(vectors) >= found.training.similarity).double().mean(),
    }
    for name, share in shares.items():
        threshold = getattr(found, name)
        assert 0.045 < float(share) <= 0.05 and threshold.share == pytest.approx(float(share), abs=1e-6)
        assert threshold.low < threshold.share < threshold.high and threshold.patients == 60 and threshold.rate == 0.05
    assert (found.original.observations, found.training.observations) == (60 * 59 * 2, 120)
    assert found.encoder == "aa" and found.gallery == gallery.digest()


def test_the_nearest_of_many_needs_a_higher_threshold_than_one_pair(gallery):
    found = calibrate(*people(60), gallery, 0.05)
    assert found.training.similarity > found.original.similarity + 0.05
    nearest = gallery.nearest(people(60, seed=3)[0])
    assert (nearest >= found.original.similarity).float().mean() > 0.5  # nearly everybody is like somebody


def test_one_person_is_caught_by_the_pair_threshold(gallery):
    assert calibrate(*people(60), gallery, 0.05).original.caught > 0.95
    assert calibrate(*people(60, images=1), gallery, 0.05).original.caught is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_as_many_people_as_clopper_and_pearson_ask_for(rate):
    most = least_patients(rate)
    assert beta.ppf(0.95, 1, most) <= rate < beta.ppf(0.95, 1, most - 1)


def test_too_few_people_are_refused_with_the_rate_that_they_can_tell(gallery):
    vectors, patient = people(58)
    with pytest.raises(
        CalibrationError, match=r"58 people are held out.*takes 59 or more.*can tell is 0.0504"
    ) as error:
        calibrate(vectors, patient, gallery, 0.05)
    calibrate(vectors, patient, gallery, float(str(error.value).split()[-1]))
    for rate in (0, 0.5, math.nan):
        with pytest.raises(CalibrationError, match="above 0 and below"):
            calibrate(vectors, patient, gallery, rate)


def test_images_of_the_gallery_are_not_held_out(gallery):
    vectors, patient = people(60)
    vectors[3] = 7 * gallery.vectors[11]
    with pytest.raises(CalibrationError, match="in the gallery"):
        calibrate(vectors, patient, gallery, 0.05)
    vectors[3] = torch.nan
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(vectors, patient, gallery, 0.05)


def test_of_very_many_images_whole_people_are_taken(gallery, monkeypatch):
    monkeypatch.setattr("monai_anon.gate_calibration._MOST_IMAGES", 151)
    found = calibrate(*people(100), gallery, 0.05)
    assert found.training.observations == 150 and found.training.patients == 75


def test_of_very_many_images_a_person_enough_people_are_left_for_the_rate(gallery, monkeypatch):
    monkeypatch.setattr("monai_anon.gate_calibration._MOST_IMAGES", 150)
    found = calibrate(*people(60, images=10), gallery, 0.05)  # 15 people with all of their images would tell no 5 %
    assert found.training.patients == found.original.patients == 60
    assert found.training.observations == 120 and found.original.caught is not None


def test_a_rate_that_takes_more_people_than_are_looked_at_is_refused(gallery, monkeypatch):
    monkeypatch.setattr("monai_anon.gate_calibration._MOST_IMAGES", 50)
    with pytest.raises(CalibrationError, match=r"50 people are looked at, at most; a rate of 0\.05 takes 59"):
        calibrate(*people(100), gallery, 0.05)


def test_a_file_comes_back_and_holds_no_codes(gallery, tmp_path):
    found = calibrate(*people(60), gallery, 0.05)
    path = found.write(tmp_path / "calibration.json")
    assert Calibration.read(path) == found
    text = path.read_text()
    assert text.count("[") == 0 and np.float32(found.original.similarity) == found.original.similarity
    for damaged in (
        text[:-9],
        "[]",
        text.replace('"share"', '"part"'),
        text.replace(str(found.original.similarity), "NaN"),
        text.replace(str(found.training.similarity), "1.5"),
    ):
        path.write_text(damaged)
        with pytest.raises(CalibrationError):
            Calibration.read(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        Calibration.read(tmp_path / "none.json")
