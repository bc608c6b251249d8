"""What is compared with ours: anonymizers by name."""

from monai_anon.baselines.simple import Blur, Constant, Pixelation, Unchanged

BASELINES = {"none": Unchanged, "constant": Constant, "blur": Blur, "pixelation": Pixelation}
