"""What is planted is found, what cannot be checked is withheld, and one image does not take the others along."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy_gate import ToyDecoder, toy_comparators, toy_gate, toy_images, toy_network

from monai_anon.datasets import file_digest
from monai_anon.gate import CALIBRATION, GALLERY, Comparator, Decision, Gate, Reason, read_gate, written
from monai_anon.readers import to_model_range

SEED = 2  # of draws none of which is like its original by chance, as one of fifty is


@pytest.fixture(scope="module")
def network():
    return toy_network()


@pytest.fixture(scope="module")
def gate(network):
    return toy_gate(network)


@pytest.fixture
def drawn(network):
    """Six draws that pass, with their probabilities and the originals: (Latents, (6, 2), images)."""
    images = toy_images(6)
    noise = torch.randn(6, network.noise_size, generator=torch.Generator().manual_seed(SEED))
    latents = network.drawn(network.disentangler.encode(images), noise)
    return latents, network.disentangler.classify(latents.medical).softmax(1), images


def inspect(gate, latents, meant):
    return gate.inspect(ToyDecoder()(latents), meant)


def compare(gate, latents, originals):
    return gate.compare(written(ToyDecoder()(latents)), [image[None] for image in originals])


def with_row(tensor, row, value):
    changed = tensor.clone()
    changed[row] = value
    return changed


def reasons(decisions):
    return [decision.reasons for decision in decisions]


# ---- What is planted ----


def test_nobody_passes_with_numbers_of_both_comparators(gate, drawn):
    latents, meant, images = drawn
    for decision in inspect(gate, latents, meant):
        assert decision.released and decision.training.keys() == {"model", "verifier"}
        assert decision.change["drawn"] < 0.2
    for decision in compare(gate, latents, images):
        assert decision.reasons in ((), (Reason.NOT_KEPT,)) and decision.original.keys() == {"model", "verifier"}


@pytest.mark.parametrize("name", ["model", "verifier"])
def test_a_training_patients_identity_is_caught_by_each_comparator(network, drawn, name):
    latents, meant, _ = drawn
    one = Gate(network, [found for found in toy_comparators(network) if found.name == name])
    training = network.disentangler.encode(toy_images(300, seed=1)).identity
    planted = latents._replace(identity=with_row(latents.identity, 2, training[77]))
    assert reasons(inspect(one, planted, meant)) == [(), (), (Reason.NEAR_TRAINING,), (), (), ()]


@pytest.mark.parametrize("name", ["model", "verifier"])
def test_the_originals_identity_is_caught_by_each_comparator(network, drawn, name):
    latents, meant, images = drawn
    one = Gate(network, [found for found in toy_comparators(network) if found.name == name], tolerance=1)
    own = network.disentangler.encode(images).identity[4]
    planted = latents._replace(identity=with_row(latents.identity, 4, own))
    assert inspect(one, planted, meant)[4].released  # nobody of the training
    found = compare(one, planted, images)
    assert reasons(found) == [(), (), (), (), (Reason.NEAR_ORIGINAL,), ()] and found[4].original[name] > 0.99


def test_another_image_of_the_originals_patient_is_caught_as_well(network, gate, drawn):
    latents, _, images = drawn
    others = ToyDecoder()(latents)[:1].repeat(2, 1, 1, 1)  # the draw itself is taken for a third image of the patient
    pixels = written(ToyDecoder()(latents))[:2]
    first, second = gate.compare(pixels, [torch.cat([images[:1], images[1:2], others]), images[1:2]])
    assert Reason.NEAR_ORIGINAL in first.reasons and Reason.NEAR_ORIGINAL not in second.reasons


def test_another_finding_and_another_probability_are_caught(network, drawn):
    latents, meant, images = drawn
    gate = Gate(network, toy_comparators(network), tolerance=0.2)
    other = latents._replace(medical=with_row(latents.medical, 1, latents.medical[2]))
    assert reasons(inspect(gate, other, meant))[:2] == [(), (Reason.NOT_AS_DRAWN,)]
    assert Reason.NOT_KEPT in compare(gate, other, images)[1].reasons
    unsure = meant.clone()
    unsure[3] = torch.tensor([0.3, 0.7])
    assert reasons(inspect(gate, latents, unsure))[2:4] == [(), (Reason.NOT_AS_DRAWN,)]
    assert all(
        decision.released
        for decision in inspect(Gate(network, toy_comparators(network), tolerance=0.4), latents, unsure)
    )


def test_the_medical_judge_has_a_say(network, drawn):
    latents, meant, images = drawn

    def reading(batch, flipped=()):
        probabilities = network.disentangler.classify(network.disentangler.encode(batch).medical).softmax(1)
        for row in flipped:
            probabilities[row] = probabilities[row].flip(0)
        return probabilities.numpy(), None, None

    comparators = toy_comparators(network)
    agrees = Gate(network, comparators, SimpleNamespace(read=reading), tolerance=1)
    assert all(d.released for d in [*inspect(agrees, latents, meant), *compare(agrees, latents, images)])
    other = Gate(network, comparators, SimpleNamespace(read=lambda batch: reading(batch, [3])), tolerance=1)
    assert reasons(inspect(other, latents, meant))[2:4] == [(), (Reason.NOT_AS_DRAWN,)]
    originals = written(images)
    once = Gate(
        network,
        comparators,
        SimpleNamespace(read=lambda batch: reading(batch, [3] if torch.equal(written(batch), originals) else [])),
        tolerance=1,
    )
    assert reasons(compare(once, latents, images))[2:4] == [(), (Reason.NOT_KEPT,)]


# ---- What cannot be checked ----


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.nan, Reason.NOT_FINITE),
        (torch.inf, Reason.NOT_FINITE),
        (1.1, Reason.OUT_OF_RANGE),
        (-1.1, Reason.OUT_OF_RANGE),
    ],
)
def test_one_bad_pixel_withholds_its_image_alone(gate, drawn, value, reason):
    latents, meant, _ = drawn
    generated = ToyDecoder()(latents)
    before = gate.inspect(generated, meant)
    generated[3, 0, 1, 2] = value
    after = gate.inspect(generated, meant)
    assert reason in after[3].reasons and not after[3].released
    assert after[:3] + after[4:] == before[:3] + before[4:]


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0, torch.nan])
def test_a_constant_image_is_withheld(gate, drawn, value):
    latents, meant, _ = drawn
    generated = with_row(ToyDecoder()(latents), 0, value)
    generated[0, 0, 0, 0] += 1e-4  # gone after rounding
    assert Reason.CONSTANT in gate.inspect(generated, meant)[0].reasons


def test_what_is_looked_at_are_the_pixels_that_would_be_written(network, drawn):
    latents, meant, _ = drawn
    seen = []
    (model, _) = toy_comparators(network)
    spy = replace(model, embed=lambda images: seen.append(images) or model.embed(images))
    generated = ToyDecoder()(latents)
    Gate(network, [spy]).inspect(generated, meant)
    assert torch.equal(seen[0], to_model_range(written(generated))) and not torch.equal(seen[0], generated)
    assert torch.equal(written(seen[0]), written(generated))


def broken(comparator, **change):
    return [replace(comparator, **change)]


@pytest.mark.parametrize(
    ("comparators", "reason"),
    [
        (lambda found: [], Reason.NO_GALLERY),
        (lambda found: broken(found, gallery=None), Reason.NO_GALLERY),
        (lambda found: broken(found, calibration=None), Reason.NO_CALIBRATION),
        (lambda found: broken(found, encoder="other"), Reason.OTHER_MODEL),
        (lambda found: broken(found, gallery=replace(found.gallery, encoder="other")), Reason.OTHER_MODEL),
        (lambda found: broken(found, calibration=replace(found.calibration, encoder="other")), Reason.OTHER_MODEL),
        (
            lambda found: broken(found, gallery=replace(found.gallery, patient=found.gallery.patient + 1)),
            Reason.OTHER_GALLERY,
        ),
    ],
)
def test_a_gate_that_lacks_something_withholds_everything(network, drawn, comparators, reason):
    latents, meant, images = drawn
    (model, verifier) = toy_comparators(network)
    gate = Gate(network, [*comparators(model), *([verifier] if comparators(model) else [])])
    assert gate.faults == (reason,)
    assert reasons(inspect(gate, latents, meant)) == reasons(compare(gate, latents, images)) == [(reason,)] * 6


def test_a_check_that_breaks_down_withholds_only_what_it_broke_down_on(network, drawn, caplog):
    latents, meant, images = drawn
    (model, _) = toy_comparators(network)
    bad = to_model_range(written(ToyDecoder()(latents)))[4]

    def embed(batch):
        if (batch == bad).flatten(1).all(1).any():
            raise RuntimeError("patient 4711")
        return model.embed(batch)

    gate = Gate(network, [replace(model, embed=embed)], tolerance=1)
    expected = [(), (), (), (), (Reason.CHECK_FAILED,), ()]
    assert reasons(inspect(gate, latents, meant)) == reasons(compare(gate, latents, images)) == expected
    assert "RuntimeError" in caplog.text and "4711" not in caplog.text


def test_a_similarity_that_is_no_number_withholds(network, drawn):
    latents, meant, images = drawn
    (model, _) = toy_comparators(network)
    gate = Gate(network, [replace(model, embed=lambda batch: with_row(model.embed(batch), 1, 0.0))], tolerance=1)
    for decisions in (inspect(gate, latents, meant), compare(gate, latents, images)):
        assert decisions[0].released and decisions[1].reasons == (Reason.CHECK_FAILED,)


# ---- Decisions, files ----


def test_a_recipient_is_told_nothing_that_the_original_decides():
    full = Decision((), {"model": 0.51234}, {"model": 0.2}, {"judge": 0.1}, 3)
    assert full.shareable() == {"released": True, "training": {"model": 0.51}}
    assert replace(full, reasons=(Reason.NEAR_ORIGINAL,)).shareable() == {"released": False}


def test_a_site_is_read_from_its_folder_and_what_is_missing_withholds(network, tmp_path, drawn, caplog):
    latents, meant, _ = drawn
    model_file = tmp_path / "model.pt"
    model_file.write_bytes(b"weights")
    digest = file_digest(str(model_file))
    (model, _) = toy_comparators(network)
    gallery = replace(model.gallery, encoder=digest)
    files = [tmp_path / form.format("model") for form in (GALLERY, CALIBRATION)]
    gallery.write(files[0])
    replace(model.calibration, encoder=digest, gallery=gallery.digest()).write(files[1])

    gate = read_gate(network, model_file, tmp_path)
    assert gate.faults == () and inspect(gate, latents, meant)[0].released
    assert read_gate(network, model_file, tmp_path, tmp_path / "none").faults == (Reason.NO_JUDGES,)
    files[0].chmod(0o644)
    assert read_gate(network, model_file, tmp_path).faults == (Reason.NO_GALLERY,)
    assert "chmod 600" in caplog.text
    files[0].chmod(0o600)
    files[1].rename(tmp_path / "away")
    assert read_gate(network, model_file, tmp_path).faults == (Reason.NO_CALIBRATION,)
    model_file.write_bytes(b"others")
    assert read_gate(network, model_file, tmp_path).faults == (Reason.OTHER_MODEL,)


@pytest.mark.parametrize("tolerance", [0, 1.1, torch.nan])
def test_a_tolerance_that_makes_no_sense_is_refused(network, tolerance):
    with pytest.raises(ValueError, match="tolerance is"):
        Gate(network, [Comparator("model", "", lambda images: images, None, None)], tolerance=tolerance)
