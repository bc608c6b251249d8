"""What the report concludes: a leak is never softened, a result at chance counts only where the attack can find one."""

import dataclasses

import pytest
from test_report import DATA, judge, measured, page_of, row

from monai_anon.evaluation.aggregation import headlines
from monai_anon.evaluation.attacks.headline import LINKING_RANK
from monai_anon.evaluation.reporting.checks import RANKS
from monai_anon.evaluation.reporting.conclusions import criteria, privacy_line
from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.runs import Run
from monai_anon.evaluation.tables import JUDGES


def outcomes(rows):
    return {found.name: found for found in criteria(rows, "ours", DATA)}


def check(rows, criterion, start):
    return next(found for found in outcomes(rows)[criterion].checks if found.attack.startswith(start))


def box(rows, method="ours"):
    return next(one for one in Page([Run(None, [*judge(0.97), *rows], {"subject": {"name": method}}, [])]).verdicts())


NONE = [row("static_auc", 0.95, 0.9, 1.0, "none"), row("adaptive_auc", 0.95, 0.9, 1.0, "none")]


def test_an_interval_with_chance_in_it_is_no_link_but_no_proof():
    rows = [row("static_auc", 0.52, 0.46, 0.58), *NONE]
    check = outcomes(rows)["Linkability"].checks[0]
    assert check.outcome == "chance" and "0.580" in check.sentence
    assert "with this attacker and this budget" in privacy_line(headlines(rows)[0])


@pytest.mark.parametrize(("value", "side"), [(0.6, "above"), (0.4, "below")])
def test_an_interval_off_chance_on_either_side_is_a_link(value, side):
    rows = [row("static_auc", value, value - 0.05, value + 0.05), *NONE]
    found = outcomes(rows)["Linkability"]
    assert found.outcome == "fails" and "not anonymous" in found.sentence and side in found.checks[0].sentence
    assert f"{side} chance: not anonymous" in privacy_line(headlines(rows)[0])


def test_one_telling_interval_among_many_decides():
    rows = [row("adaptive_auc", 0.55, 0.45, 0.65), row("adaptive_mixed_auc", 0.56, 0.53, 0.59), *NONE]
    assert outcomes(rows)["Linkability"].checks[1].outcome == "fails"


def test_what_was_not_run_is_named_and_leaves_its_criterion_open():
    found = outcomes([row("static_auc", 0.5, 0.45, 0.55), *NONE])
    assert {one.outcome for one in found.values()} == {"open"}
    for name, attacks in {
        "Singling out": ("P3", "P4"),
        "Linkability": ("P2", "P6"),
        "Inference": ("P5", "P7", "P8"),
    }.items():
        assert all(attack in found[name].sentence for attack in attacks)


def test_an_attack_that_finds_nobody_on_untouched_images_says_nothing():
    weak = [row("static_auc", 0.5, 0.45, 0.55), row("static_auc", 0.51, 0.45, 0.57, "none")]
    check = outcomes(weak)["Linkability"].checks[0]
    assert check.outcome == "open" and "too weak" in check.sentence
    assert "its strength is unknown" in outcomes(weak[:1])["Linkability"].checks[0].sentence


def test_a_figure_without_interval_decides_nothing():
    assert outcomes([row("static_auc", 0.5), *NONE])["Linkability"].checks[0].outcome == "open"


def test_all_checks_at_chance_are_still_called_no_proof():
    names = ["static_auc", "adaptive_auc", "repeated_4_auc"]
    rows = [row(name, 0.5, 0.45, 0.55) for name in names] + [row(name, 0.9, 0.8, 1.0, "none") for name in names]
    found = outcomes(rows)["Linkability"]
    assert found.outcome == "chance" and "no proof" in found.sentence


# ---- training seeds ----


def seeds(*figures, metric="static_auc"):
    return [row(metric, *figure, weights=name, images_seen=1000) for name, figure in zip("abc", figures, strict=False)]


HIGH, LOW, CHANCE = (0.8, 0.75, 0.85), (0.3, 0.25, 0.35), (0.49, 0.45, 0.53)


@pytest.mark.parametrize("figures", [(HIGH, CHANCE), (CHANCE, HIGH), (LOW, (0.7, 0.65, 0.75))])
def test_one_leaking_training_seed_fails_whatever_the_others_find(figures):
    rows = [*seeds(*figures), *NONE]
    found = outcomes(rows)["Linkability"]
    assert found.outcome == "fails"
    assert f"in {sum(figure != CHANCE for figure in figures)} of 2 training seeds" in found.checks[0].sentence
    shown = box(rows)
    assert "not anonymous" in shown["text"] and "not distinguishable" not in shown["text"]
    assert shown["kind"] == "warning" and "linkability: fails" in shown["outcomes"]


def test_a_mean_over_seeds_that_lies_at_chance_names_the_worst_seed():
    found = headlines(seeds(LOW, (0.7, 0.65, 0.75)))[0]
    assert "both sides of chance" in found.privacy.note and found.leakage.value == pytest.approx(0.2)
    assert headlines(seeds(HIGH, CHANCE))[0].worst.value == 0.8


def test_only_seeds_that_are_all_at_chance_are_at_chance():
    names = ["static_auc", "adaptive_auc", "repeated_4_auc"]
    reference = [row(name, 0.9, 0.8, 1.0, "none") for name in names]
    rows = [one for name in names for one in seeds(CHANCE, CHANCE, metric=name)]
    assert outcomes([*rows, *reference])["Linkability"].outcome == "chance"
    assert outcomes([*rows[:-1], *reference])["Linkability"].outcome == "open", "one seed was not attacked"
    assert "none distinguishable" in privacy_line(headlines(rows)[0])


def test_two_seeds_with_a_bare_sign_each_are_no_accident():
    bare = (0.54, 0.51, 0.57)
    assert outcomes([*seeds(bare, CHANCE), *NONE])["Linkability"].outcome == "sign"
    assert outcomes([*seeds(bare, bare), *NONE])["Linkability"].outcome == "fails"


# ---- singling out ----


def ranked(metric, low, high, method="ours", n=1000, chance=0.01):
    """A rank-1 in the middle of its interval, with its chance."""
    rows = [row(metric, (low + high) / 2, low, high, method, n=n)]
    if metric.startswith("linkage_1"):
        rows.append(row(metric.replace("rank_1", "chance"), chance, method=method))
    return [*rows, row("rank_1_chance", chance, method=JUDGES)]


@pytest.mark.parametrize(
    "metric",
    [
        "linkage_100_rank_1", "linkage_rank_1", "static_rank_1", "adaptive_mixed_rank_1", "adaptive_lowest-bits_rank_1",
        "inversion_rank_1", "repeated_16_rank_1", "privacy_rank_1",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.02, 0.05, "fails"), (0.005, 0.02, "chance"), (0.0, 0.004, "chance"), (0, 0, "chance")],
)
def test_a_rank_singles_out_only_above_the_chance_of_its_gallery(metric, low, high, outcome):
    rows = ranked(metric, low, high) + ranked(metric, 0.9, 1.0, "none")
    start = "linkage" if metric.startswith("linkage") else "rank-1"
    assert check(rows, "Singling out", start).outcome == outcome
    if outcome == "fails":
        assert outcomes(rows)["Singling out"].outcome == "fails"


def test_every_rank_of_the_headline_is_judged():
    names = ["static", "linkage", "inversion", "repeated_16", "repeated_4"]
    names += [f"adaptive_{pairs}" for pairs in ("released-real", "released-released", "mixed", "lowest-bits")]
    metrics = [f"{name}_rank_1" for name in names if LINKING_RANK.fullmatch(f"{name}_rank_1")]
    assert len(metrics) >= 6
    for metric in metrics:
        rows = ranked(metric, 0.5, 0.6) + ranked(metric, 0.9, 1.0, "none")
        assert outcomes(rows)["Singling out"].outcome == "fails", metric


@pytest.mark.parametrize(
    ("reference", "why"), [([], "strength is unknown"), (ranked("static_rank_1", 0.0, 0.02, "none"), "too weak")]
)
def test_a_rank_at_chance_needs_an_attack_that_finds_people_on_untouched_images(reference, why):
    found = check(ranked("static_rank_1", 0.0, 0.02) + reference, "Singling out", RANKS[0])
    assert found.outcome == "open" and why in found.sentence


def test_few_images_in_a_large_gallery_tell_only_what_is_plain():
    near = ranked("static_rank_1", 0.011, 0.04, n=200) + ranked("static_rank_1", 0.9, 1.0, "none", n=200)
    found = check(near, "Singling out", RANKS[0])
    assert found.outcome == "open" and "Too small to tell" in found.sentence and "2.0 right answers" in found.sentence
    nobody = ranked("static_rank_1", 0.0, 0.0, n=200) + ranked("static_rank_1", 0.9, 1.0, "none", n=200)
    assert check(nobody, "Singling out", RANKS[0]).outcome == "open"
    plain = ranked("static_rank_1", 0.9, 1.0, n=200)
    assert check(plain, "Singling out", RANKS[0]).outcome == "fails"


def test_a_rank_without_chance_or_interval_decides_nothing():
    assert check([row("linkage_10_rank_1", 0.9, 0.8, 1.0)], "Singling out", "linkage").outcome == "open"
    assert check([row("linkage_rank_1", 0.9), *ranked("x", 0, 0)], "Singling out", "linkage").outcome == "open"


def test_the_strongest_rank_stands_in_the_headline():
    rows = [*judge(0.97), *measured(), row("privacy_rank_1", 0.7654, 0.7, 0.8)]
    table = Page([Run(None, rows, {}, [])]).content(False)["headline"][0]
    assert table.lines[0].cells[table.columns.index("rank-1")].text == "0.765 (0.700-0.800)"
    assert any("0.010" in note for note in table.notes), "chance stands below"


# ---- inference ----


@pytest.mark.parametrize(
    ("figures", "outcome", "words"),
    [
        ((0.6, 0.55, 0.65), "fails", "look like training patients"),
        ((0.4, 0.35, 0.45), "open", "only look unlike real images"),
        ((0.5, 0.45, 0.55), "open", "gives no sign"),
    ],
)
def test_releases_near_training_patients_count_and_those_far_from_everybody_do_not(figures, outcome, words):
    found = check([row("membership_nearest_auc", *figures)], "Inference", "nearest")
    assert found.outcome == outcome and words in found.sentence


@pytest.mark.parametrize(("seen", "outcome"), [(0, "inapplicable"), (1000, "fails")])
def test_what_was_not_trained_has_no_members(seen, outcome):
    rows = [row("membership_black_box_auc", 0.9, 0.85, 0.95, images_seen=seen)]
    assert check(rows, "Inference", "membership").outcome == outcome


def test_membership_of_the_identity_vae_counts_although_its_training_is_unknown():
    rows = [row("membership_black_box_auc", 0.9, 0.85, 0.95), row("membership_vae_auc", 0.5, 0.45, 0.55)]
    assert check(rows, "Inference", "membership").outcome == "open"
    assert check([row("membership_vae_auc", 0.3, 0.25, 0.35)], "Inference", "membership").outcome == "fails"


def test_membership_without_a_positive_control_never_passes():
    found = check([row("membership_vae_auc", 0.5, 0.45, 0.55, images_seen=9)], "Inference", "membership")
    assert found.outcome == "open" and "no positive control" in found.sentence


def test_the_view_is_no_attribute_of_the_person():
    rows = [row("attribute_view_auc", 0.9, 0.85, 0.95), row("attribute_view_auc", 0.9, 0.85, 0.95, "none")]
    assert outcomes(rows)["Inference"].outcome == "open"
    assert check([row("attribute_sex_auc", 0.9, 0.85, 0.95)], "Inference", "attribute").outcome == "fails"


@pytest.mark.parametrize(
    ("identity", "outcome"), [((0.9, 0.85, 0.95), "chance"), ((0.5, 0.45, 0.55), "open"), ((), "open")]
)
def test_a_latent_that_knows_nobody_counts_only_where_the_probe_finds_people_in_the_identity(identity, outcome):
    rows = [row("probe_residual_patient_auc", 0.5, 0.45, 0.55)]
    rows += [row("probe_identity_patient_auc", *identity)] if identity else []
    assert check(rows, "Inference", "latent").outcome == outcome


def factors(method="ours", **bounds):
    return [row(f"factor_id_{name}_r2", low + 0.05, low, low + 0.1, method) for name, low in bounds.items()]


def test_any_readable_identity_factor_fails_and_the_highest_three_are_named():
    rows = factors(one=0.1, two=0.4, three=0.3, four=0.2, five=-0.2)
    rows.append(row("factors_identity_r2", -0.1, -0.2, -0.05))
    found = check(rows, "Inference", "identity")
    assert found.outcome == "fails" and "4 of 5" in found.sentence
    places = [found.sentence.index(name) for name in ("two", "three", "four")]
    assert places == sorted(places) and "one" not in found.sentence
    assert check(factors(five=-0.2, one=0.01), "Inference", "identity").outcome == "fails", "one is enough"


def test_unread_identity_factors_count_only_where_untouched_images_show_them():
    ours = factors(one=-0.1, two=-0.2)
    assert check([*ours, *factors("none", one=0.8, two=0.9)], "Inference", "identity").outcome == "chance"
    for reference in ([], factors("none", one=0.8, two=-0.1), factors("none", one=0.8)):
        found = check([*ours, *reference], "Inference", "identity")
        assert found.outcome == "open" and "too weak" in found.sentence and "two" in found.sentence
    assert check([row("factor_id_one_r2", 0.3)], "Inference", "identity").outcome == "open", "no interval"


def test_the_mean_of_the_identity_factors_stands_in_where_no_single_one_is_there():
    assert check([row("factors_identity_r2", 0.2, 0.1, 0.3)], "Inference", "identity").outcome == "fails"


# ---- a bare sign ----


def test_one_interval_that_barely_leaves_out_chance_is_a_sign_and_no_more():
    rows = [row("static_auc", 0.54, 0.515, 0.57), *NONE]
    found = outcomes(rows)["Linkability"]
    assert found.outcome == "sign" and "A sign of" in found.sentence and "not anonymous" not in found.sentence
    line = privacy_line(headlines(rows)[0])
    assert "a sign of a link" in line and "links" not in line
    assert box(rows)["kind"] == "warning"
    plain = [row("static_auc", 0.56, 0.525, 0.6), *NONE]
    assert outcomes(plain)["Linkability"].outcome == "fails" and "links above" in privacy_line(headlines(plain)[0])


def test_two_attacks_with_a_bare_sign_each_fail_a_criterion():
    rows = [row("static_auc", 0.54, 0.515, 0.57), row("repeated_4_auc", 0.46, 0.43, 0.49), *NONE]
    assert outcomes(rows)["Linkability"].outcome == "fails"


def test_a_wide_interval_of_the_strongest_attack_hides_no_certain_link():
    rows = [row("adaptive_auc", 0.6, 0.4, 0.8), row("static_auc", 0.56, 0.53, 0.59), *NONE]
    assert "static" in privacy_line(headlines(rows)[0]) and "not anonymous" in privacy_line(headlines(rows)[0])


# ---- the box ----


def everything_at_chance():
    names = ["static_auc", "adaptive_auc", "inversion_auc", "repeated_4_auc", "attribute_sex_auc"]
    rows = [row(name, 0.5, 0.45, 0.55) for name in names] + [row(name, 0.9, 0.85, 0.95, "none") for name in names]
    for metric in ("linkage_10_rank_1", "static_rank_1"):
        rows += ranked(metric, 0.0, 0.02, chance=0.01) + ranked(metric, 0.9, 1.0, "none")
    return [
        *rows,
        row("probe_identity_patient_auc", 0.9, 0.85, 0.95),
        row("probe_medical_patient_auc", 0.5, 0.45, 0.55),
    ]


def test_the_box_reassures_only_where_all_three_criteria_found_nothing(monkeypatch):
    rows = [*everything_at_chance(), row("membership_nearest_auc", 0.5, 0.45, 0.55)]
    assert box(rows)["kind"] == "neutral", "membership has no positive control"
    assert box([row("static_auc", 0.5, 0.45, 0.55), *NONE])["kind"] == "neutral", "two criteria were not measured"
    found = [dataclasses.replace(one, outcome="chance") for one in outcomes(rows).values()]
    monkeypatch.setattr("monai_anon.evaluation.reporting.conclusions.criteria", lambda *where: found)
    assert box(rows)["kind"] == "verdict"


def test_the_box_names_the_attacks_without_a_figure():
    rows = [row("static_auc", 0.5, 0.45, 0.55), row("attribute_auc", None, note="not measured: no columns"), *NONE]
    missing = box(rows)["missing"]
    assert all(f"P{number}:" in missing for number in range(2, 9)) and "P1" not in missing


@pytest.mark.parametrize(
    "leak",
    [
        row("membership_black_box_auc", 0.9, 0.85, 0.95, images_seen=10),
        row("probe_residual_patient_auc", 0.9, 0.85, 0.95),
        row("linkage_10_rank_1", 0.9, 0.85, 0.95),
        row("factor_id_lung_r2", 0.9, 0.85, 0.95),
    ],
    ids=lambda found: found.metric,
)
def test_a_leak_is_told_although_no_attack_on_persons_has_an_auc(tmp_path, leak):
    rows = [leak, row("linkage_10_chance", 0.1)]
    assert box(rows)["kind"] == "warning"
    written, page = page_of(tmp_path, [*judge(0.97), *rows])
    assert written.silence == "" and "no attack that links persons was run" in page and "fails" in page


def test_chance_alone_is_no_attack(tmp_path):
    written, _ = page_of(tmp_path, [*judge(0.97), row("linkage_10_chance", 0.1), row("ssim_original", 0.5)])
    assert "no attack" in written.silence


def test_the_law_is_not_claimed_to_hold_the_three_criteria(tmp_path):
    _, page = page_of(tmp_path, judge(0.97) + measured() + measured("none"))
    for words in ("identifiable", "recital 26", "WP 216", "binds nobody", "health data", "originals", "about .03"):
        assert words in page
    assert "uncorrected" in page and "draw patients only" in page
