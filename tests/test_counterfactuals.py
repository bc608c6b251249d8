"""Image and counterfactual are of one nobody, functions of what passes and of noise; all pass the gate or none."""

import pytest
import torch
from toy_gate import SIZES, ToyEncoder, toy_gate, toy_images, toy_network

from monai_anon.channel import RESPONSE
from monai_anon.copies import WithheldError
from monai_anon.explaining.counterfactuals import (
    Draws,
    UncheckedGate,
    between,
    evidence,
    other_finding,
    own_series,
    passing,
    responses,
    series_through,
)
from monai_anon.gate import Decision, Gate, Reason
from monai_anon.gated_release import OriginalCheck
from monai_anon.readers import to_model_range

OFF, VETO, REDRAW = OriginalCheck.OFF, OriginalCheck.VETO, OriginalCheck.REDRAW


@pytest.fixture(scope="module")
def network():
    return toy_network()


def noise_of(network, seed=1):
    return Draws(seed, network.noise_size).of(["query"], responses(network, 1))


def drawn(network, image, **settings):
    settings = {"check": OFF} | settings
    return series_through(UncheckedGate(network), network, image, noise_of(network), **settings)


def read(pixels):
    return ToyEncoder()(to_model_range(pixels))


def code_of(network, images):
    z = network.disentangler.encode(images)
    return network.channel.codebook(z.medical, network.disentangler.classify(z.medical).argmax(1), 2)


class Refusing(Gate):
    """Refuses the first so many draws, and as many comparisons; remembers what it was shown."""

    def __init__(self, network, inspecting=0, comparing=0, reason=Reason.NEAR_TRAINING, steps=(0, 1, 2)):
        super().__init__(network, [])
        self.faults, self.left, self.reason, self.steps = (), [inspecting, comparing], reason, steps
        self.shown = []

    def decide(self, which, count, reason):
        self.left[which] -= 1
        bad = self.left[which] >= 0
        return [Decision((reason,) if bad and step in self.steps else ()) for step in range(count)]

    def inspect(self, generated, drawn):
        self.shown.append(generated)
        return self.decide(0, len(generated), self.reason)

    def compare(self, pixels, originals):
        return self.decide(1, len(pixels), Reason.NEAR_ORIGINAL)


def test_image_and_counterfactual_are_of_one_nobody_with_prototypes_of_two_findings(network):
    image = toy_images(1)
    series = drawn(network, image)
    prototypes = network.channel.codebook.latent(torch.arange(8), 2)
    assert all(float((prototypes - row).abs().sum(1).min()) < 1e-5 for row in series.medical)
    assert series.probabilities.argmax(1).tolist() == [0, 1]
    z, own = read(series.pixels), network.disentangler.encode(image)
    assert torch.allclose(z.identity[0], z.identity[1], atol=0.2) and torch.allclose(z.residual[0], z.residual[1])
    assert float(torch.cosine_similarity(z.identity[0], own.identity[0], dim=0)) < 0.8
    assert not torch.allclose(z.residual[0], own.residual[0], atol=0.1)


def test_of_the_original_only_the_code_matters(network):
    images = toy_images(60)
    codes = code_of(network, images)
    twins = (codes == codes[0]).nonzero().flatten()[:2]
    other = (codes != codes[0]).nonzero().flatten()[:1]
    first, second, third = (drawn(network, images[row][None], steps=4) for row in (*twins, *other))
    assert not torch.equal(images[twins[0]], images[twins[1]])
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.medical, second.medical)
    assert not torch.equal(first.pixels, third.pixels)


def test_the_other_finding_is_the_one_that_changes_the_picture_least(network):
    for image in toy_images(6).split(1):
        z = network.disentangler.encode(image)
        medical = passing(network, z, responses(network, 1))
        finding = int(network.disentangler.classify(medical).argmax(1))
        kinds = network.channel.codebook.kind(torch.arange(8), 2)
        others = network.channel.codebook.latent(torch.arange(8), 2)[kinds != finding]
        # this decoder shows the latent itself, so the mean change of a picture is that of the latent's numbers
        expected = others[(others - medical).abs().sum(1).argmin()]
        assert torch.equal(other_finding(network, z, medical, responses(network, 1))[0], expected)


def test_steps_lie_evenly_between_the_ends_and_evidence_is_first_less_last(network):
    series = drawn(network, toy_images(1), steps=5)
    assert torch.allclose(series.medical.diff(dim=0), (series.medical[-1] - series.medical[0])[None] / 4, atol=1e-5)
    change = evidence(series)
    assert torch.equal(change, series.pixels[0, 0].float() - series.pixels[4, 0].float())
    assert float(change.flatten()[SIZES[0] : SIZES[0] + SIZES[1]].max()) < 0, "the finding is brighter, and is added"
    assert float(change.flatten()[: SIZES[0]].abs().max()) == 0, "the person is the same"


def test_a_refused_draw_is_drawn_again_for_all_images_with_the_same_code(network):
    gate = Refusing(network, inspecting=2, steps=(1,))
    series = series_through(gate, network, toy_images(1), noise_of(network), check=VETO)
    assert series.tries == 3 and len(gate.shown) == 3
    identities = torch.stack([shown[:, 0].flatten(1)[:, : SIZES[0]] for shown in gate.shown])
    assert not torch.equal(identities[0], identities[1]) and torch.equal(identities[:, 0], identities[:, 1])
    medical = torch.stack([shown[:, 0].flatten(1)[:, SIZES[0] : SIZES[0] + SIZES[1]] for shown in gate.shown])
    assert torch.equal(medical[0], medical[2])


@pytest.mark.parametrize(("check", "draws", "given"), [(OFF, 1, True), (VETO, 1, False), (REDRAW, 2, True)])
def test_a_veto_ends_it_and_only_redraw_draws_again_for_the_originals_sake(network, check, draws, given):
    gate = Refusing(network, comparing=1, steps=(1,))
    found = attempt(gate, network, toy_images(1), check)
    assert isinstance(found, str) is not given and len(gate.shown) == draws
    assert given or Reason.NEAR_ORIGINAL.value in found


def test_only_the_ends_must_show_their_findings_but_no_step_may_be_near_anybody(network):
    noise = noise_of(network)
    middle = Refusing(network, inspecting=99, reason=Reason.NOT_AS_DRAWN, steps=(1,))
    assert series_through(middle, network, toy_images(1), noise, steps=3, check=OFF).tries == 1
    for reason, step in ((Reason.NOT_AS_DRAWN, 0), (Reason.NOT_AS_DRAWN, 2), (Reason.NEAR_TRAINING, 1)):
        gate = Refusing(network, inspecting=99, reason=reason, steps=(step,))
        with pytest.raises(WithheldError, match=reason.value):
            series_through(gate, network, toy_images(1), noise, steps=3, check=OFF)


def test_a_counterfactual_near_the_originals_patient_is_withheld_though_its_finding_may_differ(network):
    gate = toy_gate(network)
    image = next(image for image in toy_images(20).split(1) if not isinstance(attempt(gate, network, image), str))
    own = network.disentangler.encode(image)

    class Same(type(network)):
        def drawn(self, z, noise):
            return super().drawn(z, noise)._replace(identity=own.identity.expand(len(noise), -1))

    thief = Same(network.disentangler, network.identity_vae, network.channel).eval()
    assert Reason.NEAR_ORIGINAL.value in attempt(gate, thief, image)


def attempt(gate, network, image, check=VETO):
    try:
        return series_through(gate, network, image, noise_of(network), check=check)
    except WithheldError as error:
        return str(error)


def test_a_gate_that_lacks_something_gives_nothing(network):
    with pytest.raises(WithheldError, match="no gallery"):
        series_through(Gate(network, []), network, toy_images(1), noise_of(network))


def test_a_response_is_drawn_once_and_follows_from_no_seed(monkeypatch):
    network = toy_network(epsilon=1.0)
    gate = Refusing(network, inspecting=5)

    def noise(number, rows):  # with another response each time, unlike that of Draws
        return torch.randn(len(rows), network.noise_size, generator=torch.Generator().manual_seed(number))

    seen, drawing = [], type(network).drawn
    monkeypatch.setattr(type(network), "drawn", lambda self, z, noise: seen.append(noise) or drawing(self, z, noise))
    series_through(gate, network, toy_images(1), noise, check=OFF)
    given = torch.cat([one[:, -RESPONSE:] for one in seen])
    assert len(seen) == 8 and torch.equal(given, given[:1].expand(len(given), -1)), "nor does any draw see another one"
    medical = torch.stack([shown[0].flatten()[SIZES[0] : SIZES[0] + SIZES[1]] for shown in gate.shown])
    assert len(medical) == 6 and torch.equal(medical, medical[:1].expand(6, -1))
    codes = {tuple(drawn(network, toy_images(1)).medical[0].tolist()) for _ in range(12)}
    assert len(codes) > 1, "the same seed, another response"


def test_noise_hangs_on_seed_name_and_draw_and_not_on_the_batch(network):
    response = torch.arange(4.0).reshape(2, RESPONSE)
    both = Draws(3, 20).of(["a", "b"], response)
    assert torch.equal(both(1, torch.tensor([1]))[0], both(1, torch.arange(2))[1])
    assert torch.equal(Draws(3, 20).of(["b"], response[1:])(1, torch.tensor([0])), both(1, torch.tensor([1])))
    assert not torch.equal(both(0, torch.arange(2)), both(1, torch.arange(2)))
    assert torch.equal(both(7, torch.arange(2))[:, -RESPONSE:], response)
    assert both(0, torch.zeros(0, dtype=torch.long)).shape == (0, 20)


def test_own_images_keep_the_person(network):
    image = toy_images(1)
    series, own = own_series(network, image), network.disentangler.encode(image)
    assert torch.allclose(read(series.pixels).identity, own.identity.expand(2, -1), atol=0.2)
    assert torch.allclose(series.medical[0], own.medical[0])
    assert series.probabilities.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize(("to", "words"), [(0, "has already"), (2, "findings are 0 to 1"), (-1, "findings are 0 to 1")])
def test_findings_that_cannot_be_drawn_are_refused(network, to, words):
    with pytest.raises(ValueError, match=words):
        drawn(network, toy_images(1), to=to)


def test_a_model_without_prototypes_is_refused():
    with pytest.raises(ValueError, match="no prototypes"):
        drawn(toy_network("latents", fitted=False), toy_images(1))


@pytest.mark.parametrize("steps", [1, 0, 17])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=f"--steps is {steps}"):
        between(torch.zeros(1, 4), torch.ones(1, 4), steps)
