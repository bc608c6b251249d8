"""What is compared with ours: anonymizers by name."""

from monai_anon.baselines.ciagan import CIAGAN
from monai_anon.baselines.k_same import KSame
from monai_anon.baselines.pp_gan import PPGAN
from monai_anon.baselines.pp_mir import PPMIR
from monai_anon.baselines.pp_sir import PPSIR
from monai_anon.baselines.pprl_vgan import PPRLVGAN
from monai_anon.baselines.prichexy_net import PriCheXyNet
from monai_anon.baselines.privacy_net import PrivacyNet
from monai_anon.baselines.sgap import SGAP
from monai_anon.baselines.simple import Blur, Constant, Pixelation, Unchanged

BASELINES = {
    "none": Unchanged,
    "constant": Constant,
    "blur": Blur,
    "pixelation": Pixelation,
    "k-same": KSame,
    "pprl-vgan": PPRLVGAN,
    "ciagan": CIAGAN,
    "sgap": SGAP,
    "pp-gan": PPGAN,
    "pp-mir": PPMIR,
    "pp-sir": PPSIR,
    "privacy-net": PrivacyNet,
    "prichexy-net": PriCheXyNet,
}
"""The first rows of every table, and known answers for every attack, which need no training; those that have a `fit`
see the training part's images and patients once. Then each `System`, which is trained."""
