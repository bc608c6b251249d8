"""The MONAI Label app's tasks around a toy anonymizer of square images, and an archive for it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from toy_gate import SIZES, ToyClassifier, ToyDecoder, ToyEncoder, tiny_channel, toy_comparators, toy_images

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.bundles import InferenceSettings
from monai_anon.explaining.cases import encode_archive, read_cohorts
from monai_anon.gate import Gate
from monai_anon.integrations.label import Tasks
from monai_anon.keys import Key
from monai_anon.manifest import load_manifest
from monai_anon.networks import Disentangler, IdentityVAE
from monai_anon.readers import to_uint8

SIDE, LATENTS = 6, sum(SIZES)
KEY = Key(bytes(range(32)))


class SquareEncoder(ToyEncoder):
    """The first pixels are the latents."""

    def forward(self, image):
        return super().forward(image.flatten(1)[:, :LATENTS])


class SquareDecoder(ToyDecoder):
    def forward(self, z):
        return nn.functional.pad(super().forward(z).flatten(1), (0, SIDE**2 - LATENTS)).unflatten(1, (1, SIDE, SIDE))


def square_network(**settings):
    disentangler = Disentangler(SquareEncoder(), SquareDecoder(), ToyClassifier())
    channel = tiny_channel("code", sizes=SIZES, prototypes=8, **settings)
    return LatentSwapAnonymizer(disentangler, IdentityVAE(SIZES[0], 8, 8), channel).eval()


def square_images(count, seed=5):
    """uint8 `(N, 6, 6)` of strangers, every second one with the finding."""
    flat = to_uint8(toy_images(count, seed)).flatten(1)
    return nn.functional.pad(flat, (0, SIDE**2 - LATENTS), value=128).view(-1, SIDE, SIDE).numpy()


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_archive(folder: Path, count: int = 24) -> Path:
    """A manifest of images whose names are people's."""
    entries = []
    for number, pixels in enumerate(square_images(count, seed=7)):
        write_png(folder / f"images/Plant^Quirin_{number}.png", pixels)
        entries.append({"image": f"images/Plant^Quirin_{number}.png", "patient": f"Q{number}", "finding": number % 2})
    content = {"training": entries, "validation": [], "test": [], "classes": ["absent", "effusion"]}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder / "manifest.json"


def toy_tasks(archive: Path | None = None, key: Key = KEY, gate: Gate | None = None, **settings) -> Tasks:
    network = square_network(**settings)
    gate = gate or Gate(network, toy_comparators(network))
    found = []
    if archive is not None:
        manifest = load_manifest(archive)
        cohorts = read_cohorts(manifest, "all", SIDE, 1, None)
        names = [Path(entry["image"]).as_posix() for cohort in cohorts for entry in cohort.entries]
        found = [encode_archive(network, manifest, cohorts, progress=False)[0], names, manifest.classes]
    return Tasks(network, gate, InferenceSettings(SIDE, 1, Path("model.pt")), key, *found)


def deaf(gate: Gate) -> Gate:
    """The gate that finds everybody near everybody."""
    for comparator in gate.comparators:
        object.__setattr__(comparator.calibration.training, "similarity", -1.0)
    return gate
