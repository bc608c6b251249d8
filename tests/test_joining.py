"""Runs on one page: training seeds are joined, what only shares a name is kept apart; no verdict, no figure."""

import json
import re
import shlex

import pytest
from test_report import COMMAND, DATA, judge, make_run, measured, page_of, row

from monai_anon.evaluation.aggregation import aggregate, headlines, leakage, silences, withheld
from monai_anon.evaluation.reporting.commands import shareable
from monai_anon.evaluation.reporting.joining import kept_apart
from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.provenance import doubts
from monai_anon.evaluation.reporting.report import write_report
from monai_anon.evaluation.reporting.runs import Curve, Run
from monai_anon.evaluation.tables import JUDGES

# ---- joining ----


def test_training_seeds_are_joined_to_their_mean_and_the_widest_interval():
    joined = aggregate(
        [row("static_auc", value, value - 0.1, value + 0.1, weights=name) for name, value in (("a", 0.5), ("b", 0.7))]
    )
    assert len(joined) == 1
    found = joined[0]
    assert (found.value, found.ci_low, found.ci_high, found.seeds) == pytest.approx((0.6, 0.4, 0.8, 2))
    assert "mean of 2 training seeds" in found.note
    assert aggregate(joined) == joined


def test_measuring_one_model_twice_makes_no_second_seed():
    again = [row("static_auc", 0.5, 0.4, 0.6), row("static_auc", 0.6, 0.5, 0.7)]
    found = aggregate([*again, row("static_auc", 0.9, 0.8, 1.0, weights="other")])[0]
    assert found.seeds == 2 and found.value == pytest.approx((0.55 + 0.9) / 2)
    assert aggregate([again[0], again[0]]) == [again[0]]


def test_judges_are_no_training_seed_of_what_they_judge():
    rows = [row("finding_auc", 0.9, 0.8, 1.0, JUDGES, weights=name) for name in "abc"]
    assert [(found.seeds, found.note) for found in aggregate(rows)] == [(1, "")]


def test_a_seed_that_was_not_measured_is_said():
    rows = [row("fid", 2.0, weights="a"), row("fid", None, weights="b", note="not measured: too few images")]
    found = aggregate(rows)[0]
    assert found.value == 2.0 and "1 of 2 seeds not measured" in found.note and "too few images" in found.note


def test_data_sets_methods_and_metrics_are_not_mixed():
    rows = [row("a", 0.1), row("b", 0.2), row("a", 0.3, method="none"), row("a", 0.4, dataset="other/test")]
    assert aggregate(rows) == rows


# ---- runs ----

COHORT = {"name": "phantoms", "generated": True, "fingerprint": "1234567890abcdef", "image_size": 64}
SETTINGS = {"attack_steps": 400, "seed": 0, "n_bootstrap": 1000, "hit_threshold": 0.05}


def run(weights="aaaaaaaa", seen=1000, judges=0.97, method="ours", rows=(), cohort=COHORT, **settings):
    """A run of one method, its judges and the reference."""
    own = {"weights": weights, "images_seen": seen}
    found = [
        row("static_auc", 0.6, 0.55, 0.65, method, **own),
        row("static_auc", 0.9, 0.85, 0.95, "none", weights="none"),
    ]
    about = {"command": COMMAND, "subject": {"name": method}, "cohort": dict(cohort), "settings": SETTINGS | settings}
    curve = Curve("static", method, "x", "y", [0, 1], [0, 1])
    return Run(None, [*(judge(judges) if judges else []), *found, *rows], about, [curve])


def methods(*runs):
    rows = aggregate(one for found in kept_apart(runs).runs for one in found.rows)
    return {one.method: one.seeds for one in rows if one.metric == "static_auc" and one.method != "none"}


def datasets(*runs):
    return sorted({one.dataset for found in kept_apart(runs).runs for one in found.rows})


def test_runs_that_agree_are_training_seeds_of_one_method():
    assert methods(run("aaaaaaaa"), run("bbbbbbbb"), run("cccccccc")) == {"ours": 3}
    assert kept_apart([run("aaaaaaaa"), run("bbbbbbbb")]).apart == []


def test_one_run_keeps_its_names():
    found = kept_apart([run()])
    assert found.apart == [] and found.runs[0].rows == run().rows


@pytest.mark.parametrize(
    "other", [{"attack_steps": 100}, {"seed": 1}, {"n_bootstrap": 200}, {"hit_threshold": 0.1}, {"seen": 500}]
)
def test_other_weights_measured_otherwise_are_other_methods(other):
    found = kept_apart([run("aaaaaaaa"), run("bbbbbbbb", **other)])
    assert methods(run("aaaaaaaa"), run("bbbbbbbb", **other)) == {"ours [aaaaaa]": 1, "ours [bbbbbb]": 1}
    assert "ours [aaaaaa], ours [bbbbbb]" in found.apart[0]
    assert [one.subjects for one in found.runs] == [["ours [aaaaaa]"], ["ours [bbbbbb]"]]
    assert [one.curves[0].method for one in found.runs] == ["ours [aaaaaa]", "ours [bbbbbb]"]


def test_what_was_never_trained_has_no_training_seeds():
    runs = run("aaaaaaaa", seen=0, method="Blur"), run("bbbbbbbb", seen=0, method="Blur")
    assert methods(*runs) == {"Blur [aaaaaa]": 1, "Blur [bbbbbb]": 1}
    assert methods(runs[0], runs[0]) == {"Blur": 1}, "the same weights twice are one method"
    two = run(seen=0, rows=[row("static_auc", 0.7, weights="bbbbbbbb")])
    assert methods(two) == {"ours [aaaaaa]": 1, "ours [bbbbbb]": 1}, "in one run, too"


def test_seeds_that_agree_stay_together_beside_one_that_does_not():
    found = methods(run("aaaaaaaa"), run("bbbbbbbb"), run("cccccccc", seen=9))
    assert found == {"ours [aaaaaa bbbbbb]": 2, "ours [cccccc]": 1}


def test_the_same_weights_with_other_settings_are_told_apart_by_them():
    found = kept_apart([run(), run(attack_steps=100)])
    assert methods(run(), run(attack_steps=100)) == {
        "ours [aaaaaa, attack_steps 400]": 1, "ours [aaaaaa, attack_steps 100]": 1,
    }  # fmt: skip
    assert "attack_steps 400, 100" in found.apart[-1] and "none" in found.apart[-1]


def test_the_page_says_what_was_kept_apart(tmp_path):
    runs = [make_run(tmp_path / name, judge(0.97) + measured(weights=name * 8)) for name in "ab"]
    page = write_report(runs, tmp_path / "page.html").path.read_text()
    assert "ours [aaaaaa], ours [bbbbbb]" in page and "training seeds" in page


def test_experiments_of_two_models_stand_side_by_side_in_table_2():
    rows = [row("ssim_original", 0.7, method="reconstruction", weights=name * 8) for name in "ab"]
    runs = [run(name * 8, seen=0, rows=[one]) for name, one in zip("ab", rows, strict=True)]
    page = Page(runs)
    table = page.paper()[0]
    lines = [[cell.text for cell in line.cells[:2]] for line in table.lines if line.kind != "other"]
    assert lines == [[f"{DATA} [{digits}]", "reconstruction"] for digits in ("aaaaaa", "bbbbbb")]
    assert not any("reconstruction" in one.method for one in page.headlines), "an experiment is no method"


# ---- data and judges ----


def test_other_images_under_the_same_name_are_other_data():
    other = COHORT | {"fingerprint": "fedcba0987654321"}
    assert datasets(run(), run(cohort=other)) == [f"{DATA} [123456]", f"{DATA} [fedcba]"]
    assert datasets(run(), run()) == [DATA]
    assert "123456" in kept_apart([run(), run(cohort=other)]).apart[0]


def test_another_image_size_is_other_data_although_no_fingerprint_is_known():
    old = {"name": "phantoms", "image_size": 64}
    assert datasets(run(cohort=old), run(cohort=old)) == [DATA]
    assert datasets(run(cohort=old), run(cohort=old | {"image_size": 128})) == [f"{DATA} [run 1]", f"{DATA} [run 2]"]
    assert len(datasets(run(cohort=old), run())) == 2, "unknown is not the same"
    larger = COHORT | {"image_size": 128}
    assert datasets(run(), run(cohort=larger)) == [f"{DATA} [run 1]", f"{DATA} [run 2]"], "the digits tell nothing"


@pytest.mark.parametrize("judges", [None, []])
def test_a_run_without_judges_says_nothing_of_its_persons_beside_one_with_them(judges):
    silent = run("bbbbbbbb", judges=None, rows=[] if judges is None else [row("verification_auc", None, method=JUDGES)])
    page = Page([run("aaaaaaaa"), silent])
    assert page.datasets == [DATA, f"{DATA} [run 2, without judges]"]
    assert list(page.silences) == [f"{DATA} [run 2, without judges]"]
    values = {one.dataset: one.value for one in page.rows if one.metric == "static_auc" and one.method == "ours"}
    assert values == {DATA: 0.6, f"{DATA} [run 2, without judges]": None}


# ---- verdict ----


def test_the_headline_is_the_strongest_attack_on_either_side_of_chance():
    rows = [row("static_auc", 0.55, 0.5, 0.6), row("adaptive_auc", 0.4, 0.35, 0.45), row("attribute_sex_auc", 0.99)]
    found = headlines(rows)[0]
    assert (found.privacy.value, found.privacy.note, found.adaptive) == (0.4, "adaptive", True)
    assert (found.leakage.value, found.leakage.ci_low, found.leakage.ci_high) == pytest.approx((0.1, 0.05, 0.15))


def test_seeds_on_both_sides_of_chance_do_not_cancel():
    rows = [row("static_auc", 0.4, 0.35, 0.45, weights="a"), row("static_auc", 0.6, 0.55, 0.65, weights="b")]
    found = headlines(rows)[0]
    assert found.privacy.value == pytest.approx(0.5) and found.leakage.value == pytest.approx(0.1)


def test_an_interval_around_chance_leaks_from_zero():
    found = leakage(row("static_auc", 0.52, 0.45, 0.57))
    assert (found.ci_low, found.ci_high) == pytest.approx((0.0, 0.07))


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (judge(0.79), "below 0.80"),
        ([*judge(0.97), row("verification_auc", 0.7, method=JUDGES, weights="second")], "0.700"),
        (judge(0.97)[1:], "no verdict"),
        ([row("static_auc", 0.5)], "judges' own quality was not measured"),
    ],
)
def test_the_weakest_judge_decides_whether_there_is_a_verdict(rows, why):
    assert why in silences(rows)[DATA]


def test_a_good_judge_gives_a_verdict_and_takes_nothing_away():
    rows = judge(0.81) + measured()
    assert silences(rows) == {} and withheld(rows, {}) == rows


def test_without_a_verdict_the_page_gives_no_figure_about_persons(tmp_path):
    written, page = page_of(tmp_path, judge(0.79) + measured() + measured("none"))
    assert "below 0.80" in written.silence and "No privacy verdict" in page and "below 0.80" in page
    assert not re.search(r"0?\.617|0?\.618|0?\.619|0?\.118", page)
    assert "0.932 (0.920-0.940)" in page and "0.732 (0.720-0.740)" in page
    assert "0.784" in page and "0.299" not in page, "the paper's figures: of the finding, not of persons"
    assert "Attack curves" not in page
    assert "not anonymous" not in page and "not distinguishable" not in page


def test_a_cohort_without_a_verdict_silences_only_itself(tmp_path):
    good, bad = measured(), measured(dataset="real/test")
    written, page = page_of(tmp_path, judge(0.97) + good + judge(0.6, "real/test") + bad)
    assert written.silence.startswith("real/test: no verdict") and "phantoms" not in written.silence
    assert "0.617" in page and "No privacy verdict" in page


def test_no_attack_is_no_verdict(tmp_path):
    written, page = page_of(tmp_path, [*judge(0.97), row("judge_finding_auc", 0.9, 0.8, 1.0)])
    assert "no attack" in written.silence and "No privacy verdict" in page
    assert page.count("This attack was not run.") == 9


def test_an_attack_on_the_reference_alone_is_no_verdict(tmp_path):
    rows = [*judge(0.97), *measured("none"), row("judge_finding_auc", 0.9, 0.8, 1.0)]
    written, page = page_of(tmp_path, rows)
    assert "no attack" in written.silence and "No figure about persons is given" not in page


# ---- repeating ----


@pytest.mark.parametrize(
    ("revisions", "words"),
    [
        (("a", "b"), "2 revisions"),
        (("a", "a+"), "a+: made with changes"),
        (("",), "unknown"),
        (("unknown",), "unknown"),
    ],
)
def test_the_claim_that_figures_come_again_is_qualified_where_it_is_not_certain(revisions, words):
    assert words in " ".join(doubts([row("fid", 2.0, revision=name) for name in revisions]))
    assert doubts([row("fid", 2.0, revision="a"), row("kid", 0.0, revision="a")]) == []


def test_doubts_stand_beside_the_claim(tmp_path):
    _, page = page_of(tmp_path, [*judge(0.97), row("fid", 2.0, revision="f00d+")])
    assert 0 < page.index("f00d+: made with changes") - page.index("give the same figures.") < 500


def test_joined_rows_name_every_revision_and_seed_of_the_measurement():
    found = aggregate([row("fid", 1.0, revision="a", seed=0), row("fid", 2.0, revision="b", seed=1, weights="v")])[0]
    assert found.revision == "a b" and "seeds 0, 1" in found.note


# ---- commands ----

HERE = "/home/jane/project"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("monai-anon evaluate --output runs/one", "monai-anon evaluate --output runs/one"),
        ("x --output /home/jane/project/runs/one", "x --output runs/one"),
        ("x --output /home/jane/project", "x --output ."),
        ("x --manifest /data/clinic/patients/manifest.json", "x --manifest manifest.json"),
        ("x --manifest=/data/clinic/manifest.json", "x --manifest=manifest.json"),
        ("x '/data/Jane Doe/out put'", "x 'out put'"),
        ("x ../jane/out runs/../../other/out runs/../two", "x out out runs/../two"),
        ("x ~/clinic/out ~jane/out ~jane", "x out out '~'"),
        ("x /home/jane/project-2/out", "x out"),
        ("x @/data/clinic/a.json", "x @a.json"),
        (r"x 'C:\Users\Jane\out' 'D:/clinic/out'", "x out out"),
        ("monai_anon.baselines:Blur --budget 100 --x a/b:c", "monai_anon.baselines:Blur --budget 100 --x a/b:c"),
        ("x \"['bundles/a.json','/data/clinic/b.json']\"", "x " + shlex.quote("['bundles/a.json','b.json']")),
        ("x 'open /data/clinic/b", "x ''\"'\"'open' b"),
        ("not recorded", "not recorded"),
    ],
)
def test_a_command_names_no_folder_outside_the_working_directory(command, shown):
    assert shareable(command, HERE) == shown


def test_no_folder_of_a_person_is_on_the_page(tmp_path):
    command = "monai-anon evaluate --manifest /clinic/jane/manifest.json"
    about = {"command": command, "bundle": "/clinic/jane doe/chest", "settings": {"bundle": "/clinic/jane/chest"}}
    made = make_run(tmp_path / "run", judge(0.97) + measured(), **about)
    entry = json.loads((made / "pictures" / "pictures.json").read_text())[0] | {"command": "draw /clinic/jane/model.pt"}
    (made / "pictures" / "pictures.json").write_text(json.dumps([entry]))
    page = write_report([made], tmp_path / "page.html").path.read_text()
    assert "jane" not in page and "manifest.json" in page and "draw model.pt" in page
