"""Every attack on a toy cohort with known answers: nothing hidden, everything hidden, a planted leak."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from test_judges import toy_cohort
from toy_scene import BUDGET, STRANGERS, figures, noise_like, subject, toy_scene, with_latents

from monai_anon.baselines import BASELINES, Blur
from monai_anon.evaluation.attacks import ATTACKS
from monai_anon.evaluation.attacks.adaptive import adaptive, strongest
from monai_anon.evaluation.attacks.attributes import attributes, read_attribute
from monai_anon.evaluation.attacks.headline import headline
from monai_anon.evaluation.attacks.inversion import Inverter, inversion
from monai_anon.evaluation.attacks.membership import member_indices, membership
from monai_anon.evaluation.attacks.probes import probes
from monai_anon.evaluation.attacks.repeated import patient_pairs, repeated
from monai_anon.evaluation.attacks.static import linkage, own_and_others, static
from monai_anon.evaluation.attacks.towers import PAIRINGS, Towers, train_towers
from monai_anon.evaluation.scene import RELEASES, Released
from monai_anon.evaluation.subjects import release
from monai_anon.evaluation.tables import Row
from monai_anon.readers import to_model_range

CHANCE = pytest.approx(0.5, abs=0.03)


@pytest.fixture(scope="module")
def scene():
    return toy_scene()


@pytest.fixture(scope="module")
def none():
    return subject(BASELINES["none"](), "none")


@pytest.fixture(scope="module")
def constant():
    return subject(BASELINES["constant"](), "constant")


# ---- known answers of the issue ----


@pytest.fixture(scope="module")
def untouched(scene, none):
    return figures([*static(none, scene), *adaptive(none, scene), *inversion(none, scene)])


def test_an_untouched_image_is_linked_as_well_as_real_pairs_are(scene, untouched):
    real = scene.quality["verification_auc"]
    assert real.value > 0.9
    assert untouched["static_auc"].value == pytest.approx(real.value)
    assert untouched["static_rank_1"].value == pytest.approx(scene.quality["rank_1"].value)
    found = untouched["adaptive_auc"]
    assert found.ci_low <= real.high and found.ci_high >= real.low


def test_inversion_adds_nothing_to_an_untouched_image(untouched):
    before, after = untouched["static_auc"], untouched["inversion_auc"]
    assert before.ci_low - 1e-9 <= after.value <= before.ci_high + 1e-9
    assert untouched["inversion_ssim"].value > 0.95


def test_nothing_is_linked_where_nothing_is_left(constant):
    scene = toy_scene(steps=5)
    rows = figures([*static(constant, scene), *adaptive(constant, scene), *inversion(constant, scene)])
    for prefix in ("static", *(f"adaptive_{pairing}" for pairing in PAIRINGS), "inversion"):
        assert rows[f"{prefix}_auc"].value == CHANCE, prefix
        assert rows[f"{prefix}_rank_1"].value == pytest.approx(1 / STRANGERS, abs=0.02), prefix
    linked = figures(linkage(constant, scene))
    assert linked["linkage_rank_1"].value == pytest.approx(1 / STRANGERS)
    assert linked["linkage_10_chance"].value == pytest.approx(0.1)
    assert linked["linkage_10_rank_1"].value == pytest.approx(0.1, abs=0.04)
    repeats = figures(repeated(constant, scene))
    assert repeats["repeated_1_auc"].value == CHANCE and repeats["repeated_patient_4_auc"].value == CHANCE


def test_what_fools_a_verifier_need_not_fool_one_that_has_adapted(scene):
    blurred = subject(Blur(0.16))
    assert figures(static(blurred, scene))["static_auc"].value == pytest.approx(0.5, abs=0.05)
    assert figures(adaptive(blurred, scene))["adaptive_auc"].value > 0.9


def hidden_in_the_lowest_bit(images):
    """A stranger's picture, whose lowest bit holds the person in black and white."""
    strangers = toy_cohort(60, seed=9).images
    cover = strangers[torch.randint(len(strangers), (len(images),))]
    return to_model_range((cover & 254) | (images > 0).to(torch.uint8))


def faint(images):
    """Gray, but for a stripe that holds the top of the original at a thirtieth of its contrast, turned."""
    out = torch.zeros_like(images)
    out[..., -8:, :] = images[..., :16:2, :].flip(-2) / 30
    return out + 0.001 * noise_like(images)


@pytest.mark.parametrize("leak", [hidden_in_the_lowest_bit, faint])
def test_a_leak_that_no_untrained_eye_sees_is_learned(scene, leak):
    planted = subject(leak)
    assert abs(figures(static(planted, scene))["static_auc"].value - 0.5) < 0.2
    rows = figures(adaptive(planted, scene))
    strongest_auc = max(rows[f"adaptive_{pairing}_auc"].value for pairing in PAIRINGS)
    assert strongest_auc > 0.8
    assert rows["adaptive_auc"].value == strongest_auc and "strongest pairing" in rows["adaptive_auc"].note
    if leak is hidden_in_the_lowest_bit:
        assert rows["adaptive_auc"].note.endswith("lowest-bits") and rows["adaptive_mixed_auc"].value < 0.7


def test_a_tower_sees_what_its_verifier_sees_until_it_has_learned_to_heed_the_bits(scene):
    towers, images = Towers(scene.judges.verifier, bits=True).eval(), to_model_range(scene.test.images[:4])
    assert torch.allclose(towers.released(images), scene.judges.verifier.eval()(images), atol=1e-5)
    assert towers.released.verifier.backbone.conv1.in_channels == 3


def test_a_memoriser_is_caught_and_an_honest_copy_is_not(scene, none):
    known = to_model_range(scene.training.images)

    def nearest_training_image(images):
        return known[torch.cdist(images.flatten(1), known.flatten(1)).argmin(dim=1)]

    caught = figures(membership(subject(nearest_training_image), scene))
    assert caught["membership_nearest_auc"].value > 0.95
    assert caught["membership_nearest_tpr_at_fpr_1"].value > 0.8
    assert caught["membership_black_box_auc"].value > 0.95  # members come back as they are
    honest = figures(membership(none, scene))
    assert honest["membership_nearest_auc"].value == pytest.approx(0.5)
    assert honest["membership_black_box_auc"].value == 0.5


def latents_with(leak):
    """Identity knows the pattern of a person; the residual knows it too where `leak`."""

    def encode(images):
        pattern = images[:, 0, 2:16:4, 2::4].flatten(1)
        finding = images[:, 0, 16:].flatten(1)[:, ::8]
        residual = pattern[:, :8] if leak else torch.randn(len(images), 8)
        return pattern, finding, residual

    return with_latents(encode, f"leak: {leak}")


def test_a_probe_finds_identity_in_the_residual_only_where_it_was_planted():
    scene = toy_scene(steps=150)
    leaking, clean = (figures(probes(latents_with(leak), scene)) for leak in (True, False))
    assert leaking["probe_residual_patient_auc"].value > 0.85
    assert clean["probe_residual_patient_auc"].value == pytest.approx(0.5, abs=0.12)
    assert clean["probe_identity_patient_auc"].value > 0.85
    assert clean["probe_medical_finding_auc"].value > 0.9
    assert clean["probe_residual_finding_auc"].value == pytest.approx(0.5, abs=0.2)


def test_a_leak_through_the_residual_is_learned_from_the_images_too(scene):
    """What a decoder draws of a residual that knows the person: a faint row that no untrained verifier heeds."""

    def decoded(images):
        out = torch.zeros_like(images)
        out[..., -4:, :] = 0.1 * images[..., 2:16:4, :]
        return out + 0.002 * noise_like(images)

    assert figures(adaptive(subject(decoded), scene))["adaptive_auc"].value > 0.8


# ---- the attacks one by one ----


def test_averaging_releases_undoes_independent_noise_and_more_images_of_a_patient_tell_more(scene):
    noisy = subject(lambda images: (images / 4 + 0.4 * noise_like(images)).clamp(-1, 1))
    rows = figures(repeated(noisy, scene))
    assert rows["repeated_16_auc"].value > rows["repeated_4_auc"].value > rows["repeated_1_auc"].value + 0.02
    assert rows["repeated_16_auc"].value > 0.8
    assert rows["repeated_patient_2_auc"].value > rows["repeated_patient_1_auc"].value


def test_there_is_nothing_to_average_where_every_release_is_the_same(none):
    rows = figures(repeated(none, toy_scene(steps=10)))
    assert rows["repeated_16_auc"].value == rows["repeated_1_auc"].value
    assert rows["repeated_16_auc"].note == "every release has the same pixels" and not rows["repeated_1_auc"].note


def test_the_release_of_the_compared_image_itself_is_never_used():
    asked, patients = np.eye(4), np.array([0, 0, 1, 1])  # every release looks like its very original and nothing else
    for count in (1, 2):
        scores, _, _, same = patient_pairs(asked, np.eye(4), patients, count, 0)
        assert (scores[same] == 0).all()


def test_linkage_falls_with_the_size_of_the_gallery_and_beats_chance(scene, none):
    rows = figures(linkage(none, scene))
    sizes = sorted(int(name.split("_")[1]) for name in rows if name.endswith("_chance"))
    assert sizes == [10, 30, 76]
    found = [rows[f"linkage_{size}_rank_1"].value for size in sizes]
    assert found == sorted(found, reverse=True)
    assert all(f > rows[f"linkage_{size}_chance"].value for f, size in zip(found, sizes))
    assert rows["linkage_rank_5"].value >= rows["linkage_rank_1"].value > 0.5
    assert rows["linkage_map_at_r"].value > 0.5


def with_columns(cohort, columns):
    for index, entry in enumerate(cohort.entries):
        entry |= {name: value(index, cohort) for name, value in columns.items()}
    return cohort


def test_an_attribute_that_shows_is_read_and_one_that_was_removed_is_not(constant, none):
    scene = toy_scene(steps=60)
    for part in (scene.training, scene.test):
        with_columns(
            part, {"sex": lambda i, c: "FM"[int(c.finding[i])], "age": lambda i, c: str(20 + 40 * int(c.finding[i]))}
        )
    kept, removed = figures(attributes(none, scene)), figures(attributes(constant, scene))
    silent = toy_scene(steps=1)
    silent.silence, silent.training, silent.test = "no verdict: for this test", scene.training, scene.test
    assert {row.value for row in attributes(none, silent)} == {None}
    assert kept["attribute_sex_auc"].value > 0.9 and kept["attribute_age_auc"].value > 0.9
    assert removed["attribute_sex_auc"].value == CHANCE
    assert "attribute_view_auc" not in kept


def test_attributes_that_nobody_states_are_named_as_not_measured(scene, none):
    (row,) = attributes(none, scene)
    assert row.value is None and "none of sex, age, view" in row.note


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        (["F", "M", "", None, "F"], [0, 1, -1, -1, 0]),
        (["30", 60, "nan", 50.0, 40], [0, 1, -1, 1, 0]),
        (["x"] * 5, None),
    ],
)
def test_a_column_is_read_as_classes_or_as_above_its_median(values, codes):
    part = toy_cohort(5, images=1)
    for entry, value in zip(part.entries, values):
        entry["column"] = value
    found = read_attribute("column", {"training": part})
    assert (found is None) if codes is None else found.codes["training"].tolist() == codes


def test_members_are_drawn_as_whole_patients():
    patients = np.repeat(np.arange(10), 4)
    chosen = member_indices(patients, 10, 0)
    assert 10 <= len(chosen) <= 13
    assert all((patients[chosen] == patient).sum() == 4 for patient in np.unique(patients[chosen]))


# ---- what holds for all ----


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"attributes", "probes", "codes"}))
def test_no_attack_says_anything_of_privacy_where_the_verifier_knows_too_little(name, none):
    scene = toy_scene(steps=1)
    scene.silence = "no verdict: for this test"
    rows = ATTACKS[name](none, scene)
    assert rows and all(row.value is None and row.note == scene.silence for row in rows)


def test_the_same_attack_twice_gives_the_same_figures(none):
    scenes = [toy_scene(steps=4) for _ in range(2)]
    noisy = subject(lambda images: (images + 0.3 * noise_like(images)).clamp(-1, 1))
    for name in ("adaptive", "inversion", "repeated"):
        first, again = ([(row.metric, row.value) for row in ATTACKS[name](noisy, scene)] for scene in scenes)
        assert first == again, name


@pytest.mark.parametrize(
    ("values", "pairing"), [((0.6, 0.3, 0.55, 0.5), 1), ((0.9, 0.0, 0.5, 0.5), 1), ((0.2, 0.4, 0.8, 0.85), 3)]
)
def test_an_auc_far_below_chance_counts_as_one_above(values, pairing):
    rows = [Row("m", "d", f"adaptive_{p}_auc", value) for p, value in zip(PAIRINGS, values)]
    found = strongest(rows)
    assert (found.metric, found.value) == ("adaptive_auc", values[pairing])
    assert found.note == f"strongest pairing: {PAIRINGS[pairing]}"


ALL_LINKING = {
    "static_auc": 0.6, "adaptive_auc": 0.3, "inversion_auc": 0.5, "repeated_4_auc": 0.65, "membership_vae_auc": 0.99,
    "static_rank_1": 0.1, "adaptive_mixed_rank_1": 0.3, "linkage_rank_1": 0.2, "inversion_rank_1": 0.0,
    "repeated_16_rank_1": 0.25,
}  # fmt: skip


def test_the_headline_is_the_strongest_attack_on_either_side_of_chance():
    auc, rank = headline([Row("m", "d", metric, value) for metric, value in ALL_LINKING.items()])
    assert (auc.metric, auc.value, auc.note) == ("privacy_auc", 0.3, "strongest: adaptive_auc")
    assert (rank.metric, rank.value, rank.note) == ("privacy_rank_1", 0.3, "strongest: adaptive_mixed_rank_1")
    assert headline([Row("m", "d", "membership_vae_auc", 0.9)]) == []


@pytest.mark.parametrize("attack", ["static", "adaptive", "inversion", "repeated"])
@pytest.mark.parametrize("how", ["left out", "without a value"])
def test_there_is_no_headline_without_every_linking_attack(attack, how):
    rows = [
        Row("m", "d", metric, None if metric.startswith(attack) else value) for metric, value in ALL_LINKING.items()
    ]
    rows = [row for row in rows if how != "left out" or row.value is not None]
    for row in headline(rows):
        assert row.value is None and row.note == f"not measured: no headline without {attack}"


def test_an_attack_is_made_on_several_releases_but_on_one_where_they_are_the_same(none):
    scene, noisy = toy_scene(steps=1), subject(lambda images: (images + 0.3 * noise_like(images)).clamp(-1, 1))
    assert len(scene.releases(none, "test")) == 1
    several = scene.releases(noisy, "test")
    assert len(several) == RELEASES and not torch.equal(several[0].images, several[1].images)
    each = [scene.judges.embed(one.images) @ scene.vectors("test").T for one in several]
    alone = [figures(scene.person_rows(noisy, "x", [similarity])) for similarity in each]
    together = figures(scene.person_rows(noisy, "x", each))
    for name in ("x_auc", "x_eer", "x_rank_1"):
        assert together[name].value == pytest.approx(np.mean([one[name].value for one in alone]))


def test_a_release_is_repeatable_and_its_pairs_stay_in_order():
    cohort = toy_cohort(4)

    def noisy(images, generator):
        return images * 0.5 + 0.1 * torch.randn(images.shape, generator=generator)

    first, again, other = (release(noisy, cohort.images, seed, batch_size=3) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8 and torch.equal(first, again) and not torch.equal(first, other)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first.numpy(), cohort.images.numpy())]
    assert min(correlation) > 0.5


def test_an_attacker_needs_pairs_and_a_known_pairing():
    lonely, cohort = toy_cohort(4, images=1), toy_cohort(4)
    with pytest.raises(ValueError, match="0 patients have two images"):
        train_towers([Released(lonely, lonely.images)], None, "mixed", schedule=BUDGET)
    with pytest.raises(ValueError, match="must be one of"):
        train_towers([Released(cohort, cohort.images)], None, "real-real", schedule=dataclasses.replace(BUDGET))


def test_an_untrained_inverter_changes_nothing():
    images = torch.rand(2, 1, 32, 32)
    assert torch.equal(Inverter(1).eval()(images), images)


def test_a_query_is_never_its_own_mate():
    patients = np.array([0, 0, 1, 1, 2])
    mates, others = own_and_others(np.eye(5), patients, 0)
    assert mates[:4].tolist() == [0, 0, 0, 0] and np.isnan(mates[4])
    assert others.shape == (5, 2) and (others == 0).all()


def test_the_curve_of_an_attack_holds_its_auc(scene, none):
    scene.curves = []
    blurred = subject(Blur(0.05))
    auc = figures(static(blurred, scene))["static_auc"].value
    (curve,) = scene.curves
    assert curve["attack"] == "static" and trapezoid(curve["y"], curve["x"]) == pytest.approx(auc, abs=0.01)
