"""What is compared with ours: anonymizers by name."""

from monai_anon.baselines.cleanir import CLEANIR
from monai_anon.baselines.k_same import KSame
from monai_anon.baselines.montenegro_2023 import Montenegro2023
from monai_anon.baselines.ours import Ours
from monai_anon.baselines.paper import AverageOfAll, AveragesOf6, AveragesOf12, PlainVAE, PrivateVAE
from monai_anon.baselines.r2vae import R2VAE
from monai_anon.baselines.simple import Blur, Constant, Pixelation, Unchanged

BASELINES = {
    "none": Unchanged,
    "constant": Constant,
    "blur": Blur,
    "pixelation": Pixelation,
    "k-same": KSame,
    "r2vae": R2VAE,
    "cleanir": CLEANIR,
    "montenegro-2023": Montenegro2023,
    "averaging-6": AveragesOf6,
    "averaging-12": AveragesOf12,
    "averaging-all": AverageOfAll,
    "vae": PlainVAE,
    "vae-privacy": PrivateVAE,
    "ours": Ours,
}
"""Those of `simple` need no training and give known answers for every attack; those that have a `fit` see the training
part's images and patients once; a `System` is trained (`system.train_system`).
"""
