"""The model that works on day one: small, tensors only, fits its config, and does on new phantoms what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_anon.bundles import load_anonymizer
from monai_anon.losses import ssim
from monai_anon.phantoms import chest
from monai_anon.readers import to_model_range

BUNDLE = Path(__file__).parent.parent / "bundles" / "chest"
MODELS = BUNDLE / "models"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Phantoms of people whom the model has never seen: (24, 1, 64, 64) in [-1, 1]."""
    factors = chest.sample_factors(99, images=(24, 0, 0), patients=(8, 0, 0))
    return to_model_range(torch.from_numpy(chest.render(factors, 64)[:, None]))


def test_all_files_together_stay_under_25_megabytes() -> None:
    """Without what `monai-anon export` has written beside them."""
    shipped = [file for file in MODELS.iterdir() if file.suffix not in (".ts", ".onnx")]
    assert 0 < sum(file.stat().st_size for file in shipped) < 25e6


def test_it_holds_tensors_only_and_no_gallery() -> None:
    state = torch.load(MODELS / "model.pt", map_location="cpu", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert {name.split(".")[0] for name in state} == {"disentangler", "identity_vae", "channel"}
    channel = load_anonymizer(BUNDLE)[0].channel
    assert channel.policy == "code" and channel.statement().bits <= 5 and channel.statement().patients >= 20
    # A gallery has a row for each of 1,791 patients or 6,000 images.
    assert not {1791, 6000} & {side for tensor in state.values() for side in tensor.shape}


def test_it_reconstructs_and_it_changes_the_person(images: torch.Tensor) -> None:
    model, settings = load_anonymizer(BUNDLE, settings={"policy": "latents"})
    assert (settings.image_size, settings.channels) == (64, 1)
    noise = torch.randn(len(images), int(model.noise_size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reconstructed = model.disentangler(images)
        anonymised = model(images, noise)
    similar, changed = float(ssim(images, reconstructed).mean()), float(ssim(images, anonymised).mean())
    assert similar > 0.7
    assert changed < similar - 0.05


def test_it_keeps_the_finding_that_its_own_classifier_reads(images: torch.Tensor) -> None:
    model, _ = load_anonymizer(BUNDLE)
    noise = torch.randn(len(images), int(model.noise_size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.disentangler.classify(model.disentangler.encode(images).medical).argmax(1)
        after = model.disentangler.classify(model.disentangler.encode(model(images, noise)).medical).argmax(1)
    assert float((before == after).float().mean()) > 0.9
