"""The report on what passes: bound and policy in words, bits against what is kept, nothing that the policy denies."""

import math

import pytest
from test_conclusions import check, outcomes
from test_report import DATA, judge, make_run, measured, page_of, row

from monai_anon.channel import LEVELS
from monai_anon.evaluation.attacks.probes import NOT_PASSED
from monai_anon.evaluation.contents.channel import NO_BOUND
from monai_anon.evaluation.reporting import passing
from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.provenance import made_on
from monai_anon.evaluation.reporting.runs import Run, read_run
from monai_anon.evaluation.tables import JUDGES

DENIED = f"{NOT_PASSED} with the policy code"


def bound(bits=5.0, patients=30, **more):
    return [row("channel_bits", bits, **more), row("channel_patients", patients, **more)]


def unbounded(policy, **more):
    return [row("channel_bits", None, note=NO_BOUND[policy], **more)]


def curve(method="ours", **more):
    rows = []
    for bits, k in enumerate(LEVELS, start=1):
        rows += [
            row(f"code_{k}_bits", bits, method=method, **more),
            row(f"code_{k}_patients", 20, method=method, **more),
        ]
        rows.append(row(f"code_{k}_side_accuracy", 0.5 + bits / 20, 0.4, 1.0, method, **more))
    return rows


def page(*rows):
    return Page([Run(None, [*judge(0.97), *measured(), *rows], {"subject": {"name": "ours"}}, [])])


# ---- in words ----


def test_the_bound_is_said_in_words_near_the_top(tmp_path):
    text = page_of(tmp_path, [*judge(0.97), *measured(), *bound()])[1]
    said = "ours: on average a release's pixels say at most 5.00 bits of its original, whoever looks: which of 32 "
    text = text.replace("&#39;", "'")
    assert text.index('id="verdict"') < text.index(said) < text.index('id="made"')
    assert "30 or more training patients" in text


@pytest.mark.parametrize("policy", ["latents", "residual"])
def test_a_policy_without_a_bound_is_said_to_have_none(policy):
    found = page(*unbounded(policy))
    assert found.content(False)["passes"] == [f"ours has {NO_BOUND[policy]}."]
    assert passing.NOT_COVERED not in found.limits() and passing.NOT_COVERED in page(*bound()).limits()
    table = next(part for part in found.content(False)["content"] if part.key == "channel").tables[0]
    assert [cell.text for cell in table.lines[0].cells] == ["ours", "no bound"]


def test_nothing_is_said_of_what_passes_where_it_was_not_measured():
    assert page().content(False)["passes"] == [] and passing.in_words(bound(method="none"), ["ours"]) == []


def test_of_several_seeds_the_weakest_bound_is_said():
    rows = [*bound(5.0, 30, weights="a"), *bound(4.9, 21, weights="b")]
    (said,) = passing.in_words(rows, ["ours"])
    assert "5.00 bits" in said and "21 or more" in said
    (said,) = passing.in_words([*rows, *unbounded("latents", weights="c")], ["ours"])
    assert "no bound" in said


def test_a_randomised_response_is_said_with_its_epsilon():
    (said,) = passing.in_words([*bound(), row("channel_epsilon", 2.0)], ["ours"])
    assert "randomised response" in said and "epsilon 2." in said
    assert f"probability of {math.exp(2) / (math.exp(2) + 31):.2f}" in said


def test_what_passes_stands_beside_the_anonymizer_as_it_was_recorded(tmp_path):
    subject = {"name": "ours", "channel": {"policy": "code", "prototypes": 32}}
    runs = [make_run(tmp_path / "a", judge(0.97), subject=subject), make_run(tmp_path / "b", judge(0.97))]
    lines = {
        line.cells[0].text: [cell.text for cell in line.cells[1:]] for line in made_on(list(map(read_run, runs))).lines
    }
    assert lines["what passes of an original"] == ["policy code, prototypes 32", "not recorded"]
    assert "what passes of an original" not in [line.cells[0].text for line in made_on([read_run(runs[1])]).lines]


# ---- the curve ----


def test_the_curve_has_every_code_and_the_judges_own_figure():
    own = row("side_accuracy", 0.99, method=JUDGES)
    (figure,) = page(*curve(), own).drawings.of_content("channel")
    assert "side accuracy: 0.550 at 1.00 bits" in figure.alt and "0.900 at 8.00 bits" in figure.alt
    assert ">untouched images<" in figure.svg and ">side accuracy<" in figure.svg
    (without,) = page(*curve()).drawings.of_content("channel")
    assert "untouched images" not in without.svg


def test_policies_of_the_same_networks_share_one_curve_and_others_have_their_own():
    same = page(*curve(), *curve("theirs")).drawings.of_content("channel")
    assert len(same) == 1 and "ours, theirs" in same[0].caption
    assert len(page(*curve(), *curve("theirs", weights="other")).drawings.of_content("channel")) == 2


def test_codes_are_shown_in_the_order_of_their_size_with_and_without_a_verdict():
    for auc in (0.97, 0.6):
        rows = [*judge(auc), *measured(), *curve()]
        content = Page([Run(None, rows, {"subject": {"name": "ours"}}, [])]).content(False)["content"]
        part = next(part for part in content if part.key == "channel")
        assert [line.cells[1].text for line in part.tables[0].lines] == [str(k) for k in LEVELS]
        assert part.tables[0].lines[3].cells[-1].text == "0.700 (0.400-1.000)" and len(part.figures) == 1


# ---- the latents that pass ----


def probed(note_medical="", note_residual=""):
    return [
        row("probe_identity_patient_auc", 1.0, 0.99, 1.0),
        row("probe_medical_patient_auc", 0.7, 0.65, 0.75, note=note_medical),
        row("probe_residual_patient_auc", 0.8, 0.75, 0.85, note=note_residual),
    ]


def test_a_latent_that_passes_and_knows_the_patient_is_a_leak():
    found = check(probed(), "Inference", "latent probes")
    assert found.outcome == "fails" and "0.800" in found.sentence


def test_a_latent_that_does_not_pass_is_no_leak_whatever_it_knows():
    found = check(probed(note_residual=DENIED), "Inference", "latent probes")
    assert found.outcome == "fails" and "0.700" in found.sentence and "0.800" not in found.sentence
    found = check(probed(DENIED, DENIED), "Inference", "latent probes")
    assert found.outcome == "inapplicable" and "neither the medical nor the residual" in found.sentence


def test_probes_that_were_not_run_leave_inference_open_under_every_policy():
    rows = [*bound(), row("static_auc", 0.5, 0.45, 0.55, dataset=DATA)]
    assert check(rows, "Inference", "latent probes").outcome == "open"
    assert outcomes(rows)["Inference"].outcome == "open"
