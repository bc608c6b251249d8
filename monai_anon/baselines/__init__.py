"""What is compared with ours: anonymizers by name."""

from monai_anon.baselines.ciagan import CIAGAN
from monai_anon.baselines.cleanir import CLEANIR
from monai_anon.baselines.deep_privacy import DeepPrivacy
from monai_anon.baselines.deep_privacy_2 import DeepPrivacy2
from monai_anon.baselines.dp_pix import DPPix
from monai_anon.baselines.k_same import KSame
from monai_anon.baselines.k_same_m import KSameM
from monai_anon.baselines.k_same_select import KSameSelect
from monai_anon.baselines.montenegro_2023 import Montenegro2023
from monai_anon.baselines.ours import Ours
from monai_anon.baselines.paper import AverageOfAll, AveragesOf6, AveragesOf12, PlainVAE, PrivateVAE
from monai_anon.baselines.pp_gan import PPGAN
from monai_anon.baselines.pp_mir import PPMIR
from monai_anon.baselines.pp_sir import PPSIR
from monai_anon.baselines.pprl_vgan import PPRLVGAN
from monai_anon.baselines.prichexy_net import PriCheXyNet
from monai_anon.baselines.privacy_net import PrivacyNet
from monai_anon.baselines.r2vae import R2VAE
from monai_anon.baselines.sgap import SGAP
from monai_anon.baselines.simple import Blur, Constant, Pixelation, Unchanged

BASELINES = {
    "none": Unchanged,
    "constant": Constant,
    "blur": Blur,
    "pixelation": Pixelation,
    "dp-pix": DPPix,
    "k-same": KSame,
    "k-same-select": KSameSelect,
    "k-same-m": KSameM,
    "deep-privacy": DeepPrivacy,
    "deep-privacy-2": DeepPrivacy2,
    "pprl-vgan": PPRLVGAN,
    "ciagan": CIAGAN,
    "sgap": SGAP,
    "pp-gan": PPGAN,
    "pp-mir": PPMIR,
    "pp-sir": PPSIR,
    "privacy-net": PrivacyNet,
    "prichexy-net": PriCheXyNet,
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
"""Anonymizers by name. Those that are no `System` have no network to train: the first rows of every table, and known
answers for every attack; one that has a `fit` sees the training part's images and patients once. Every `System` has an
overlay of its name in `bundles/chest/configs/systems`.
"""
