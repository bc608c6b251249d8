"""Cases are chosen by codes and chance alone, one a patient; what the gate withholds is replaced and counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_gate import toy_gate, toy_images, toy_network

from monai_anon.channel import RESPONSE
from monai_anon.cohort import Cohort
from monai_anon.explaining import cases
from monai_anon.explaining.cases import Archive, CasesError, encode_archive, release_cases, require, retrieve
from monai_anon.explaining.counterfactuals import Draws
from monai_anon.gate import Decision, Gate, Reason
from monai_anon.gated_release import GatedBatch, OriginalCheck
from monai_anon.manifest import Manifest
from monai_anon.originals import Original
from monai_anon.readers import to_uint8


def archive_of(medical, finding, patient):
    medical = torch.as_tensor(medical, dtype=torch.float32).reshape(len(finding), -1)
    probabilities = torch.nn.functional.one_hot(torch.as_tensor(finding), 2).float()
    return Archive([], [], torch.as_tensor(patient), medical, probabilities, torch.zeros(len(finding), RESPONSE))


def nearest(archive, seed=0, rows=None, **settings):
    rows = np.arange(len(archive.patient)) if rows is None else rows
    ends = torch.tensor([[0.0]]), torch.tensor([[10.0]])
    return retrieve(archive, *ends, 0, np.random.default_rng(seed), rows, **settings)


def random_archive(images=200, patients=60, seed=0):
    draw = np.random.default_rng(seed)
    finding = draw.integers(0, 2, images)
    return archive_of(draw.integers(0, 4, images) + 10.0 * finding, finding, draw.integers(0, patients, images))


def test_lists_are_of_their_finding_from_the_nearest_on_and_no_patient_occurs_twice():
    archive = random_archive()
    similar, other = nearest(archive)
    assert (archive.probabilities.argmax(1)[similar] == 0).all() and (archive.probabilities.argmax(1)[other] == 1).all()
    assert (archive.medical[similar, 0].diff() >= 0).all() and (archive.medical[other, 0].diff() >= 0).all()
    people = archive.patient[similar + other]
    assert len(people.unique()) == len(people) == len(archive.patient.unique())
    assert abs(len(similar) - len(other)) <= 8


def test_a_patient_is_shown_by_his_nearest_image_of_his_list():
    archive = random_archive()
    for rows, finding, start in zip(nearest(archive), (0, 1), (0.0, 10.0)):
        for row in rows:
            own = (archive.patient == archive.patient[row]) & (archive.probabilities.argmax(1) == finding)
            assert archive.medical[row, 0] - start == (archive.medical[own, 0] - start).min()


def test_a_patient_of_one_finding_is_in_its_list_however_the_lots_fall():
    for seed in range(8):
        similar, other = nearest(archive_of([0, 1, 10, 11], [0, 0, 1, 1], [0, 0, 1, 1]), seed)
        assert (similar, other) == ([0], [2])


def test_half_of_the_patients_are_candidates_for_each_list_whatever_their_images_show():
    archive = archive_of([3, 10] * 40, [0, 1] * 40, [number // 2 for number in range(80)])
    assert [len(rows) for rows in nearest(archive)] == [20, 20]


def test_among_equals_chance_decides_and_not_the_order_of_the_manifest():
    archive = archive_of([0] * 40, [0] * 40, range(40))
    orders = [nearest(archive, seed)[0] for seed in range(3)]
    assert orders[0] != orders[1] != orders[2] and all(sorted(order) == list(range(40)) for order in orders)
    assert nearest(archive, 2)[0] == orders[2]


def test_without_a_patient_the_others_stay_as_they_are():
    archive = random_archive()
    similar, other = nearest(archive)
    gone = archive.patient[similar[0]]
    without = nearest(archive, rows=archive.without(gone[None]))
    assert without == (similar[1:], other)


def test_with_one_image_a_patient_no_other_image_is_looked_at():
    archive = random_archive()
    similar, other = nearest(archive, one_image=True)
    chosen = {int(archive.patient[row]): row for row in similar + other}
    assert len(chosen) == len(archive.patient.unique())
    for row in range(len(archive.patient)):
        if row not in chosen.values():  # what the others show changes nothing
            archive.probabilities[row] = archive.probabilities[row].flip(0)
            archive.medical[row] = 0.0
    assert nearest(archive, one_image=True) == (similar, other)


# ---- reading ----


@pytest.fixture(scope="module")
def network():
    return toy_network()


def read(network, images=40, patients=10, query=None, query_path=None, classes=("a", "b")):
    pixels = to_uint8(toy_images(images))
    names = [f"p{number % patients}" for number in range(images)]
    entries = [{"image": f"{n}.png", "patient": name, "finding": n % 2} for n, name in enumerate(names)]
    _, codes = np.unique(names, return_inverse=True)
    cut = images // 2
    cohorts = [
        Cohort(pixels[part], torch.as_tensor(codes[part]), torch.arange(images)[part] % 2, entries[part], ["a", "b"])
        for part in (slice(cut), slice(cut, None))
    ]
    manifest = Manifest(Path("data/manifest.json"), list(classes), {})
    return encode_archive(network, manifest, cohorts, query, query_path, progress=False)


def original(pixels):
    return Original(pixels, 4, 8, True, 255, np.uint8)


def test_the_archive_holds_what_passes_of_each_image_over_all_parts(network):
    archive, own = read(network)
    prototypes = network.channel.codebook.latent(torch.arange(8), 2)
    assert archive.medical.shape == (40, 4) and len(own) == 0 and len(archive.patient.unique()) == 10
    assert all(float((prototypes - row).abs().sum(1).min()) < 1e-5 for row in archive.medical)
    assert torch.equal(archive.pixels([3, 35, 19, 20]), to_uint8(toy_images(40))[[3, 35, 19, 20]])
    assert "10 patients" in repr(archive) and "p1" not in repr(archive)


def test_the_querys_patient_is_known_by_its_pixels_or_its_file(network):
    expected = read(network)[0].patient[33]
    assert read(network, query=original(to_uint8(toy_images(40))[33]))[1].tolist() == [expected]
    assert read(network, query_path=Path("data/33.png"))[1].tolist() == [expected]
    stranger = original(to_uint8(toy_images(1, seed=77))[0])
    assert read(network, query=stranger, query_path=Path("33.png"))[1].tolist() == []


def test_a_manifest_of_other_findings_is_refused(network):
    with pytest.raises(CasesError, match="3 classes and the model tells 2"):
        read(network, classes=("a", "b", "c"))


# ---- through the gate ----


def released(network, archive, ordered, count, refuse=(), monkeypatch=None, **settings):
    """`release_cases`, with a gate that withholds some rows of the archive."""
    seen = []

    def through(gate, network, images, noise, tries, check, known):
        result = []
        for image in images:
            row = int((archive.pixels(range(len(archive.patient))) == to_uint8(image)).flatten(1).all(1).nonzero()[0])
            seen.append(row)
            result.append(Decision((Reason.NEAR_ORIGINAL,) if row in refuse else ()))
        return GatedBatch(to_uint8(images), result)

    monkeypatch.setattr(cases, "anonymise_through", through)
    found = release_cases(None, network, archive, ordered, count, Draws(0, network.noise_size), **settings)
    return found, seen


def test_what_is_withheld_is_replaced_by_the_next_and_counted(network, monkeypatch):
    archive, _ = read(network, 40, 40)
    found, seen = released(network, archive, [5, 8, 2, 9, 1, 7], 3, {8, 9}, monkeypatch)
    assert found.rows == [5, 2, 1] and found.withheld == 2 and found.pixels.shape == (3, 1, 4, 8)
    assert seen == [5, 8, 2, 9, 1], "nobody beyond them is looked at"


def test_where_too_few_pass_nothing_is_given(network, monkeypatch):
    archive, _ = read(network, 40, 40)
    with pytest.raises(CasesError, match="1 of 3 cases pass the gate, 2 are withheld, and 2 are asked for"):
        released(network, archive, [5, 8, 2], 2, {8, 2}, monkeypatch)
    with pytest.raises(CasesError, match="3 patients could be shown"):
        require([1, 2, 3], 4, "a finding")


def test_an_image_that_may_hold_text_is_withheld_where_asked(network, monkeypatch):
    archive, _ = read(network, 40, 40)
    monkeypatch.setattr(cases, "_may_hold_text", lambda path: path.name == "8.png")
    assert released(network, archive, [8, 2], 1, (), monkeypatch, refuse_text=True)[0][::2] == ([2], 1)
    assert released(network, archive, [8, 2], 1, (), monkeypatch)[0][::2] == ([8], 0)


def test_a_case_is_the_release_of_its_own_image_far_from_every_image_of_its_patient(network):
    archive, _ = read(network, 60, 20)
    gate = toy_gate(network)
    asked = []

    def compare(pixels, originals):
        asked.extend(originals)
        return Gate.compare(gate, pixels, originals)

    gate.compare = compare
    order = list(range(20))
    found = release_cases(gate, network, archive, order, 6, Draws(0, network.noise_size), check=OriginalCheck.VETO)
    assert all(len(known) == 3 for known in asked) and len(found.rows) == 6
    assert found.rows == sorted(found.rows) and found.withheld == found.rows[-1] + 1 - 6
    read_medical = network.disentangler.encode(found.pixels.float() / 127.5 - 1).medical
    assert torch.allclose(read_medical, archive.medical[found.rows], atol=0.1)


def test_the_image_of_a_case_does_not_depend_on_the_other_cases(network):
    archive, _ = read(network, 60, 60)
    gate, draws = toy_gate(network), Draws(0, network.noise_size)
    alone = [release_cases(gate, network, archive, [row, *range(40, 60)], 1, draws) for row in range(5)]
    together = release_cases(gate, network, archive, list(range(60)), 5, draws)
    for one in alone:
        if one.rows[0] in together.rows:
            assert torch.equal(one.pixels[0], together.pixels[together.rows.index(one.rows[0])])
    assert sum(one.rows[0] in together.rows for one in alone) >= 3
