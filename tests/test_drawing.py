"""What an image is drawn with hangs on seed, name, key and patient: on no original, and on no other image."""

import math
from pathlib import Path

import pytest
import torch
from test_gated_release import Noise
from toy_gate import ToyEncoder, toy_gate, toy_images, toy_network

from monai_anon.channel import RESPONSE
from monai_anon.drawing import Drawing, image_noise
from monai_anon.gate import Decision, Gate, Reason
from monai_anon.gated_release import fitting_draws
from monai_anon.jobs import Job
from monai_anon.keys import Key
from monai_anon.readers import to_uint8

KEY = Key(b"k" * 32)


def jobs(count, each=2):
    return [Job(Path(f"{n}.png"), Path(f"out/{n}.png"), f"{n}.png", "", f"patient {n // each}") for n in range(count)]


def identities(images):
    return torch.nn.functional.normalize(ToyEncoder()(images).identity, dim=1)


@pytest.fixture(scope="module")
def network():
    return toy_network()


class Choosy(Gate):
    """Lets nobody pass before draw `first` of the pseudonyms' identities; then everything."""

    def __init__(self, network, first):
        super().__init__(network, toy_gate(network).comparators)
        self.left, self.asked = first, []

    def inspect(self, generated, drawn):
        self.left -= 1
        self.asked.append(len(generated))
        return [Decision((Reason.NEAR_TRAINING,) if self.left >= 0 else ())] * len(generated)

    def compare(self, pixels, originals):
        return [Decision()] * len(pixels)


def test_draw_0_is_what_it_has_always_been_and_further_ones_are_others():
    drawn = torch.stack([image_noise(3, "a.png", 50, number) for number in range(4)])
    assert torch.equal(drawn[0], image_noise(3, "a.png", 50))
    assert (torch.corrcoef(drawn) - torch.eye(4)).abs().max() < 0.6
    assert not torch.equal(image_noise(3, ":1/a", 4), image_noise(3, "a", 4, 1))


def test_a_pseudonyms_identity_is_tried_with_each_finding_before_any_image_and_redrawn_for_all(network):
    images = to_uint8(toy_images(6))
    shown = {}
    for first in (0, 2):
        gate = Choosy(network, first)
        drawn = Drawing(network, 1, KEY, gate)(jobs(6), images)
        assert gate.asked[: first + 1] == [6] * (first + 1)  # three patients, each with both findings
        shown[first] = identities(drawn.images)
        finding = ToyEncoder()(drawn.images).medical.mean(1) > 1.5
        for a, b in ((0, 1), (2, 3), (4, 5)):
            assert finding[a] != finding[b] or float(shown[first][a] @ shown[first][b]) > 0.99
    assert float((shown[0] * shown[2]).sum(1).max()) < 0.99


def test_the_draw_that_is_taken_hangs_on_no_original(network):
    gate, names = toy_gate(network), jobs(40)
    drawings = [Drawing(network, 1, KEY, gate) for _ in range(2)]
    drawings[0](names, to_uint8(toy_images(40)))
    for at in range(39, -1, -1):
        drawings[1](names[at : at + 1], to_uint8(toy_images(40, seed=9))[at : at + 1])
    assert drawings[0]._taken == drawings[1]._taken and len(drawings[0]._taken) == 20


def test_whose_every_draw_is_near_a_training_patient_has_the_first_one(network):
    noise = Noise(network, 3)
    assert fitting_draws(Choosy(network, 99), network, noise, 3, tries=4) == [0, 0, 0]
    assert fitting_draws(Choosy(network, 2), network, noise, 3, tries=4) == [2, 2, 2]
    assert fitting_draws(Gate(network, []), network, noise, 3) == [0, 0, 0]
    assert fitting_draws(Choosy(network, 2), network, noise, 0) == []


def test_without_a_key_or_without_an_identity_of_its_own_each_image_has_another(network):
    images, gate = to_uint8(toy_images(6)), Choosy(network, 0)
    free = [job._replace(identity="") for job in jobs(6)]
    for drawing, given in ((Drawing(network, 1, None, gate), jobs(6)), (Drawing(network, 1, KEY, gate), free)):
        shown = identities(drawing(given, images).images)
        assert float((shown @ shown.T - torch.eye(6)).max()) < 0.9
    for image, job in zip(images, free):
        expected = network(image[None].float() / 127.5 - 1, image_noise(1, job.name, network.noise_size)[None])
        drawn = Drawing(network, 1)([job], image[None])
        assert drawn.decisions is None and torch.equal(drawn.images, expected)


def test_a_response_hangs_on_key_image_and_meaning_and_on_no_name(network):
    network, images = toy_network(epsilon=1.0), to_uint8(toy_images(60))
    seen = {}
    for name, key, context in (("a", KEY, "x"), ("b", KEY, "x"), ("c", Key(b"o" * 32), "x"), ("d", KEY, "y")):
        seen[name] = Drawing(network, 1, key, context=context)._responses(images)
    assert torch.equal(seen["a"], seen["b"]) and seen["a"].shape == (60, RESPONSE)
    for other in ("c", "d"):
        assert float(torch.corrcoef(torch.stack([seen["a"].flatten(), seen[other].flatten()]))[0, 1].abs()) < 0.4
    free = Drawing(network, 1)
    assert not torch.equal(free._responses(images), free._responses(images))
    assert Drawing(toy_network(), 1, KEY)._responses(images) is None


def test_n_images_of_a_pseudonym_have_no_more_outcomes_than_the_bound_counts(network):
    """With key, seed and names given: whatever two originals are, each copy is one of K pictures or withheld."""
    gate, count = toy_gate(network), network.channel.codebook.count(network.channel.level)
    originals, outcomes = to_uint8(toy_images(60, seed=11)), []
    for first, second in zip(originals, originals.flip(0)):
        drawn = Drawing(network, 1, KEY, gate)(jobs(2), torch.stack([first, second]))
        outcomes.append(to_uint8(drawn.images).flatten(1))
    for place in (0, 1):
        found = torch.stack([outcome[place] for outcome in outcomes]).unique(dim=0)
        assert 2 <= len(found) <= count + 1
    assert math.isclose(math.log2(count + 1) * 2, math.log2((count + 1) ** 2))
