"""Networks, batches and a cohort small enough for a test, shared by several test files."""

import torch
from torch import Tensor, nn

from monai_anon.channel import Channel
from monai_anon.channel_fitting import fit_channel
from monai_anon.cohort import Cohort
from monai_anon.networks import Decoder, Discriminator, Disentangler, Encoder, LatentClassifier, Latents, Recogniser

SIZE = 32
LATENT_SIZES = (8, 4, 6)


def tiny_disentangler(patients=0, dropout=0.5, **encoder):
    """A disentangler of 32-pixel gray images; `patients` adds the multi-class identity classifier."""
    return Disentangler(
        Encoder(SIZE, 1, (8, 16), LATENT_SIZES, **encoder),
        Decoder(SIZE, 1, (16, 8), LATENT_SIZES),
        LatentClassifier(LATENT_SIZES[1], 2, 8, dropout),
        LatentClassifier(LATENT_SIZES[0], patients, 8, dropout) if patients else None,
    )


def tiny_channel(policy="latents", fitted=True, sizes=LATENT_SIZES, **settings):
    """A channel with some settings; its prototypes and prior are those of random latents."""
    generator = torch.Generator().manual_seed(0)
    channel = Channel(sizes, policy=policy, **settings)
    if fitted:
        z = Latents(*(torch.randn(400, size, generator=generator) for size in sizes))
        finding = torch.arange(400) % 2
        z = z._replace(medical=z.medical + 3 * finding[:, None])
        found = fit_channel(z, torch.arange(400) // 4, finding, fewest=5)
        channel.load_state_dict(found.state_dict())
    return channel


def tiny_discriminator():
    return Discriminator(SIZE, 1, (8, 16))


def tiny_recogniser():
    return Recogniser(1, 2, (8, 8, 8))


def pair_batch(size=6, seed=1):
    """A batch as `PairLoader` gives it: patients have two images each in it, the last one has no second image."""
    generator = torch.Generator().manual_seed(seed)
    images = {f"i_{which}": torch.rand(size, 1, SIZE, SIZE, generator=generator) * 2 - 1 for which in OTHERS}
    finding = torch.randint(2, (size,), generator=generator)
    has_same = torch.arange(size) < size - 1
    images["i_same"] = torch.where(has_same[:, None, None, None], images["i_same"], images["i_ori"])
    return images | {
        "finding_ori": finding,
        "finding_tar": 1 - finding,
        "finding_same": torch.where(has_same, finding.flip(0), finding),
        "patient_ori": torch.arange(size) // 2,
        "patient_tar": torch.arange(size) // 2 + 1,
        "has_same": has_same,
    }


OTHERS = ("ori", "tar", "same")


def tiny_cohort(images=30, patients=10, seed=0):
    """Noise images; the finding alternates, so that every image has an I_tar."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 1, SIZE, SIZE), generator=generator).to(torch.uint8)
    index = torch.arange(images)
    return Cohort(pixels, index % patients, index // 2 % 2, [{}] * images, ["absent", "effusion"], name="tiny")


class FakeAnonymizer(nn.Module):
    """Gives what `answer` makes of the images."""

    noise_size = 3

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        return self.answer(image.clone())
