"""The model that works on day one: small, tensors only, fits its config, and does on new phantoms what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_anon.bundles import load_anonymizer
from monai_anon.losses import ssim
from monai_anon.model_files import bundle_name, read_record
from monai_anon.phantoms import chest, face, iris
from monai_anon.readers import to_model_range

BUNDLES = Path(__file__).parent.parent / "bundles"
# Kind, channels, least likeness of a reconstruction, and how many images and people it was trained on.
SHIPPED = {
    "chest": (chest, 1, 0.7, {1791, 6000}),
    "iris": (iris, 1, 0.5, {115, 1165}),
    "face": (face, 3, 0.6, {600, 8210}),
}


@pytest.fixture(scope="module", params=SHIPPED)
def bundle(request: pytest.FixtureRequest) -> Path:
    return BUNDLES / str(request.param)


@pytest.fixture(scope="module")
def images(bundle: Path) -> torch.Tensor:
    """Phantoms of people whom the model has never seen: (24, C, 64, 64) in [-1, 1]."""
    kind, channels = SHIPPED[bundle.name][:2]
    drawn = torch.from_numpy(kind.render(kind.sample_factors(99, images=(24, 0, 0), patients=(8, 0, 0)), 64))
    return to_model_range(drawn.reshape(24, 64, 64, channels).permute(0, 3, 1, 2).contiguous())


def test_all_files_together_stay_under_25_megabytes(bundle: Path) -> None:
    """Without what `monai-anon export` has written beside them."""
    shipped = [file for file in (bundle / "models").iterdir() if file.suffix not in (".ts", ".onnx")]
    assert 0 < sum(file.stat().st_size for file in shipped) < 25e6
    assert read_record(bundle / "models" / "model.pt")["bundle"] == bundle_name(bundle)


def test_it_holds_tensors_only_and_no_gallery(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert {name.split(".")[0] for name in state} == {"disentangler", "identity_vae", "channel"}
    assert not [name for name in state if "identity_classifier" in name]
    channel = load_anonymizer(bundle)[0].channel
    assert channel.policy == "code" and channel.statement().bits <= 3 and channel.statement().patients >= 20
    # A gallery has a row for each patient or image.
    assert not SHIPPED[bundle.name][3] & {side for tensor in state.values() for side in tensor.shape}


def test_it_reconstructs_and_it_changes_the_person(bundle: Path, images: torch.Tensor) -> None:
    model, settings = load_anonymizer(bundle, settings={"policy": "latents"})
    assert (settings.image_size, settings.channels) == (64, SHIPPED[bundle.name][1])
    noise = torch.randn(len(images), int(model.noise_size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reconstructed = model.disentangler(images)
        anonymised = model(images, noise)
    similar, changed = float(ssim(images, reconstructed).mean()), float(ssim(images, anonymised).mean())
    assert similar > SHIPPED[bundle.name][2]
    assert changed < similar - 0.05


def test_it_keeps_the_finding_that_its_own_classifier_reads(bundle: Path, images: torch.Tensor) -> None:
    model, _ = load_anonymizer(bundle)
    noise = torch.randn(len(images), int(model.noise_size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.disentangler.classify(model.disentangler.encode(images).medical).argmax(1)
        after = model.disentangler.classify(model.disentangler.encode(model(images, noise)).medical).argmax(1)
    assert float((before == after).float().mean()) > 0.9
