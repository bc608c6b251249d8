"""Closed sets: which of the training people is it, and what all else asks where the test people are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_figures import tiny_anonymizer
from test_membership import ToyModel, ToyVAE, holding
from test_protocol import Halves
from test_report import DATA, judge, make_run, row
from toy_scene import BUDGET, closed_scene, figures, noise_like, subject, toy_scene

from monai_anon.evaluation import evaluation as whole
from monai_anon.evaluation.attacks import identification as attack
from monai_anon.evaluation.attacks import membership
from monai_anon.evaluation.attacks.identification import identification, identified, identifier, temperature_of
from monai_anon.evaluation.attacks.static import linkage
from monai_anon.evaluation.contents import realism, retrieval
from monai_anon.evaluation.figures import Stand
from monai_anon.evaluation.measuring import scene_key
from monai_anon.evaluation.people import KNOWN_PEOPLE, OUTSIDE, codes_among
from monai_anon.evaluation.protocol import Settings, evaluate_anonymization
from monai_anon.evaluation.reporting.conclusions import criteria
from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.runs import read_run
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import CLOSED_SET, JUDGES, attack_table, quality_table, report, table_3
from monai_anon.identities import AveragedIdentities, Gallery
from monai_anon.phantoms.iris import ensure_cohort
from monai_anon.readers import to_model_range

PEOPLE = 12
ALL = ("accuracy", "confidence", "confidence_ratio", "raw_confidence", "true_confidence", "entropy")


@pytest.fixture(scope="module")
def scene():
    return closed_scene(PEOPLE)


@pytest.fixture(scope="module")
def none():
    return subject(lambda images: images, "none")


@pytest.fixture(scope="module")
def gray():
    """Nothing of the person is left but faint noise, another one in each release."""
    return subject(lambda images: 0.02 * noise_like(images), "gray")


@pytest.fixture(scope="module")
def found(scene, none, gray):
    return [*identification(none, scene), *identification(gray, scene)]


def of(rows, method):
    return figures(row for row in rows if row.method == method)


# ---- who is it ----


def test_untouched_images_are_named_and_what_is_left_of_nobody_is_not(found):
    untouched, hidden = of(found, "none"), of(found, "gray")
    assert untouched["identification_accuracy"].value > 0.8
    assert untouched["identification_adapted_accuracy"].value > 0.8
    assert untouched["identification_true_confidence"].value > 0.6
    assert untouched["identification_entropy"].value < 0.5
    assert hidden["identification_accuracy"].value == pytest.approx(1 / PEOPLE, abs=0.07)
    assert hidden["identification_true_confidence"].value < 0.3
    for rows in (untouched, hidden):
        assert rows["identification_chance"].value == pytest.approx(1 / PEOPLE)
        ratio, confidence = rows["identification_confidence_ratio"], rows["identification_confidence"]
        assert ratio.value == pytest.approx(PEOPLE * confidence.value)
        assert ratio.ci_low == pytest.approx(PEOPLE * confidence.ci_low)
        assert all(rows[f"identification_{name}"].ci_low is not None for name in ALL)


def test_the_networks_own_quality_comes_first_and_is_calibrated(found, scene):
    assert found[0].method == JUDGES and found[0].metric == "identification_accuracy"
    own, raw = of(found, JUDGES), identifier(scene)
    assert own["identification_accuracy"].value == of(found, "none")["identification_accuracy"].value
    assert abs(own["identification_overconfidence"].value) < 0.15
    assert raw.temperature is not None and 0.05 < raw.temperature < 20


def test_who_is_not_in_training_cannot_be_named_and_counts_in_no_accuracy(found, scene):
    assert (scene.known == OUTSIDE).sum() == 2 and len(scene.test) == 2 * PEOPLE + 2
    rows = of(found, "none")
    assert rows["identification_accuracy"].n == rows["identification_true_confidence"].n == 2 * PEOPLE
    assert rows["identification_confidence"].n == len(scene.test)


def test_people_are_known_by_name_and_not_by_their_parts_number(scene):
    names = {int(code): entry["patient"] for code, entry in zip(scene.training.patient, scene.training.entries)}
    for code, entry in zip(scene.known, scene.test.entries):
        assert names.get(int(code), "12") == entry["patient"]
    assert (scene.known != scene.patients).any()
    assert (codes_among(scene.training, scene.training) == scene.training.patient.numpy()).all()


def test_a_network_that_knows_nobody_gives_no_verdict(none, gray):
    weak = closed_scene(PEOPLE, steps=1)
    rows = identification(gray, weak)
    (ours,) = (row for row in rows if row.method == "gray")
    assert ours.value is None and ours.note.startswith("no verdict on identification: the network names 0.")
    assert "chance is 0.083" in ours.note and "below 0.54" in ours.note
    of_table_3 = identified(none, weak, to_model_range(weak.test.images))
    assert {(one.value, one.note) for one in of_table_3} == {(None, ours.note)}


@pytest.mark.parametrize(
    ("accuracy", "chance", "silent"), [(0.50, 0.01, True), (0.51, 0.01, False), (0.70, 0.5, True), (None, 0.1, True)]
)
def test_half_of_the_way_from_chance_is_the_least(accuracy, chance, silent):
    rows = [
        row("identification_accuracy", accuracy, method=JUDGES), row("identification_chance", chance, method=JUDGES),
    ]  # fmt: skip
    assert attack.verdict(rows).startswith("no verdict") == silent


def test_without_validation_images_confidences_say_that_they_are_not_calibrated(none, monkeypatch):
    monkeypatch.setattr(attack, "LEAST_BEYOND_CHANCE", -1.0)
    rows = of(identification(none, closed_scene(PEOPLE, steps=2, validation=False)), "none")
    for name in ("confidence", "true_confidence", "entropy", "confidence_ratio"):
        assert rows[f"identification_{name}"].note.startswith("not calibrated")
    assert rows["identification_raw_confidence"].value == rows["identification_confidence"].value


def test_where_people_are_apart_nobody_can_be_named(none, scene):
    (only,) = identification(none, toy_scene(1, scene.judges))
    assert only.value is None and only.note.startswith("not applicable: the manifest is no closed set")
    stranger = closed_scene(4, steps=1)
    stranger.known[:] = OUTSIDE
    (only,) = identification(none, stranger)
    assert only.note.startswith("not applicable") and "no test person is in training" in only.note
    assert "not applicable" in attack_table([only]).to_string()


def test_who_learns_releases_finds_the_hidden_and_knows_when_nobody_can_be_found(found, scene):
    """Images upside down in negative fool a network of upright ones; faint noise fools both, and the second knows."""
    hidden = of(found, "gray")
    assert hidden["identification_adapted_accuracy"].value == pytest.approx(1 / PEOPLE, abs=0.07)
    assert hidden["identification_adapted_confidence_ratio"].value < 2
    assert hidden["identification_adapted_entropy"].value > 0.9
    turned = of(identification(subject(lambda images: -images.flip(2), "turned"), scene), "turned")
    assert turned["identification_adapted_accuracy"].value > 0.6 > turned["identification_accuracy"].value
    assert turned["identification_adapted_true_confidence"].value > 0.4


def test_one_person_in_ten_is_a_stranger_to_the_network(none, monkeypatch):
    monkeypatch.setattr(attack, "LEAST_LEFT_OUT", 1)
    scene = closed_scene(PEOPLE)
    network = identifier(scene)
    assert len(network.codes) == PEOPLE - 1 and network.chance == pytest.approx(1 / (PEOPLE - 1))
    (left,) = set(range(PEOPLE)) - set(network.codes.tolist())
    assert network.classes(np.array([left, network.codes[3], OUTSIDE])).tolist() == [OUTSIDE, 3, OUTSIDE]
    own = of(identification(none, scene), JUDGES)
    assert own["identification_accuracy"].n == 2 * (PEOPLE - 1)
    assert own["identification_stranger_confidence"].n == 4, "the one left out, and the one of the test part alone"
    assert own["identification_stranger_confidence"].value < own["identification_confidence"].value


def test_the_network_has_a_budget_and_never_sees_the_anonymizer():
    scene, asked = closed_scene(4, steps=3), []
    spy = Subject("spy", lambda images, _: asked.append(len(images)) or images)
    identifier(scene)
    assert not asked
    identification(spy, scene)
    assert scene.memo["identifier"] is identifier(scene)
    one, same, other = (attack.train_identifier(closed_scene(4, steps=3, seed=seed)) for seed in (0, 0, 1))
    weights = [next(found.network.parameters()).detach() for found in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_temperature_takes_back_what_is_overconfident():
    draw = np.random.default_rng(0)
    logits = 2 * draw.normal(size=(4000, 5))
    p = attack.probabilities(logits, None)
    true = np.array([draw.choice(5, p=one) for one in p])
    assert temperature_of(logits, true) == pytest.approx(1, abs=0.1)
    assert temperature_of(7 * logits, true) == pytest.approx(7, abs=0.7)
    assert attack.probabilities(7 * logits, 7.0) == pytest.approx(p)


def test_entropy_goes_from_0_to_1_and_equals_share_a_hit():
    assert attack.entropy(np.array([[1.0, 0, 0, 0], [0.25] * 4])) == pytest.approx([0, 1])
    found = attack.hits(np.array([[0.25] * 4, [0, 1, 0, 0], [0, 1, 0, 0]]), np.array([3, 1, OUTSIDE]))
    assert found[:2].tolist() == [0.25, 1.0] and np.isnan(found[2])


# ---- the other measurements ----


def test_nobody_is_a_stranger_in_a_gallery_that_holds_them(none, scene):
    rows = figures(linkage(none, scene))
    assert {int(name.split("_")[1]) for name in rows if name.endswith("_chance")} == {10, PEOPLE + 1}
    apart = figures(linkage(none, toy_scene(1, scene.judges)))
    assert "linkage_76_chance" in apart, "elsewhere all training people are strangers"


def test_membership_asks_for_images_of_the_same_people(scene):
    asked = membership.candidates_of(scene)
    members, others = asked.patients[asked.member], asked.patients[~asked.member]
    known = others[scene.known != OUTSIDE]
    assert sorted(members) == sorted(known) == sorted(2 * list(range(PEOPLE)))
    assert set(others[scene.known == OUTSIDE]).isdisjoint(known)
    trained = scene.training
    assert torch.equal(asked.images[: len(members)], trained.images[asked.chosen])


def test_what_needs_strangers_is_not_asked_and_the_rest_speaks_of_images(scene):
    known = scene.training.images
    model = ToyModel(known, kept=0.05)
    rows = figures(membership.membership(holding(model, ToyVAE(torch.randn(50, 16))), scene))
    for case in ("nearest", "identity_nearest"):
        row = rows.pop(f"membership_{case}_auc")
        assert row.value is None and row.note.startswith("not applicable") and "no strangers" in row.note
    assert not [name for name in rows if "nearest" in name]
    assert all(row.note.endswith(membership.OF_IMAGES) for row in rows.values())
    assert rows["membership_reconstruction_auc"].value > 0.9, "an image that was trained on is still found"


def test_pairs_of_a_person_are_of_members_or_of_others(scene, monkeypatch):
    """What an encoder makes of a person's other images is nothing that it remembers of this one."""
    asked, scored = membership.candidates_of(scene), []
    monkeypatch.setattr(membership, "told_apart", lambda *arguments: scored.append(arguments[3]) or [])
    place = torch.from_numpy(asked.patients) + 40 * torch.from_numpy(asked.member)
    membership.pair_rows(subject(lambda images: images), scene, asked, torch.eye(80)[place])
    assert scored[0] == pytest.approx(np.ones(len(asked.member)))


def test_similar_cases_are_other_peoples(scene):
    own = scene.known[:, None] == scene.training.patient.numpy()[None, :]
    assert own.any()
    database = np.eye(len(scene.training))
    queries = (own * 1.0) @ database  # every query lies nearest to the images of its own person
    nearest = retrieval.nearest_of(queries, database, ~own)
    assert not np.take_along_axis(own, nearest, axis=1).any()
    everyone = retrieval.nearest_of(queries, database, np.ones_like(own))
    assert np.take_along_axis(own, everyone, axis=1)[scene.known != OUTSIDE].sum(axis=1).min() == 6
    row = figures(retrieval.retrieval(subject(lambda images: images), scene))["retrieval_precision_at_10"]
    same = scene.test.finding.numpy()[:, None] == scene.training.finding.numpy()[None, :]
    assert row.note == f"{same[~own].mean():.3f} by chance"


def test_the_kernel_distance_leaves_out_pairs_of_one_person_on_both_sides():
    draw = np.random.default_rng(0)
    people = draw.normal(size=(60, 4))
    patients = np.arange(60)
    real, generated = (people + 0.1 * draw.normal(size=people.shape) for _ in range(2))
    apart = patients[:, None] != patients[None, :]
    naive = realism.kid(real, generated, patients, patients)(np.ones(60))
    mended = realism.kid(real, generated, patients, patients, apart)(np.ones(60))
    assert naive < -0.05 < mended == pytest.approx(0, abs=0.04)


def test_realism_says_whom_it_compares_with(scene, none):
    assert all(row.note.endswith(realism.SAME_PEOPLE) for row in realism.realism(none, scene))
    assert not any(realism.SAME_PEOPLE in row.note for row in realism.realism(none, toy_scene(1, scene.judges)))


def test_the_sources_of_table_3_know_whom_to_leave_out(scene):
    gallery, asked, told = Gallery(torch.eye(PEOPLE)[scene.training.patient], scene.training.patient), [], []

    def source(identity, patient, generator):
        asked.append(patient)
        return identity

    def also(method, generated):
        told.append(len(generated))
        return [row("judge_identification_accuracy", 0.5, method=method)]

    arguments = Halves(), {"mean": source}, scene.training, scene.test, scene.judges, Settings(0.05, n_bootstrap=2)
    assert "judge_identification_accuracy" not in figures(evaluate_anonymization(*arguments))
    rows = evaluate_anonymization(*arguments, known=scene.known, also=also)
    assert (asked[0] == OUTSIDE).all() and asked[1].tolist() == scene.known.tolist()
    assert told == [len(scene.test)] and figures(rows)["judge_identification_accuracy"].value == 0.5
    share = AveragedIdentities(gallery, None, unit=False)(torch.zeros(len(scene.test), PEOPLE), asked[1], None)
    inside = scene.known != OUTSIDE
    assert not share[torch.from_numpy(inside), torch.from_numpy(scene.known[inside])].any()
    assert (share[torch.from_numpy(~inside)] > 0).all()


def test_pictures_of_averages_leave_the_person_out_as_well(scene):
    model, asked = tiny_anonymizer(), []
    gallery = Gallery(torch.zeros(len(scene.training), model.identity_vae.identity_size), scene.training.patient)
    for known in (None, scene.known):
        stand = Stand(model, model.identity_vae, scene.test, gallery, 1, known)
        stand.identity(lambda identity, patient, generator: asked.append(patient.tolist()) or identity)
    assert asked == [[OUTSIDE] * len(stand.people), scene.known[stand.people].tolist()]


def test_a_closed_set_is_another_scene_for_what_was_measured(scene):
    apart = Scene(scene.training, scene.validation, scene.test, scene.judges, schedule=BUDGET, steps=80, n_bootstrap=60)
    assert scene_key(scene) != scene_key(apart)


# ---- what is said of it ----


def closed(*rows):
    return [*judge(0.97), row(KNOWN_PEOPLE, 1.0, method=JUDGES), *rows]


def named(accuracy, low, high, method="ours"):
    return [
        row("identification_accuracy", accuracy, low, high, method),
        row("identification_chance", 0.05, method=method),
        row("identification_confidence_ratio", 2.5, 2.0, 3.0, method),
    ]


def singled_out(rows):
    (found,) = (one for one in criteria(rows, "ours", DATA) if one.name == "Singling out")
    return {check.attack: check for check in found.checks}


def test_who_is_named_more_often_than_by_chance_is_singled_out():
    untouched = named(0.9, 0.8, 1.0, "none")
    assert singled_out(closed(*named(0.2, 0.1, 0.3), *untouched))["identification (P10)"].outcome == "fails"
    assert singled_out(closed(*named(0.06, 0.02, 0.1), *untouched))["identification (P10)"].outcome == "chance"
    adapted = row("identification_adapted_accuracy", 0.3, 0.2, 0.4)
    check = singled_out(closed(*named(0.06, 0.02, 0.1), adapted, *untouched))["identification (P10)"]
    assert check.outcome == "fails" and "chance is 0.050" in check.sentence
    assert singled_out(closed(*named(0.06, 0.02, 0.1)))["identification (P10)"].outcome == "open"
    assert singled_out(closed(row("static_auc", 0.5)))["identification (P10)"].outcome == "open"
    assert "identification (P10)" not in singled_out([*judge(0.97), row("static_auc", 0.5)])


def test_what_cannot_be_asked_is_not_applicable_and_not_missing():
    why = "not applicable: there are no strangers"
    rows = closed(*[row(f"membership_{name}_auc", None, note=why) for name in ("nearest", "identity_nearest")])
    (inference,) = (one for one in criteria(rows, "ours", DATA) if one.name == "Inference")
    assert inference.checks[0].outcome == "inapplicable" and why in inference.checks[0].sentence


@pytest.fixture
def pages(tmp_path):
    """The content of pages of a closed set and of one of people apart, where identification was asked for."""
    found = {}
    for name, rows in {
        "closed": closed(row("static_auc", 0.5, 0.4, 0.6), *named(0.2, 0.1, 0.3)),
        "old": [*judge(0.97), row("static_auc", 0.5, 0.4, 0.6)],
        "apart": [
            *judge(0.97),
            row("static_auc", 0.5, 0.4, 0.6),
            row("identification_accuracy", None, note=attack.DISJOINT),
        ],
    }.items():
        found[name] = Page([read_run(make_run(tmp_path / name, rows))]).content(False)
    return found


def test_a_report_of_a_closed_set_says_so_in_every_section(pages):
    parts = {name: {part.key: part for part in page["attacks"]} for name, page in pages.items()}
    assert "of the very people" in parts["closed"]["P1"].sentence
    assert "strangers" in parts["closed"]["P5"].sentence
    assert "closed set" not in parts["old"]["P1"].sentence
    assert "P10" in parts["closed"] and "P10" in parts["apart"] and "P10" not in parts["old"]
    assert any(CLOSED_SET in sentence for sentence in pages["closed"]["limits"])
    assert not any(CLOSED_SET in sentence for sentence in pages["apart"]["limits"])
    assert "whose other images they were trained on" in pages["closed"]["quality"].caption
    assert pages["apart"]["quality"].caption.endswith("they have not seen")
    assert "P10" not in pages["apart"]["verdicts"][0]["missing"] + pages["old"]["verdicts"][0]["missing"]


def test_the_tables_have_a_closed_sets_columns_only_there():
    rows = closed(*named(0.2, 0.1, 0.3), row("judge_identification_confidence", 0.1), row("own_original_accuracy", 0.1))
    assert "test people trained on" in quality_table(rows) and "test people trained on" not in quality_table(judge(0.9))
    assert table_3(rows).set_index("method").loc["ours", "largest confidence"] == "0.100"
    assert "largest confidence" not in table_3(rows[:-2])
    assert CLOSED_SET in report(rows) and CLOSED_SET not in report([*judge(0.97), row("static_auc", 0.5)])


# ---- all of it, on generated irises ----


@pytest.fixture(scope="module")
def irises(tmp_path_factory):
    """A run on a small closed set of irises, by networks that know nothing yet."""
    folder = tmp_path_factory.mktemp("irises")
    manifest = ensure_cohort(folder / "cohort", images=(60, 24, 30), patients=(6, 6, 6), size=32, progress=False)
    model = tiny_anonymizer()
    torch.save(model.state_dict(), folder / "model.pt")
    settings = Settings(
        0.05, n_bootstrap=5, attack_steps=50, plain_vae_epochs=1, content=["retrieval"],
        attacks=["identification", "linkage", "membership"],
    )  # fmt: skip
    places = whole.Places(str(folder / "run"), str(folder / "judges"))
    schedule = dataclasses.replace(BUDGET, verifier_steps=40, medical_steps=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole.Evaluation, "draw", lambda *_: None)
        patch.setattr("monai_anon.evaluation.judges.LEAST_VERIFIER_AUC", 0.0)
        patch.setattr(attack, "LEAST_BEYOND_CHANCE", 0.2)
        run = whole.Evaluation(model, str(folder / "model.pt"), str(manifest), places, settings, schedule)
        return run.run(), folder / "run"


def test_a_closed_set_of_irises_is_measured_from_manifest_to_tables(irises):
    rows, folder = irises
    ours = next(
        row.method for row in rows if row.metric == "identification_accuracy" and row.method not in ("none", JUDGES)
    )
    found, untouched = of(rows, ours), of(rows, "none")
    assert untouched["identification_accuracy"].value > 0.35
    assert found["identification_accuracy"].value < untouched["identification_accuracy"].value
    assert found["identification_confidence_ratio"].value == pytest.approx(6 * found["identification_confidence"].value)
    assert {row.value for row in rows if row.metric == KNOWN_PEOPLE} == {1.0}
    for name in ("membership_nearest_auc", "membership_identity_nearest_auc"):
        assert found[name].value is None and found[name].note.startswith("not applicable")
    assert "linkage_6_rank_1" in found and found["linkage_6_chance"].value == pytest.approx(1 / 6)
    averaged = of(rows, "averaging all identities")
    assert 1 / 6 <= averaged["judge_identification_confidence"].value <= 1
    for name in ("attacks.csv", "table_3.csv", "judges.csv"):
        assert "identif" in (folder / name).read_text()
    assert "P10 identification" in (folder / "report.md").read_text()
    assert '"closed_set": true' in (folder / "run.json").read_text()
