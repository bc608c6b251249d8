"""What fails is drawn again and at last withheld; what depends on the original decides no draw; the response stays."""

import math

import pytest
import torch
from toy_gate import SIZES, ToyDecoder, toy_comparators, toy_gate, toy_images, toy_network

from monai_anon.channel import RESPONSE, Channel
from monai_anon.gate import Decision, Gate, Reason, written
from monai_anon.gated_release import OriginalCheck, anonymise_through, bits, default_check


class Noise:
    """Noise that depends on draw and row alone, and remembers what was asked for."""

    def __init__(self, network, rows, draws=9, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.numbers = torch.randn(draws, rows, network.noise_size, generator=generator)
        self.asked = []

    def __call__(self, number, rows):
        self.asked.append((number, rows.tolist()))
        return self.numbers[number][rows]

    def draws(self):
        return self.asked[1:]  # the first one tells the response


class Refusing(Gate):
    """A gate that refuses some rows' draws: row -> how many, before or after the original is looked at."""

    def __init__(self, network, inspecting=None, comparing=None):
        super().__init__(network, toy_comparators(network))
        self.left = {"inspect": dict(inspecting or {}), "compare": dict(comparing or {})}
        self.compared = 0

    def inspect(self, generated, drawn):
        return [self.decide("inspect", row, Reason.NEAR_TRAINING) for row in self.rows[-1]]

    def compare(self, pixels, originals):
        self.compared += len(pixels)
        rows = [int((self.images == original[0]).flatten(1).all(1).nonzero()) for original in originals]
        return [self.decide("compare", row, Reason.NEAR_ORIGINAL) for row in rows]

    def decide(self, kind, row, reason):
        left = self.left[kind].get(row, 0)
        self.left[kind][row] = left - 1
        return Decision((reason,) if left > 0 else ())


def run(gate, network, images, noise, **settings):
    """`anonymise_through`, with a gate that knows which rows it is asked about."""
    gate.images, gate.rows = images, []
    return anonymise_through(
        gate, network, images, lambda n, rows: gate.rows.append(rows.tolist()) or noise(n, rows), **settings
    )


@pytest.fixture(scope="module")
def network():
    return toy_network()


def test_only_what_failed_is_drawn_again(network):
    noise, images = Noise(network, 6), toy_images(6)
    result = run(Refusing(network, {1: 1, 4: 3}), network, images, noise)
    assert noise.draws() == [(0, [0, 1, 2, 3, 4, 5]), (1, [1, 4]), (2, [4]), (3, [4])]
    assert [decision.tries for decision in result.decisions] == [1, 2, 1, 1, 4, 1]
    for row, number in enumerate((0, 1, 0, 0, 3, 0)):
        drawn = noise.numbers[number, row].clone()
        drawn[-RESPONSE:] = noise.numbers[0, row, -RESPONSE:]
        assert result.decisions[row].released
        assert torch.equal(result.pixels[row], written(network(images[row : row + 1], drawn[None]))[0])


def test_after_the_last_try_an_image_is_withheld_and_black(network):
    noise = Noise(network, 3)
    result = run(Refusing(network, {1: 99}), network, toy_images(3), noise, tries=4)
    withheld = result.decisions[1]
    assert not withheld.released and withheld.tries == 4 and withheld.reasons == (Reason.NEAR_TRAINING,)
    assert [bool(image.any()) for image in result.pixels] == [True, False, True] and len(noise.draws()) == 4


@pytest.mark.parametrize(
    ("check", "draws", "compared"),
    [(OriginalCheck.OFF, 1, 0), (OriginalCheck.VETO, 1, 3), (OriginalCheck.REDRAW, 3, 5)],
)
def test_only_redraw_draws_again_for_the_originals_sake(network, check, draws, compared):
    noise, gate = Noise(network, 3), Refusing(network, comparing={1: 2})
    result = run(gate, network, toy_images(3), noise, check=check)
    assert len(noise.draws()) == draws and gate.compared == compared
    assert result.decisions[1].released is (check is not OriginalCheck.VETO)
    assert bool(result.pixels[1].any()) is result.decisions[1].released


def test_a_veto_comes_after_the_other_checks_have_passed(network):
    noise, gate = Noise(network, 3), Refusing(network, {1: 2}, {1: 1})
    result = run(gate, network, toy_images(3), noise)
    assert noise.draws()[1:] == [(1, [1]), (2, [1])] and gate.compared == 3
    assert result.decisions[1].reasons == (Reason.NEAR_ORIGINAL,) and not result.pixels[1].any()


def test_the_default_keeps_the_bound_of_each_policy():
    expected = {"code": OriginalCheck.VETO, "residual": OriginalCheck.REDRAW, "latents": OriginalCheck.REDRAW}
    for policy, check in expected.items():
        assert default_check(Channel(SIZES, policy=policy)) is check
    assert default_check(Channel(SIZES, epsilon=2.0)) is OriginalCheck.OFF


def test_the_response_is_the_first_draws_in_every_draw(monkeypatch):
    network = toy_network(epsilon=1.0)
    seen, drawn = [], type(network).drawn
    monkeypatch.setattr(type(network), "drawn", lambda self, z, noise: seen.append(noise) or drawn(self, z, noise))
    noise = Noise(network, 4)
    run(Refusing(network, {2: 5, 3: 5}), network, toy_images(4), noise, tries=6)
    assert [len(given) for given in seen] == [4, 2, 2, 2, 2, 2]
    for number, given in enumerate(seen[1:], 1):
        assert torch.equal(given[:, -RESPONSE:], noise.numbers[0, 2:, -RESPONSE:])
        assert torch.equal(given[:, :-RESPONSE], noise.numbers[number, 2:, :-RESPONSE])


def test_no_more_outcomes_than_the_bound_counts(network):
    """For given noise: all originals of a code get one image, or nothing."""
    gate, images = toy_gate(network), toy_images(400)
    count = network.channel.codebook.count(network.channel.level)
    noise = Noise(network, 1)
    for check, few in ((OriginalCheck.OFF, count), (OriginalCheck.VETO, count + 1)):
        result = anonymise_through(gate, network, images, lambda n, rows: noise(n, rows * 0), check=check)
        assert 2 <= len(result.pixels.flatten(1).unique(dim=0)) <= few
    assert sum(decision.released for decision in result.decisions) > 200
    assert bits(32, OriginalCheck.OFF) == 5 and bits(32, OriginalCheck.VETO) == math.log2(33)
    assert bits(32, OriginalCheck.REDRAW, 8) == math.log2(257)


def test_planted_identities_are_drawn_again_and_originals_withheld(network, monkeypatch):
    gate, images = toy_gate(network), toy_images(8)
    gate.tolerance = 1.0
    z, drawn = network.disentangler.encode(images), type(network).drawn
    training = network.disentangler.encode(toy_images(300, seed=1)).identity[10]
    calls = []

    def planted(self, latents, noise):
        found = drawn(self, latents, noise)
        if not calls:
            found.identity[1], found.identity[5] = training, z.identity[5]
        calls.append(len(noise))
        return found

    monkeypatch.setattr(type(network), "drawn", planted)
    result = anonymise_through(gate, network, images, Noise(network, 8))
    assert result.decisions[1].released and result.decisions[1].tries > 1
    assert result.decisions[5].reasons == (Reason.NEAR_ORIGINAL,) and not result.pixels[5].any()


def test_further_images_of_a_patient_count(network):
    gate, images, noise = toy_gate(network), toy_images(3), Noise(network, 3)
    gate.tolerance = 1.0
    first = anonymise_through(gate, network, images, noise)
    assert all(decision.released for decision in first.decisions)
    known = [images[:0], first.pixels[1:2].float() / 127.5 - 1, images[:0]]
    again = anonymise_through(gate, network, images, noise, known=known)
    assert [decision.reasons for decision in again.decisions] == [(), (Reason.NEAR_ORIGINAL,), ()]


def test_a_gate_with_a_fault_draws_nothing(network):
    result = anonymise_through(Gate(network, []), network, toy_images(3), lambda number, rows: pytest.fail("drawn"))
    assert not result.pixels.any() and {decision.reasons for decision in result.decisions} == {(Reason.NO_GALLERY,)}


def test_images_of_another_shape_and_of_nan_are_withheld(network, monkeypatch):
    images = toy_images(3)
    monkeypatch.setattr(network.disentangler.decoder, "forward", lambda z: ToyDecoder()(z).reshape(-1, 1, 8, 4))
    result = anonymise_through(toy_gate(network), network, images, Noise(network, 3), tries=2)
    assert result.pixels.shape == images.shape and not result.pixels.any()
    assert {decision.reasons for decision in result.decisions} == {(Reason.CHECK_FAILED,)}
    monkeypatch.setattr(network.disentangler.decoder, "forward", lambda z: ToyDecoder()(z) * torch.nan)
    for decision in anonymise_through(toy_gate(network), network, images, Noise(network, 3), tries=2).decisions:
        assert Reason.NOT_FINITE in decision.reasons


def test_what_makes_no_sense_is_refused(network):
    gate, images = toy_gate(network), toy_images(2)
    with pytest.raises(ValueError, match="tries is 0"):
        anonymise_through(gate, network, images, Noise(network, 2), tries=0)
    with pytest.raises(ValueError, match="1 patients, for 2 originals"):
        anonymise_through(gate, network, images, Noise(network, 2), known=[images])
