"""The running correlations: they remember, they travel in a checkpoint, and descending them separates the latents."""

import numpy as np
import pytest
import torch
from torch import nn

from monai_anon.independence import (
    FindingCorrelation,
    FindingExchange,
    PatientCorrelation,
    RunningCorrelation,
    Whitening,
)
from monai_anon.networks import Latents

NO_NOISE = 0.0, 0.0


def batch_of(count):
    none = torch.zeros(count, dtype=torch.long)
    return {"has_same": torch.ones(count, dtype=torch.bool), "finding_ori": none, "finding_same": none}


def test_the_first_batch_has_nothing_to_remember_and_later_ones_approach_the_square():
    term, found = RunningCorrelation(2, 3, memory=0.5), torch.full((2, 3), 0.5)
    values = [float(term(found)) for _ in range(20)]
    assert (
        values[0] == 0
        and values[1] == pytest.approx(0.5 * 6 * 0.25)
        and values[-1] == pytest.approx(6 * 0.25, rel=1e-4)
    )


def test_memory_has_no_gradient_and_is_not_changed_in_place():
    term, found = RunningCorrelation(1, 1, memory=0.5), torch.ones(1, 1, requires_grad=True)
    term(found)
    held = term.before
    term(found).backward()
    assert float(found.grad) == 0.5 and float(held) == 0.5 and float(term.before) == 0.75
    assert not term.before.requires_grad


def test_the_memory_travels_in_a_checkpoint():
    torch.manual_seed(0)
    first, then, batch = PatientCorrelation((1, 2), NO_NOISE), PatientCorrelation((1, 2), NO_NOISE), batch_of(50)
    z = [Latents(torch.zeros(50, 1), torch.randn(50, 1), torch.randn(50, 2)) for _ in "ab"]
    first.measure(*z, batch)
    then.load_state_dict(first.state_dict())
    assert float(then.measure(*z, batch)) == float(first.measure(*z, batch)) != 0


def test_whitening_makes_small_directions_count_and_forgets():
    torch.manual_seed(0)
    mix, whitening = torch.tensor([[3.0, 0.0], [2.9, 0.1]]), Whitening([0.0, 0.0], memory=0.5)
    for _ in range(8):
        z = torch.randn(2000, 2) @ mix.T + 5
        found = whitening(z)
    np.testing.assert_allclose(found.T @ found / 2000, torch.eye(2), atol=0.15)
    first = Whitening([0.0, 0.0])
    np.testing.assert_allclose(first(z).T @ first(z) / 2000, torch.eye(2), atol=0.01)  # from the first batch on


def test_noise_of_independent_latents_cancels():
    torch.manual_seed(0)
    term, batch, values = PatientCorrelation((2, 4), NO_NOISE), batch_of(24), []
    for _ in range(300):
        z = [Latents(torch.zeros(24, 1), torch.randn(24, 2), torch.randn(24, 4)) for _ in "ab"]
        values.append(float(term.measure(*z, batch)))
    assert abs(sum(values) / len(values)) < 0.05  # a batch's own squares would sum to 36 / 24


def descended(measure):
    """What is left of a leak of 1 after 60 steps down `measure(leak)`."""
    torch.manual_seed(0)
    leak = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([leak], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        measure(leak).backward()
        optimizer.step()
    return abs(float(leak.detach()))


def test_descending_takes_the_patient_out_of_the_residual():
    term, batch = PatientCorrelation((1, 1), NO_NOISE), batch_of(400)

    def measure(leak):
        who = torch.randn(400, 1)
        return term.measure(
            *(Latents(who, *torch.randn(1, 400, 1), leak * who + torch.randn(400, 1)) for _ in "ab"), batch
        )

    assert descended(measure) < 0.4


def test_descending_takes_the_finding_out_of_the_residual():
    term = FindingCorrelation(2, 1, 0.0)

    def measure(leak):
        fluid = torch.rand(400, 1)
        maps = torch.zeros(400, 2, 8, 8)
        maps[:, 1, 6:, 5] = fluid
        return term.measure(maps - maps.mean(1, keepdim=True), leak * fluid * 3 + torch.randn(400, 1))

    assert descended(measure) < 0.4


def test_what_the_noise_hides_is_no_leak():
    torch.manual_seed(0)
    batch, who, values = batch_of(4000), torch.randn(4000, 1), {}
    z, other = (Latents(who, torch.randn(4000, 1), 0.01 * who) for _ in "ab")
    maps = who[:, :, None, None].expand(-1, 2, 4, 4)
    for noise in (0.0, 0.5):
        terms = PatientCorrelation((1, 1), (0.0, noise), memory=0.0), FindingCorrelation(2, 1, noise, memory=0.0)
        terms[0].measure(z, other, batch)
        terms[1].measure(maps, z.residual)
        values[noise] = [float(term.correlation.before[:, -1].square().sum().sqrt()) for term in terms]
    assert min(values[0.0]) > 0.9 and max(values[0.5]) < 0.05


# ---- A finding that never changes within a patient ----

RADIUS = 4.0


def identities(shift, count=4000, seed=0):
    """Identity latents on a sphere, of which one direction tells the finding, and the findings."""
    generator = torch.Generator().manual_seed(seed)
    finding = torch.arange(count) % 2
    direction = torch.ones(16) / 4
    identity = torch.randn(count, 16, generator=generator) + shift * (finding * 2 - 1)[:, None] * direction
    return torch.nn.functional.normalize(identity, dim=1) * RADIUS, finding


def told(identity, finding):
    """How often the finding is read right from half of the identities by what the other half teaches (linearly)."""
    teach, ask = slice(None, None, 2), slice(1, None, 2)
    order = torch.randperm(len(finding), generator=torch.Generator().manual_seed(1))
    x, y = torch.cat([identity, torch.ones(len(identity), 1)], 1)[order], finding[order] * 2.0 - 1
    rule = torch.linalg.lstsq(x[teach], y[teach, None]).solution
    return float(((x[ask] @ rule)[:, 0].sign() == y[ask]).float().mean())


def test_after_the_exchange_an_identity_no_longer_tells_the_finding():
    torch.manual_seed(0)
    identity, finding = identities(shift=3.0)
    exchange = FindingExchange(2, 16, share=1.0, memory=0.5)
    moved = exchange(identity, finding)
    assert told(identity, finding) > 0.98
    assert abs(told(moved, finding) - 0.5) < 0.04
    torch.testing.assert_close(moved.norm(dim=1), torch.full((4000,), RADIUS))
    assert ((moved - identity).norm(dim=1) < 1e-4).float().mean() == pytest.approx(0.5, abs=0.05)


def test_the_exchange_moves_next_to_nothing_where_identities_do_not_tell_the_finding():
    torch.manual_seed(0)
    identity, finding = identities(shift=0.0)
    assert (FindingExchange(2, 16, share=1.0)(identity, finding) - identity).norm(dim=1).max() < 0.1 * RADIUS


def test_the_exchange_moves_the_share_it_is_given_and_none_to_a_finding_that_it_has_not_seen():
    torch.manual_seed(0)
    identity, finding = identities(shift=3.0)
    moved = FindingExchange(2, 16, share=0.5)(identity, finding)
    assert ((moved - identity).norm(dim=1) > 1e-3).float().mean() == pytest.approx(0.25, abs=0.03)
    ill = finding == 1
    alone = FindingExchange(2, 16, share=1.0)
    torch.testing.assert_close(alone(identity[ill], finding[ill]), identity[ill])


def test_the_exchange_remembers_in_a_checkpoint_and_passes_gradients_to_the_identity():
    torch.manual_seed(0)
    identity, finding = identities(shift=3.0)
    first, then = FindingExchange(2, 16, share=1.0), FindingExchange(2, 16, share=1.0)
    first(identity, finding)
    then.load_state_dict(first.state_dict())
    few = identity[:6].clone().requires_grad_()
    results = []
    for exchange in (first, then):
        torch.manual_seed(3)
        results.append(exchange(few, finding[:6]))
    assert torch.equal(*results) and not first.means.requires_grad
    results[0].sum().backward()
    assert (few.grad.norm(dim=1) > 0).all()
