"""What a model file remembers of its training people, on models with known answers: honest ones, planted memories."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_judges import toy_cohort
from torch import nn
from toy_scene import BUDGET, figures, toy_judges

from monai_anon.channel import Codebook, Mixture
from monai_anon.channel_fitting import fit_codebook, fit_mixture
from monai_anon.evaluation.aggregation import attack_name
from monai_anon.evaluation.attacks import membership as attack
from monai_anon.evaluation.attacks.membership import calibrated, likeness, log_density, membership, sampled_identities
from monai_anon.evaluation.latents import encode
from monai_anon.evaluation.metrics import verification_auc
from monai_anon.evaluation.reporting import sections, tables
from monai_anon.evaluation.reporting.checks import MEMBERSHIP, NEAREST, membership_checks
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row
from monai_anon.networks import IdentityVAE, Latents
from monai_anon.readers import to_model_range, to_uint8

PEOPLE, IMAGES = 100, 2
CHANCE = pytest.approx(0.5, abs=0.1)


def people(seed):
    """People whose images have more and less contrast, so that some are harder to draw than others."""
    cohort = toy_cohort(PEOPLE, IMAGES, seed=seed)
    contrast = torch.empty(len(cohort), 1, 1, 1).uniform_(0.2, 1.0, generator=torch.Generator().manual_seed(seed))
    cohort.images = to_uint8(to_model_range(cohort.images) * contrast)
    return cohort


class ToyModel(nn.Module):
    """Latents and images by formulas. It loses a share of an image's detail, `lost`, or `kept` of what it knows.

    Args:
        known: uint8 images that it remembers: drawn better.
        firm: they have firm identities too.
    """

    def __init__(self, known=None, lost=0.5, kept=0.5, firm=False):
        super().__init__()
        self.known, self.lost, self.kept, self.firm = known, lost, kept, firm
        self.mix = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))

    def remembers(self, images):
        if self.known is None:
            return torch.zeros(len(images), dtype=torch.bool)
        exactly = "donot_use_mm_for_euclid_dist"
        return torch.cdist(images.flatten(1), to_model_range(self.known).flatten(1), compute_mode=exactly).amin(1) == 0

    def encode(self, images):
        known = self.remembers(images)[:, None]
        pattern = F.avg_pool2d(images[:, :, :16], 4).flatten(1)
        pattern = F.normalize(pattern - pattern.mean(1, keepdim=True), dim=1)
        # Noise that is the image's own: the same each time that it is encoded.
        noise = torch.sin(1000 * F.avg_pool2d(images, 8).flatten(1))
        identity = pattern @ self.mix + torch.where(known & self.firm, 0.02, 0.4) * noise
        share = torch.where(known, self.kept, self.lost)[:, :, None, None]
        drawn = images + share * (F.avg_pool2d(images, 5, 1, 2) - images)
        medical = torch.stack([images[:, 0, 20:, :10].mean((1, 2)), images[:, 0, 20:, 20:30].mean((1, 2))], 1)
        return Latents(identity, medical, torch.cat([3 * noise[:, :4], drawn.flatten(1)], 1))

    def decode(self, latents):
        return latents.residual[:, 4:].reshape(-1, 1, 32, 32)

    def classify(self, medical):
        return torch.stack([-medical.sum(1) - 1, medical.sum(1) + 1], 1)


class ToyVAE(nn.Module):
    """Draws one of some identities, a little moved; what it codes it maps to the nearest of them where `recalls`."""

    latent_size = 4

    def __init__(self, identities, recalls=False):
        super().__init__()
        self.identities, self.recalls = nn.Parameter(identities, requires_grad=False), recalls

    def encode(self, identity):
        return (identity, torch.zeros_like(identity)) if self.recalls else (0.5 * identity, identity)

    def decode(self, code):
        if code.shape[1] != self.latent_size:
            if not self.recalls:
                return code
            return self.identities[torch.cdist(code, self.identities).argmin(1)]
        drawn = (1e4 * code[:, 0].abs()).long() % len(self.identities)
        return self.identities[drawn] + 0.05 * code.repeat(1, 4)


@pytest.fixture(scope="module")
def cohorts():
    """Training people, test people, and people whom neither the models nor the attacker know."""
    return people(0), people(1), people(2)


@pytest.fixture(scope="module")
def scene(cohorts):
    options: dict[str, Any] = {"schedule": BUDGET, "n_bootstrap": 20, "progress": False}
    return Scene(cohorts[0], None, cohorts[1], toy_judges(), **options)


def holding(model, vae=None, channel=None, name="toy"):
    """A subject that releases the images themselves, of networks whose file the attacker holds."""
    vae = vae or ToyVAE(torch.randn(50, 16, generator=torch.Generator().manual_seed(0)))
    networks = SimpleNamespace(disentangler=model, identity_vae=vae, channel=channel)
    return Subject(name, lambda images, _: images, f"{name} {id(model)}", cast(Any, networks))


def latents(model, cohort):
    """Latents whose residual has only the dimensions that the prior knows."""
    z = encode(model, cohort.images)
    return z._replace(residual=z.residual[:, :4])


class Narrow(ToyModel):
    """Without the picture in the residual, for the channel: it draws nothing."""

    def encode(self, images):
        z = super().encode(images)
        return z._replace(residual=z.residual[:, :4])

    def decode(self, latents):
        return torch.zeros(len(latents.medical), 1, 32, 32)


# ---- the reconstruction ----


def test_a_model_that_draws_everybody_alike_tells_of_nobody(scene):
    rows = figures(membership(holding(ToyModel(), name="honest"), scene))
    for case in ("reconstruction", "pairs", "vae", "identity_samples"):
        assert rows[f"membership_{case}_auc"].value == CHANCE, case
        assert 0 <= rows[f"membership_{case}_tpr_at_fpr_1"].value < 0.15, case
    assert "membership_prior_auc" not in rows, "there is no channel"


def test_a_model_that_draws_its_training_images_well_is_caught(scene, cohorts):
    rows = figures(membership(holding(ToyModel(cohorts[0].images, kept=0.05), name="memoriser"), scene))
    found = rows["membership_reconstruction_auc"]
    assert found.value > 0.9 and found.ci_low > 0.85
    assert rows["membership_reconstruction_tpr_at_fpr_1"].value > 0.5
    assert rows["membership_black_box_auc"].value == 0.5, "its releases tell nothing"


def test_what_difficulty_hides_from_the_raw_error_the_calibrated_one_finds(scene, cohorts):
    slight = ToyModel(cohorts[0].images, kept=0.4)
    candidates = attack.candidates_of(scene)
    images = to_model_range(candidates.images)
    scores = likeness(images, slight.decode(slight.encode(images)))
    aucs = {name: verification_auc(score, candidates.member) for name, score in scores.items()}
    assert aucs["squared error"] < 0.75 and aucs["squared error, calibrated"] > 0.9
    (row, _) = attack.stronger(holding(slight), scene, candidates, "reconstruction", scores)
    assert row.value == max(aucs.values()) and row.note.endswith("calibrated")


def test_calibration_takes_out_difficulty_and_nothing_else():
    images = torch.randn(200, 1, 8, 8) * torch.linspace(0.1, 1, 200)[:, None, None, None]
    variation = sum(images.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (-1, -2))
    extra = np.random.default_rng(0).normal(size=200)
    rest = calibrated(3 * np.log(variation.numpy()) + 7 + extra, images)
    assert np.corrcoef(rest, extra)[0, 1] > 0.99
    assert abs(np.corrcoef(rest, variation.log().numpy())[0, 1]) < 1e-5


def test_images_without_any_variation_or_error_are_no_infinity():
    flat = torch.zeros(4, 1, 32, 32)
    scores = likeness(flat, torch.stack([flat[0], flat[0] + 0.1, flat[0], flat[0] + 0.2]))
    assert scores and all(np.isfinite(score).all() for score in scores.values())


def test_of_several_scores_the_one_farthest_from_chance_counts_on_either_side(scene):
    candidates = attack.candidates_of(scene)
    noise = np.random.default_rng(0).normal(size=len(candidates.member))
    scores = {"weak": noise + 0.2 * candidates.member, "turned": noise - 5 * candidates.member}
    auc, _ = attack.stronger(holding(ToyModel()), scene, candidates, "prior", scores)
    assert auc.metric == "membership_prior_auc" and auc.note == "by turned" and auc.value < 0.01
    (nothing,) = attack.stronger(holding(ToyModel()), scene, candidates, "prior", {"same": np.ones_like(noise)})
    assert nothing.value == 0.5 and nothing.note == "nothing differs"


# ---- identities ----


def test_an_encoder_that_knows_its_people_by_heart_is_caught_by_two_images_of_them(scene, cohorts):
    rows = figures(membership(holding(ToyModel(cohorts[0].images, firm=True), name="firm"), scene))
    assert rows["membership_pairs_auc"].value > 0.9
    assert rows["membership_reconstruction_auc"].value == CHANCE


def test_pairs_are_not_measured_where_nobody_has_two_images(scene):
    candidates = attack.candidates_of(scene)
    lonely = attack.Candidates(
        candidates.images, candidates.member, np.arange(len(candidates.member)), candidates.chosen
    )
    (row,) = attack.pair_rows(holding(ToyModel()), scene, lonely, torch.randn(len(candidates.member), 16))
    assert row.value is None and "two images" in row.note


def test_identities_that_are_sampled_from_the_training_people_are_caught(scene, cohorts):
    model = ToyModel()
    training, _, others = (latents(model, cohort).identity for cohort in cohorts)
    planted = figures(membership(holding(model, ToyVAE(training, recalls=True), name="planted"), scene))
    honest = figures(membership(holding(model, ToyVAE(others, recalls=True), name="unseen"), scene))
    for case in ("identity_nearest", "identity_samples", "vae"):
        assert planted[f"membership_{case}_auc"].value > 0.9, case
        assert honest[f"membership_{case}_auc"].value == CHANCE, case


# ---- the channel ----


@pytest.mark.parametrize("policy", ["latents", "residual", "code"])
def test_sampled_identities_are_those_that_the_policy_releases(policy):
    prior = Mixture(2, 1)
    prior.means[:] = 50.0
    channel = SimpleNamespace(policy=policy, identity=prior, identity_size=2)
    sampled = sampled_identities(IdentityVAE(2, 2, 4), channel, 0)
    assert (float(sampled.min()) > 40) == (policy != "latents")


def tables_of(z, patient, finding):
    """A channel fitted as stage 2 fits it."""
    book = fit_codebook(z.medical.numpy(), patient.numpy(), finding.numpy(), fewest=5)
    identity, residual = fit_mixture(z.identity.numpy(), 1, 20), fit_mixture(z.residual.numpy(), 2, 20)
    return SimpleNamespace(policy="latents", codebook=book, identity=identity, residual=residual)


def memorised(z, finding, what):
    """Tables of which one holds the training images themselves."""
    count = len(z.medical)
    book, priors = Codebook(2), {name: Mixture(getattr(z, name).shape[1], count) for name in ("identity", "residual")}
    book.patients[-1, 0] = 1
    if what.endswith("density"):
        name = what.removesuffix(" density")
        priors[name].means[:] = getattr(z, name)
        priors[name].factors[:] *= 0.05
    elif what == "nearest point":
        book.points[:count], book.finding[:count] = z.medical, finding
    else:
        book.prototypes[-1, :count], book.patients[-1, :count] = z.medical, 1
    return SimpleNamespace(policy="latents", codebook=book, **priors)


def test_a_channel_of_other_people_tells_of_nobody(scene, cohorts):
    model = Narrow()
    z = latents(model, cohorts[2])
    channel = tables_of(z, cohorts[2].patient, model.classify(z.medical).argmax(1))
    rows = figures(membership(holding(model, channel=channel, name="shared"), scene))
    assert rows["membership_prior_auc"].value == CHANCE


@pytest.mark.parametrize("what", ["identity density", "residual density", "nearest point", "nearest prototype"])
def test_a_table_that_holds_the_training_images_is_caught(scene, cohorts, what):
    model = Narrow()
    z = latents(model, cohorts[0])
    channel = memorised(z, model.classify(z.medical).argmax(1), what)
    found = figures(membership(holding(model, channel=channel, name=what), scene))["membership_prior_auc"]
    assert found.value > 0.9 and found.note == f"by {what}"


def test_a_channel_that_was_never_fitted_has_nothing_to_remember(scene):
    channel = SimpleNamespace(policy="latents", codebook=Codebook(2), residual=Mixture(4))
    rows = figures(membership(holding(Narrow(), channel=channel, name="unfitted"), scene))
    assert "membership_prior_auc" not in rows and "membership_vae_auc" in rows


def test_the_density_is_that_of_the_mixture_and_empty_components_do_not_count():
    prior = Mixture(2, components=3)
    prior.shares[:] = torch.tensor([0.25, 0.75, 0.0])
    prior.means[:] = torch.tensor([[0.0, 0.0], [1.0, -1.0], [9.0, 9.0]])
    prior.factors[:2] = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.5, 1.0]]])
    z = torch.tensor([[0.3, -0.2], [9.0, 9.0]])
    expected = torch.zeros(2, dtype=torch.double)
    for share, mean, factor in zip(prior.shares, prior.means, prior.factors, strict=True):
        covariance = (factor @ factor.T).double()
        apart = (z - mean).double()
        power = torch.einsum("bi,ij,bj->b", apart, torch.linalg.inv(covariance), apart)
        expected += share.double() * (-power / 2).exp() / (2 * torch.pi * torch.linalg.det(covariance).sqrt())
    assert torch.allclose(log_density(prior, z), expected.log(), rtol=1e-6)


# ---- what is made of the rows ----


@pytest.fixture(scope="module")
def cases(scene, cohorts):
    """Every metric of P5, of a model with all its parts."""
    model = Narrow(cohorts[0].images)
    z = latents(model, cohorts[2])
    channel = tables_of(z, cohorts[2].patient, model.classify(z.medical).argmax(1))
    return [row.metric for row in membership(holding(model, channel=channel, name="whole"), scene)]


def test_every_figure_has_a_line_in_the_report_and_a_name_in_a_sentence(cases):
    (section,) = (one for one in sections.ATTACKS if one.key == "P5")
    assert {name.split("_auc")[0] for name in cases if name.endswith("_auc")} == {
        f"membership_{case}" for case in sections.MEMBERSHIPS
    }
    for metric in cases:
        row = Row("ours", "toy", metric, 0.4321)
        table = tables.group_table([row], section.groups[0])
        case = re.sub("^membership_|_auc$|_tpr_at_fpr_1$", "", metric)
        texts = [cell.text for line in table.lines for cell in line.cells]
        assert "0.432" in texts and sections.MEMBERSHIPS[case] in texts, metric
        assert not metric.endswith("_auc") or attack_name(metric) != metric


def test_every_auc_decides_in_exactly_one_check(cases):
    aucs = [metric for metric in cases if metric.endswith("_auc")]
    assert len(aucs) == 8
    for metric in aucs:
        found = [one for one in (NEAREST, MEMBERSHIP) if re.fullmatch(one.pattern, metric)]
        assert found == [NEAREST if "nearest" in metric else MEMBERSHIP], metric
        row = Row("ours", "toy", metric, 0.8, 0.7, 0.9, 100, images_seen=9)
        assert sorted(one.outcome for one in membership_checks([row])) == ["fails", "open"], metric
