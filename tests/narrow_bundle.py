"""A bundle of this repository made small: its own configs, narrow networks and prototypes of random latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from bundle_commands import Bundle
from monai.bundle import ConfigParser
from tiny import tiny_channel

SIZE, LATENTS = 32, (8, 4, 6)
NARROW = {"image_size": SIZE, "encoder_widths": [8, 8], "decoder_widths": [8, 8, 8], "latent_sizes": list(LATENTS)}


def narrow(bundle: Bundle, folder: Path) -> Path:
    """A bundle's configs with narrow networks, untrained, and prototypes of random latents."""
    shutil.copytree(bundle.configs, folder / "configs")
    config = bundle.config("inference.json") | NARROW
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConfigParser(config).get_parsed_content("network_def")
    network.channel.load_state_dict(tiny_channel("code", sizes=LATENTS).state_dict())
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder
