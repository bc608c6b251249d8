"""A whole site for the toy anonymizer: a bundle, judges, galleries, originals of some patients. As a program it is the
`monai-anon` command with the toy's judges, so that a test can kill it or start several.

    python tests/toy_release.py [--kill-at N | --blind] VERB ...

With `--kill-at` the process kills itself when the Nth copy is about to get its name; with `--blind` no process of
several but the first one finds anything in the table of patients.
"""

import csv
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from toy_gate import ToyClassifier, toy_images, toy_network

from monai_anon import pseudonyms
from monai_anon.cohort import Cohort
from monai_anon.evaluation.judges import Judges
from monai_anon.readers import to_model_range, to_uint8
from monai_anon.site import People, make_site

SIZES, SHAPE, SIDE = (28, 4, 4), (1, 6, 6), 6
IDENTITY = slice(0, SIZES[0])
MARK = b"toy judges"


class ToyJudges(Judges):
    """A verifier that sees the identity's pixels turned, a medical judge that is the model's classifier."""

    def __init__(self):
        super().__init__(nn.Linear(1, 1), nn.Linear(1, 1), ["absent", "present"], [])
        turn = torch.randn(SIZES[0], SIZES[0], generator=torch.Generator().manual_seed(3))
        self.turn = torch.linalg.qr(turn)[0][:, :16]

    def embed(self, images, batch_size=256):
        return (images.flatten(1)[:, IDENTITY] @ self.turn).numpy()

    def read(self, images, batch_size=256):
        medical = images.flatten(1)[:, SIZES[0] : SIZES[0] + SIZES[1]] * 6
        return ToyClassifier()(medical).softmax(1).numpy(), np.zeros((len(images), 0)), np.zeros(len(images))


def load(path, device="cpu"):
    if Path(path).read_bytes() != MARK:
        raise ValueError("no judges")
    return ToyJudges()


def toys(count, seed):
    return to_uint8(toy_images(count, seed, SIZES, SHAPE))


def training():
    finding = torch.arange(300) % 2
    return Cohort(toys(300, 1), torch.arange(300) // 2, finding, [{}] * 300, ["absent", "present"], name="toy")


def write_bundle(folder, policy="code"):
    config = {
        "bundle_root": "nowhere", "model_file": "$@bundle_root + '/models/model.pt'", "image_size": SIDE, "channels": 1,
        "policy": policy, "prototypes": 8, "epsilon": None,
        "network_def": {
            "_target_": "toy_gate.toy_network", "policy": "@policy", "prototypes": "@prototypes", "epsilon": "@epsilon",
            "sizes": list(SIZES), "shape": list(SHAPE),
        },
    }  # fmt: skip
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "toy", "version": "1.2.3"}))
    torch.save(toy_network(sizes=SIZES, shape=SHAPE).state_dict(), folder / "models" / "model.pt")
    return folder


def write_site(folder, bundle):
    """`folder`, calibrated at the rate that its 150 strangers can tell; Judges.load must be `load`."""
    (folder.parent / "judges").write_bytes(MARK)
    people = People(training(), toys(150, 2), torch.arange(150))
    network = toy_network(sizes=SIZES, shape=SHAPE)
    make_site(folder, network, bundle / "models/model.pt", folder.parent / "judges", people, 0.02, progress=False)
    return folder


def write_originals(folder, count=24, each=3, seed=5):
    """Pictures of patients with `each` images, and the table that says so."""
    folder.mkdir(parents=True)
    with (folder.parent / "patients.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "patient"])
        for number, pixels in enumerate(toys(count, seed)):
            Image.fromarray(pixels[0].numpy()).save(folder / f"{number:02}.png")
            table.writerow([f"{folder.name}/{number:02}.png", f"PLANTQ {number // each}"])
    return folder


def identity(path):
    """Of a copy, at length 1; the toy draws it into its pixels."""
    pixels = to_model_range(torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None])
    return nn.functional.normalize(pixels.flatten()[IDENTITY], dim=0)


def medical(path):
    pixels = to_model_range(torch.from_numpy(np.asarray(Image.open(path)).copy())[None, None])
    return pixels.flatten()[SIZES[0] : SIZES[0] + SIZES[1]] * 6


def main():
    Judges.load = staticmethod(load)
    words = sys.argv[1:]
    if words[0] == "--kill-at":
        left, link = [int(words[1])], os.link

        def killing(source, target):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            link(source, target)

        os.link, words = killing, words[2:]
    if words[0] == "--blind":
        words = words[1:]
        if os.environ["RANK"] != "0":
            pseudonyms._of_table = lambda path: iter(())
    from monai_anon.__main__ import app

    app(words)


if __name__ == "__main__":
    main()
