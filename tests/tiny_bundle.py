"""A bundle that anonymises images of 32 pixels with untrained networks, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_channel

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.networks import Decoder, Disentangler, Encoder, IdentityVAE, LatentClassifier

SIZE = 32
LATENTS = (8, 2, 4)
_SHAPE: dict[str, Any] = {"size": SIZE, "widths": (8, 8), "latent_sizes": LATENTS}


def tiny_anonymizer() -> LatentSwapAnonymizer:
    """Untrained, in evaluation mode, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = Encoder(**_SHAPE), Decoder(**_SHAPE), LatentClassifier(LATENTS[1], 2, hidden=4)
        vae = IdentityVAE(LATENTS[0], latent_size=6, hidden=8)
        network = LatentSwapAnonymizer(Disentangler(*parts), vae, tiny_channel(sizes=LATENTS))
    return network.eval()


def write_bundle(folder: Path) -> Path:
    """`folder` with configs/inference.json and models/model.pt."""

    def node(name: str, **arguments: Any) -> dict[str, Any]:
        return {"_target_": f"monai_anon.{name}", **arguments}

    shape = {"size": "@image_size", "channels": "@channels", "widths": [8, 8], "latent_sizes": list(LATENTS)}
    disentangler = node(
        "networks.Disentangler",
        encoder=node("networks.Encoder", **shape),
        decoder=node("networks.Decoder", **shape),
        medical_classifier=node("networks.LatentClassifier", latent_size=LATENTS[1], classes=2, hidden=4),
    )
    vae = node("networks.IdentityVAE", identity_size=LATENTS[0], latent_size=6, hidden=8)
    config = {
        "bundle_root": "nowhere",
        "model_file": "$@bundle_root + '/models/model.pt'",
        "image_size": SIZE,
        "channels": 1,
        "policy": "latents",
        "prototypes": 8,
        "epsilon": None,
        "network_def": node(
            "anonymizers.LatentSwapAnonymizer",
            disentangler=disentangler,
            identity_vae=vae,
            channel=node(
                "channel.Channel",
                latent_sizes=list(LATENTS),
                policy="@policy",
                prototypes="@prototypes",
                epsilon="@epsilon",
            ),
        ),
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(tiny_anonymizer().state_dict(), folder / "models" / "model.pt")
    return folder
