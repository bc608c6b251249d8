"""A code says no more than its number, coarser ones are functions of finer ones, each is shared by enough people."""

import math

import numpy as np
import pytest
import torch

from monai_anon.channel import FINEST, LEVELS, Channel, ChannelError, Codebook, Mixture, respond, round_up
from monai_anon.channel_fitting import fit_channel, fit_codebook, fit_identity, fit_mixture, invariant_axes, merged
from monai_anon.networks import Latents

SIZE, PEOPLE, IMAGES = 3, 300, 4


def latents(seed=0, confounded=False):
    """Medical latents of people with four images each: the first dimension holds the finding and its extent, the second
    something that varies freely, the third who it is.
    """
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(PEOPLE), IMAGES)
    finding = rng.integers(0, 2, PEOPLE)[patient] if confounded else rng.integers(0, 2, len(patient))
    extent = finding * (2 + rng.random(len(patient)))
    person = rng.normal(size=PEOPLE)[patient]
    columns = [extent, rng.normal(size=len(patient)), 5 * person + 0.1 * rng.normal(size=len(patient))]
    return np.stack(columns, 1).astype(np.float32), patient, finding


@pytest.fixture(scope="module")
def fitted():
    medical, patient, finding = latents()
    return fit_codebook(medical, patient, finding, fewest=10), torch.from_numpy(medical), torch.from_numpy(finding)


@pytest.mark.parametrize("confounded", [False, True])
def test_what_tells_the_patient_is_left_out_and_the_extent_of_the_finding_is_kept(confounded):
    medical, patient, finding = latents(confounded=confounded)
    ill = finding == 1
    axes = invariant_axes(medical[ill], patient[ill])
    kept = axes[:, np.abs(axes).sum(0) > 0]
    weight = np.abs(kept) * medical[ill].std(0)[:, None]  # how much each dimension's spread moves a coordinate
    assert kept.shape[1] == 2 and weight[2].max() < 0.1 * weight[:2].max()
    assert weight[0].max() > 0.5


def test_what_varies_among_the_ill_alone_divides_the_ill_alone():
    rng = np.random.default_rng(0)
    patient, finding = np.arange(1200) // 4, np.arange(1200) // 2 % 2
    extent, anatomy = rng.normal(size=1200), rng.normal(size=(300, 2))[patient]
    ill = np.stack([extent, 3 + 0.1 * rng.normal(size=1200)], 1)
    medical = np.where(finding[:, None] > 0, ill, anatomy + 0.1 * rng.normal(size=(1200, 2))).astype(np.float32)
    book = fit_codebook(medical, patient, finding)
    codes = book.finding[: book.count(-1)]
    assert (codes == 0).sum() == 1 and (codes == 1).sum() > 8


def test_a_finding_of_which_nobody_can_tell_what_is_the_patients_has_one_code():
    assert not invariant_axes(np.random.default_rng(0).normal(size=(50, 3)), np.arange(50)).any()
    rng = np.random.default_rng(0)
    medical, finding = rng.normal(size=(400, 3)).astype(np.float32), np.arange(400) % 2
    book = fit_codebook(medical, np.arange(400), finding)
    assert all(book.count(level) == 2 for level in range(len(LEVELS)))


@pytest.mark.parametrize("undivided", [(), (0,), (1,)])
def test_an_undivided_finding_has_one_code_and_the_other_the_rest(undivided):
    rng = np.random.default_rng(0)
    medical, patient, finding = rng.normal(size=(1200, 3)).astype(np.float32), np.arange(1200) // 4, np.arange(1200) % 2
    book, level = fit_codebook(medical, patient, finding, undivided=undivided), LEVELS.index(8)
    counts = book.kind(torch.arange(book.count(level)), level).bincount().tolist()
    assert sum(counts) == 8
    assert [count == 1 for count in counts] == [kind in undivided for kind in (0, 1)]


@pytest.mark.parametrize(("count", "told"), [(3, 1.6), (5, 2.33), (6, 2.59), (8, 3.0), (9, 3.17), (32, 5.0)])
def test_a_bound_is_never_rounded_down(count, told):
    decimals = 1 if count == 3 else 2
    assert round_up(math.log2(count), decimals) == told >= round(math.log2(count), 9)


def test_an_undivided_finding_that_there_is_not_is_refused(confounded):
    z, finding = confounded[1:]
    with pytest.raises(ChannelError, match="patients_a_prototype is 0; it must be 1 or more"):
        fit_channel(z, torch.arange(len(finding)), finding, fewest=0)
    with pytest.raises(ChannelError, match=r"undivided names the findings \[2\]; there are \[0, 1\]"):
        fit_channel(z, torch.arange(len(finding)), finding, undivided=[0, 2])


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_a_level_has_at_most_its_number_of_codes_each_shared_by_enough_patients(fitted, level):
    book, medical, finding = fitted
    code = book(medical, finding, level)
    used = book.patients[level] > 0
    assert 2 <= used.sum() <= LEVELS[level] and used[: used.sum()].all()
    assert book.patients[level][used].min() >= 10
    assert set(code.unique().tolist()) <= set(range(int(used.sum())))
    statement = book.statement(level)
    assert statement.bits == pytest.approx(math.log2(int(used.sum()))) and statement.patients >= 10


def test_a_coarser_code_is_a_function_of_a_finer_one(fitted):
    book, medical, finding = fitted
    for coarse in range(len(LEVELS) - 1):
        pairs = torch.stack([book(medical, finding, coarse + 1), book(medical, finding, coarse)], 1).unique(dim=0)
        assert len(pairs) == len(pairs[:, 0].unique())


def test_the_finding_is_always_part_of_the_code(fitted):
    book, medical, finding = fitted
    for level in range(len(LEVELS)):
        pairs = torch.stack([book(medical, finding, level), finding], 1).unique(dim=0)
        assert len(pairs) == len(pairs[:, 0].unique())
        assert (book(medical, 1 - finding, level) != book(medical, finding, level)).all()


def test_groups_of_two_findings_are_never_joined_however_near():
    labels, kinds = np.repeat(np.arange(4), 30), np.array([0, 1, 0, 1])
    places = np.repeat([0.0, 0.0, 9.0, 9.0], 30)[:, None]
    groups = merged(np.arange(4), labels, kinds, places, np.arange(120), count=2, fewest=5)
    assert groups[0] == groups[2] != groups[1] == groups[3]


def test_equal_codes_give_equal_latents_whoever_it_was(fitted):
    book, medical, finding = fitted
    code = book(medical, finding, 2)
    passed = book.latent(code, 2)
    for one in code.unique():
        assert (passed[code == one] == passed[code == one][0]).all()
    moved = medical.clone()
    moved[:, 2] += 3.0  # another person, the same finding
    assert (book(moved, finding, 2) == code).float().mean() > 0.95


def test_a_code_keeps_more_of_the_extent_the_finer_it_is(fitted):
    book, medical, finding = fitted
    errors = [(book.latent(book(medical, finding, n), n)[:, 0] - medical[:, 0]).square().mean() for n in (0, 3, 7)]
    assert errors[0] > errors[1] > errors[2]


def test_the_tables_survive_a_state_dict(fitted):
    book, medical, finding = fitted
    other = Codebook(SIZE)
    other.load_state_dict(book.state_dict())
    assert torch.equal(other(medical, finding, 5), book(medical, finding, 5))
    assert book.finding.numel() == FINEST


def test_too_few_patients_are_refused():
    medical, patient, finding = latents()
    with pytest.raises(ValueError, match="must be shared by 301"):
        fit_codebook(medical, patient, finding, fewest=301)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_has_its_ratio_of_chances(epsilon):
    count, draws = 5, 200_000
    chance, other = torch.rand(2, draws, generator=torch.Generator().manual_seed(0))
    seen = [
        respond(torch.full((draws,), one), count, epsilon, chance, other).bincount(minlength=count) for one in (0, 3)
    ]
    for given, counts in zip((0, 3), seen):
        rest = torch.cat([counts[:given], counts[given + 1 :]]).float()
        assert counts[given] / rest.mean() == pytest.approx(math.exp(epsilon), rel=0.05)
        assert rest.std() / rest.mean() < 0.05  # the others alike
    assert (seen[0] / seen[1]).log().abs().max() < epsilon * 1.1


def test_a_large_epsilon_keeps_the_code_and_one_beyond_precision_is_refused():
    chance = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(respond(torch.ones(1000).long(), 4, 800.0, chance, chance), torch.ones(1000).long())
    with pytest.raises(ChannelError, match=r"epsilon is 16.*at most 15"):
        Channel((4, 2, 2), epsilon=16)


def test_epsilon_must_be_above_zero():
    with pytest.raises(ValueError, match="epsilon is 0"):
        respond(torch.zeros(1).long(), 4, 0.0, torch.rand(1), torch.rand(1))


# ---- A residual of nobody ----


def clusters(count=600, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, count)
    return (np.array([[-4.0, 0.0], [4.0, 1.0]])[kind] + rng.normal(size=(count, 2)) * [1.0, 0.3]).astype(np.float32)


def test_drawn_residuals_are_spread_as_the_fitted_ones():
    latents = clusters()
    prior = fit_mixture(latents, components=4)
    generator = torch.Generator().manual_seed(0)
    drawn = prior(torch.rand(20_000, generator=generator), torch.randn(20_000, 2, generator=generator)).numpy()
    assert np.abs(drawn.mean(0) - latents.mean(0)).max() < 0.1
    assert np.abs(np.cov(drawn.T) - np.cov(latents.T)).max() < 0.3
    assert ((np.abs(drawn[:, 0]) < 1).mean()) < 0.02  # two heaps with nothing between, not one wide one


def test_no_component_is_a_few_images():
    latents = np.concatenate([clusters(), clusters(20, seed=1) + 50])  # twenty images far from all others
    prior = fit_mixture(latents, components=4, fewest=100)
    assert (prior.shares[prior.shares > 0] * len(latents)).min() >= 99.9
    assert prior.shares.sum() == pytest.approx(1, abs=1e-5)


def test_a_component_is_chosen_as_often_as_its_share_says():
    """An empty one never, wherever it stands; slow reference: torch.searchsorted."""
    prior = Mixture(1, 5)
    prior.shares, prior.means = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]), torch.arange(5.0)[:, None]
    chance = torch.arange(10_000) / 10_000
    chosen = prior(chance, torch.zeros(10_000, 1))[:, 0]
    assert torch.equal(chosen, torch.searchsorted(prior.shares.cumsum(0), chance, right=True).clamp_max(3).float())
    assert chosen.long().bincount(minlength=5).tolist() == [0, 2500, 0, 7500, 0]


def test_equal_draws_give_equal_residuals_and_every_chance_a_component():
    prior = fit_mixture(clusters(), components=3)
    chance, noise = torch.tensor([0.0, 0.5, 1.0 - 1e-7]), torch.zeros(3, 2)
    assert torch.equal(prior(chance, noise), prior(chance, noise))
    assert torch.isfinite(prior(chance, noise)).all()
    far = fit_mixture(clusters() + 50, components=3)
    far.shares[2] = 0.0  # room that is not filled: its mean and factors are of nobody
    far.means[2], far.shares[:2] = 0.0, 0.5
    assert float(far(torch.ones(3), noise).min()) > 25  # a chance of 1 can come of rounding
    with pytest.raises(ValueError, match="50 latents; at least 100"):
        fit_mixture(clusters(50))


@pytest.mark.filterwarnings("error")
def test_latents_that_are_all_alike_still_give_whole_prototypes():
    medical = np.repeat(np.eye(4, 3, dtype=np.float32), 50, axis=0)
    book = fit_codebook(medical, np.arange(200) // 2 % 100, np.arange(200) // 100, fewest=5)
    assert all(torch.isfinite(tensor.float()).all() for tensor in (book.points, book.prototypes, book.axes))
    assert all(book.count(level) >= 2 for level in range(len(LEVELS)))


# ---- An identity of nobody, who has the finding ----


@pytest.fixture(scope="module")
def confounded():
    """Tables fitted where the identity's first dimension tells the finding, which never changes within a patient;
    latents and predicted findings.
    """
    medical, patient, finding = latents(confounded=True)
    rng = np.random.default_rng(1)
    identity = rng.normal(size=(PEOPLE, 5))[patient].astype(np.float32)
    identity[:, 0] += 6 * finding - 3
    z = Latents(*map(torch.from_numpy, (identity, medical, rng.normal(size=(len(patient), 2)).astype(np.float32))))
    fitted = fit_channel(z, torch.from_numpy(patient), torch.from_numpy(finding), fewest=5)
    return fitted.state_dict(), z, torch.from_numpy(finding)


def drawn(confounded, **settings):
    state, z, finding = confounded
    channel = Channel((5, SIZE, 2), **settings)
    channel.load_state_dict(state)
    noise = torch.randn(len(finding), channel.noise_size, generator=torch.Generator().manual_seed(0))
    return channel, channel(z, finding, noise)


@pytest.mark.parametrize("policy", ["residual", "code"])
def test_who_is_drawn_has_the_finding_where_identities_tell_it(confounded, policy):
    _, released = drawn(confounded, policy=policy)
    _, _, finding = confounded
    assert ((released.identity[:, 0] > 0) == (finding == 1)).float().mean() > 0.99
    assert released.identity[:, 1:].std(0).min() > 0.8  # drawn, and not a mean


def test_who_is_drawn_has_the_finding_of_the_code_that_is_released_and_not_of_the_original(confounded):
    """Or a randomised response would be undone by looking at the identity."""
    channel, released = drawn(confounded, policy="code", prototypes=8, epsilon=0.1)
    _, _, finding = confounded
    table = channel.codebook.prototypes[channel.level]
    code = torch.cdist(released.medical, table[: channel.codebook.count(channel.level)]).argmin(1)
    kind = channel.codebook.kind(code, channel.level)
    assert 0.2 < (kind == finding).float().mean() < 0.8  # the response did change the finding
    assert ((released.identity[:, 0] > 0) == (kind == 1)).float().mean() > 0.99


def test_every_code_has_the_finding_of_its_images_at_every_level(fitted):
    book, medical, finding = fitted
    for level in range(len(LEVELS)):
        assert torch.equal(book.kind(book(medical, finding, level), level), finding)


def test_identities_of_findings_alike_are_drawn_alike_and_a_finding_nobody_has_borrows_all():
    rng = np.random.default_rng(0)
    identity, finding = rng.normal(size=(2000, 4)).astype(np.float32), np.arange(2000) % 2 * 2
    prior = fit_identity(identity, finding, classes=3)
    np.testing.assert_allclose(prior.means, 0, atol=0.1)
    np.testing.assert_allclose(prior.means[1], identity.mean(0), atol=1e-5)
    assert torch.equal(prior.factors[0], prior.factors[2]) and float(prior.shares[1]) == 0
    generator = torch.Generator().manual_seed(0)
    assert torch.isfinite(prior(torch.rand(100, generator=generator), torch.randn(100, 4, generator=generator))).all()
