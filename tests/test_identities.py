"""Where new identities come from: never from the patient himself, and the same under a seed."""

import itertools
import math

import pytest
import torch
from tiny import tiny_cohort, tiny_disentangler

from monai_anon.cohort import Cohort
from monai_anon.identities import (
    AveragedIdentities,
    FrozenEncoderError,
    Gallery,
    GaussianIdentities,
    IdentityPairs,
    SampledIdentities,
    build_gallery,
    gallery_of_others,
    load_disentangler,
)
from monai_anon.model_files import save_weights
from monai_anon.networks import IdentityVAE


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def gallery():
    """Patient p's mean is the p-th corner; the two images of a patient differ in the last column."""
    patient = torch.tensor([3, 0, 1, 2, 0, 1, 2, 3])
    identity = torch.nn.functional.one_hot(patient, 5).float()
    identity[:4, 4], identity[4:, 4] = 1.0, -1.0
    return Gallery(identity, patient)


# ---- The gallery ----


def test_gallery_shows_no_numbers_of_latents():
    secret = Gallery(torch.full((3, 2), 0.123456), torch.tensor([7, 7, 9]))
    for text in (repr(secret), str(secret), f"{secret}", repr(AveragedIdentities(secret)), repr([secret])):
        assert "Gallery(3 images of 2 patients)" in text
        assert "tensor" not in text and "0.12" not in text and "7" not in text


def test_patient_means_are_those_of_a_loop(gallery):
    means, codes = gallery.patient_means()
    assert codes.tolist() == [0, 1, 2, 3]
    for mean, code in zip(means, codes):
        rows = [row for row, patient in zip(gallery.identity, gallery.patient) if patient == code]
        torch.testing.assert_close(mean, torch.stack(rows).mean(0))


@pytest.mark.parametrize("batch_size", [4, 256])
def test_gallery_holds_each_image_in_order_and_leaves_the_model_as_it_was(batch_size):
    model, cohort = tiny_disentangler(), tiny_cohort(10, 5)
    model.train()
    found = build_gallery(model, cohort, batch_size)
    assert model.training and not found.identity.requires_grad
    assert torch.equal(found.patient, cohort.patient)
    expected = model.eval().encode(cohort.batch(range(10))["image"]).identity
    torch.testing.assert_close(found.identity, expected.detach(), atol=1e-5, rtol=0)


def test_others_are_nobody_of_the_cohort_yet_one_person_all_over():
    model, cohort = tiny_disentangler().eval(), tiny_cohort(6, 2)
    twins = Cohort(
        cohort.images[[0, 0, 1, 1]], torch.tensor([5, 5, 9, 9]), cohort.finding[:4], [{}] * 4, cohort.classes
    )
    found, real = gallery_of_others(model, twins, 0.05, times=3, seed=1), build_gallery(model, twins)
    assert found.identity.shape == (12, real.identity.shape[1]) and not found.identity.requires_grad
    assert found.patient.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    torch.testing.assert_close(found.identity[0::2], found.identity[1::2])  # the same image of the same person
    people = torch.cat([found.identity[0::2], real.identity[0::2]])
    assert torch.cdist(people, people).fill_diagonal_(1).min() > 1e-3
    again = gallery_of_others(model, twins, 0.05, times=3, seed=1)
    assert torch.equal(found.identity, again.identity)


@pytest.mark.parametrize(("warp", "times"), [(0.0, 4), (0.04, 0), (-0.1, 1)])
def test_others_who_would_be_the_patients_are_refused(warp, times):
    with pytest.raises(ValueError, match="the people are the patients"):
        gallery_of_others(tiny_disentangler(), tiny_cohort(6, 2), warp, times)


# ---- Averages ----


def chosen(new):
    """Which corners an average is made of."""
    return [tuple(torch.nonzero(row > 1e-6).flatten().tolist()) for row in new]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_average_is_of_k_others_and_never_of_the_patient(gallery, k):
    source = AveragedIdentities(gallery, k, unit=False)
    patient = torch.arange(4).repeat(50)
    new = source(torch.zeros(200, 5), patient, seeded())
    seen = {code: set() for code in range(4)}
    for row, others, code in zip(new, chosen(new), patient.tolist()):
        assert len(others) == k and code not in others
        torch.testing.assert_close(row[list(others)], torch.full((k,), 1 / k))
        seen[code].add(others)
    for code in range(4):
        assert seen[code] == set(itertools.combinations([other for other in range(4) if other != code], k))


def test_average_of_all_leaves_out_the_patient_alone(gallery):
    source = AveragedIdentities(gallery, unit=False)
    new = source(torch.zeros(2, 5), torch.tensor([2, -1]), seeded())
    torch.testing.assert_close(new[0], torch.tensor([1 / 3, 1 / 3, 0, 1 / 3, 0]))
    torch.testing.assert_close(new[1], torch.tensor([1 / 4, 1 / 4, 1 / 4, 1 / 4, 0]))


def test_average_lies_on_the_sphere_in_the_same_direction(gallery):
    plain, unit = (
        AveragedIdentities(gallery, 2, unit)(torch.zeros(6, 5), torch.arange(6) % 4, seeded()) for unit in (False, True)
    )
    torch.testing.assert_close(unit.norm(dim=1), torch.full((6,), math.sqrt(5.0)))
    torch.testing.assert_close(torch.cosine_similarity(plain, unit), torch.ones(6))


@pytest.mark.parametrize("k", [0, 4, 9, -1])
def test_an_average_of_too_many_or_none_is_refused(gallery, k):
    with pytest.raises(ValueError, match=rf"averaging {k} identities: it must be from 1 to 3"):
        AveragedIdentities(gallery, k)(torch.zeros(1, 5), torch.tensor([0]), seeded())


# ---- All sources ----


@pytest.mark.parametrize("name", ["sampled", "averaged", "gaussian"])
def test_sources_depend_on_the_generator_alone_and_keep_its_shape(gallery, name):
    source = {
        "sampled": SampledIdentities(IdentityVAE(5, 3, 8)),
        "averaged": AveragedIdentities(gallery, 2),
        "gaussian": GaussianIdentities(),
    }[name]
    identity, patient = torch.randn(9, 5), torch.arange(9) % 4
    first = source(identity, patient, seeded(1))
    state = torch.get_rng_state()
    assert torch.equal(source(identity + 1, patient, seeded(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(source(identity, patient, seeded(2)), first)
    assert first.shape == identity.shape and not first.requires_grad
    torch.testing.assert_close(first.norm(dim=1), torch.full((9,), math.sqrt(5.0)))


def test_sampled_identities_are_the_decoders_without_dropout():
    vae = IdentityVAE(5, 3, 8, dropout=0.9).train()
    new = SampledIdentities(vae)(torch.zeros(4, 5), torch.zeros(4), seeded())
    torch.testing.assert_close(new, vae.eval().decode(torch.randn(4, 3, generator=seeded())).detach())


# ---- Batches of stage 2 ----


def first_batches(pairs, count):
    return [(batch["identity"], batch["other"]) for batch in itertools.islice(pairs, count)]


@pytest.fixture
def numbered():
    """Row i holds i: a batch shows its rows. Patient 0 has most of the images."""
    return Gallery(torch.arange(12.0)[:, None], torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]))


def test_pairs_are_a_pure_function_of_seed_and_iteration(numbered):
    expected = first_batches(IdentityPairs(numbered, 8, seed=3), 6)
    pairs = IdentityPairs(numbered, 8, seed=3)
    for start in (4, 0, 2):
        pairs.start = start
        torch.rand(5)
        for (a, b), (c, d) in zip(first_batches(pairs, 2), expected[start:]):
            assert torch.equal(a, c) and torch.equal(b, d)
    assert pairs.start == 4
    other_seed = first_batches(IdentityPairs(numbered, 8, seed=4), 6)
    assert not any(torch.equal(a, c) for (a, _), (c, _) in zip(expected, other_seed))
    assert not torch.equal(expected[0][0], expected[1][0])


def test_a_date_to_the_second_is_a_seed(numbered):
    ((identity, other),) = first_batches(IdentityPairs(numbered, 8, seed=20261130_120000), 1)
    assert len(identity) == len(other) == 8


def test_other_is_always_another_patient_and_everybody_comes(numbered):
    batches = first_batches(IdentityPairs(numbered, 32), 40)
    rows, others = (torch.cat(column).flatten().long() for column in zip(*batches))
    assert (numbered.patient[rows] != numbered.patient[others]).all()
    assert set(rows.tolist()) == set(others.tolist()) == set(range(12))


def test_pairs_have_the_stated_length_and_need_two_patients(numbered):
    assert len(IdentityPairs(numbered, 8, batches=7)) == 7
    with pytest.raises(ValueError, match="at least two patients"):
        IdentityPairs(Gallery(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)))


# ---- Stage 1's networks ----


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    path = tmp_path / "disentangler.pt"
    with pytest.raises(FrozenEncoderError, match=r"disentangler.pt is missing.*Run first: make stage-1"):
        load_disentangler(tiny_disentangler(), str(path), "make stage-1")


def test_a_loaded_disentangler_is_frozen_and_equal(tmp_path):
    torch.manual_seed(1)
    trained = tiny_disentangler()
    save_weights(trained.state_dict(), tmp_path / "disentangler.pt")
    loaded = load_disentangler(tiny_disentangler(), str(tmp_path / "disentangler.pt"), "")
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())


def test_weights_of_other_networks_are_refused_by_file(tmp_path):
    save_weights(tiny_disentangler(patients=3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(FrozenEncoderError, match=r"(?s)other.pt does not fit these networks.*identity_classifier"):
        load_disentangler(tiny_disentangler(), str(tmp_path / "other.pt"), "")
