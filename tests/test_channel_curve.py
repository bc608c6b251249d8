"""Bits against what is kept, on toy images whose side needs four codes: known answers, equal draws, nothing changed."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_judges import toy_cohort
from test_protocol import SeeingJudges, bar
from torch import nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import LEVELS, Channel
from monai_anon.channel_fitting import fit_channel
from monai_anon.evaluation.aggregation import about_persons, withheld
from monai_anon.evaluation.attacks.probes import probes
from monai_anon.evaluation.contents.channel import channel, released_under
from monai_anon.evaluation.judges import JudgeSchedule
from monai_anon.evaluation.record import channel_record
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, subject_of
from monai_anon.evaluation.tables import KEPT, code_table, report
from monai_anon.identities import encode_cohort
from monai_anon.networks import Disentangler, IdentityVAE, Latents

UPPER, MEDICAL, RESIDUAL = 8, 3, 2


class ToyEncoder(nn.Module):
    """Identity: the columns of the upper half; residual: two pixels; medical: whether there is a bar (with some noise,
    as a trained latent has), its side, its height.
    """

    unit_identity = False

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))  # tells where the networks are

    def forward(self, image):
        height, right = bar(image[:, 0, 16:])
        present = (height > 0).float()
        noise = 10 * (image[:, 0, 16:, 12:18].mean((1, 2)) + 0.53)
        medical = torch.stack([2 * present + noise, present * (2.0 * right - 1), height / 16], dim=1)
        return Latents(image[:, 0, :16].mean(1).unflatten(1, (UPPER, 4)).mean(2), medical, image[:, 0, -1, -2:])


class ToyDecoder(nn.Module):
    """Draws what `ToyEncoder` reads; a side between left and right is drawn as the nearer one."""

    def forward(self, z):
        image = torch.full((len(z.identity), 1, 32, 32), -0.5)
        image[:, 0, :16] = z.identity.repeat_interleave(4, dim=1).clamp(-1, 1)[:, None]
        for one, (present, side, height) in zip(image[:, 0], z.medical.tolist(), strict=True):
            if present > 1:
                left = 20 if side > 0 else 0
                one[32 - round(16 * height) :, left : left + 10] = 0.8
        image[:, 0, -1, -2:] = z.residual
        return image


class ToyFinding(nn.Module):
    """Logits (B, 2) of the medical latent."""

    def forward(self, medical):
        return torch.stack([1 - medical[:, 0], medical[:, 0] - 1], dim=1)


def toy_networks(policy="latents", prototypes=8, epsilon=None, fitted=True):
    """The toy's networks behind a channel of toy people."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = IdentityVAE(UPPER, latent_size=4, hidden=8, unit_identity=False)
    disentangler = Disentangler(ToyEncoder(), ToyDecoder(), ToyFinding())
    own = Channel((UPPER, MEDICAL, RESIDUAL), policy=policy, prototypes=prototypes, epsilon=epsilon)
    if fitted:
        known = encode_cohort(disentangler, toy_cohort(150, seed=7))
        found = fit_channel(known.latents, known.patient, known.finding, fewest=5)
        own.load_state_dict(found.state_dict())
        assert own.fitted()
    return LatentSwapAnonymizer(disentangler, vae, own)


@pytest.fixture(scope="module")
def scene():
    parts = toy_cohort(20, seed=1), None, toy_cohort(30, seed=11)
    return Scene(*parts, SeeingJudges(), steps=2, n_bootstrap=30, schedule=JudgeSchedule(batch_size=16), progress=False)


def subject(name="toy", **options):
    return subject_of(name, toy_networks(**options))


@pytest.fixture(scope="module")
def coded():
    return subject(policy="code", prototypes=16)


@pytest.fixture(scope="module")
def rows(coded, scene):
    return {row.metric: row for row in channel(coded, scene)}


SIDES = "left", "right"


def test_two_codes_keep_the_finding_alone_and_four_its_side(rows, scene):
    left, right = (np.mean([entry["side"] == s for entry in scene.test.entries if entry["finding"]]) for s in SIDES)
    assert rows["code_2_finding_accuracy"].value == rows["code_2_finding_auc"].value == 1
    assert rows["code_2_side_accuracy"].value in (pytest.approx(left), pytest.approx(right))  # everybody on one side
    assert rows["code_2_severity_correlation"].value == pytest.approx(0, abs=1e-6)
    assert rows["code_4_side_accuracy"].value == 1
    assert rows["code_4_severity_correlation"].value < 0.9 < rows["code_256_severity_correlation"].value


def test_every_code_has_its_bound_and_its_figures_with_intervals(rows, coded):
    expected = {f"code_{k}_{name}" for k in LEVELS for name in ("bits", "patients", *KEPT)}
    assert expected == {name for name in rows if name.startswith("code_")}
    bits, patients = ([rows[f"code_{k}_{name}"].value for k in LEVELS] for name in ("bits", "patients"))
    assert bits == sorted(bits) and all(b <= np.log2(k) for b, k in zip(bits, LEVELS, strict=True))
    assert patients == sorted(patients, reverse=True) and patients[-1] >= 5
    book = coded.networks.channel.codebook
    assert bits == [pytest.approx(np.log2(book.count(level))) for level in range(len(LEVELS))]
    for k in LEVELS:
        for name in KEPT:
            row = rows[f"code_{k}_{name}"]
            assert row.ci_low <= row.value <= row.ci_high and row.n > 0


def test_only_the_code_differs_from_point_to_point(coded, scene):
    """The upper half is drawn by the identity, two pixels by the residual: neither may depend on the code."""
    few, many = (released_under(coded, scene, k) for k in (2, 256))
    assert torch.equal(few[:, :, :16], many[:, :, :16]) and torch.equal(few[..., -1, -2:], many[..., -1, -2:])
    assert not torch.equal(few, many)
    assert len(few[:, :, :16].flatten(1).unique(dim=0)) > 1  # there are draws to compare


def test_under_its_own_code_the_curve_shows_the_subjects_own_release(coded, scene):
    assert torch.equal(released_under(coded, scene, 16), scene.released(coded, "test").images)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "code", "prototypes": 4}, {"channel_bits": 2.0}),
        ({"policy": "code", "prototypes": 4, "epsilon": 1.5}, {"channel_bits": 2.0, "channel_epsilon": 1.5}),
        ({"policy": "residual"}, {"channel_bits": None}),
        ({"policy": "latents"}, {"channel_bits": None}),
        ({"policy": "latents", "fitted": False}, {"channel_bits": None}),
    ],
)
def test_the_bound_is_that_of_the_subjects_own_policy_whatever_the_curve(options, said, rows, scene):
    one = subject(**options)
    found = {row.metric: row for row in channel(one, scene)}
    values = {name: row.value for name, row in found.items() if name.startswith("channel_") and "patients" not in name}
    assert values == said
    if said["channel_bits"] is None:
        assert found["channel_bits"].note.startswith("no bound") and options["policy"] in found["channel_bits"].note
        assert "no bound" in report(list(found.values()))
    else:
        assert found["channel_patients"].value == one.networks.channel.statement().patients
    curve = {name: row.value for name, row in found.items() if name.startswith("code_")}
    assert curve == ({name: rows[name].value for name in curve} if options.get("fitted", True) else {})
    assert len(curve) == (len(LEVELS) * 6 if options.get("fitted", True) else 0)


def test_the_subject_keeps_its_policy_and_its_pixels(scene):
    one = subject(policy="code", prototypes=8, epsilon=2.0)
    own = one.networks.channel
    before = {name: value.clone() for name, value in own.state_dict().items()}
    pixels, draws = scene.released(one, "test").images.clone(), torch.get_rng_state()
    channel(one, scene)
    assert (own.policy, LEVELS[own.level], own.epsilon) == ("code", 8, 2.0)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    scene.forget(one)
    assert torch.equal(scene.released(one, "test").images, pixels) and torch.equal(torch.get_rng_state(), draws)


def test_the_curve_leaves_no_release_in_memory(scene):
    one = subject()
    held = len(scene._released)
    channel(one, scene)
    assert len(scene._released) == held


def test_what_has_no_channel_has_no_rows(scene):
    assert channel(Subject("none", lambda images, _: images), scene) == []
    assert channel(Subject("old", lambda images, _: images, networks=SimpleNamespace()), scene) == []


def test_where_side_and_severity_are_not_stated_the_finding_is_left(coded, scene):
    bare = Scene(scene.training, None, toy_cohort(8, seed=3, columns=False), SeeingJudges(), n_bootstrap=5)
    found = {row.metric.removeprefix("code_4_") for row in channel(coded, bare) if row.metric.startswith("code_4_")}
    assert found == {"bits", "patients", "finding_accuracy", "finding_auc"}


def test_bits_and_findings_are_given_without_a_verdict(rows):
    assert not any(map(about_persons, rows))
    assert withheld(rows.values(), {"toy": "no verdict"}) == list(rows.values())


def test_the_table_of_codes_has_a_line_a_code_and_whole_patients(rows):
    table = code_table([*rows.values(), dataclasses.replace(rows["code_2_bits"], metric="code_of_conduct")])
    assert list(table["K"]) == [str(k) for k in LEVELS] and "." not in "".join(table["patients a prototype, at least"])
    assert "## What is kept under a code" in report(list(rows.values()))


@pytest.mark.parametrize(
    ("policy", "passing"), [("latents", {"medical", "residual"}), ("residual", {"medical"}), ("code", set())]
)
def test_probes_say_which_latents_do_not_pass(policy, passing, scene):
    silent = [row.metric.split("_")[1] for row in probes(subject(policy=policy), scene) if "does not pass" in row.note]
    assert set(silent) == {"medical", "residual"} - passing and silent.count("residual") in (0, 2)


@pytest.mark.parametrize(
    ("options", "record"),
    [
        ({"policy": "latents"}, {"policy": "latents"}),
        ({"policy": "code", "prototypes": 4}, {"policy": "code", "prototypes": 4}),
        ({"policy": "code", "epsilon": 0.5}, {"policy": "code", "prototypes": 8, "epsilon": 0.5}),
    ],
)
def test_a_run_records_what_its_subject_lets_pass(options, record):
    assert channel_record(subject(**options)) == record
    assert channel_record(Subject("none", lambda images, _: images)) is None
