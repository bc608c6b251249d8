"""What is compared with ours: anonymizers by name."""

from monai_anon.baselines.k_same import KSame
from monai_anon.baselines.simple import Blur, Constant, Pixelation, Unchanged

BASELINES = {"none": Unchanged, "constant": Constant, "blur": Blur, "pixelation": Pixelation, "k-same": KSame}
"""Anonymizers without a network to train: the first rows of every table, and known answers for every attack. Those that
have a `fit` see the training part's images and patients once."""
