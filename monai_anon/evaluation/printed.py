"""What Tables 2 and 3 of the paper print, in per cent: of other images than ours.

Montenegro & Cardoso, "Anonymizing medical case-based explanations through disentanglement" (preprint).
"""

from __future__ import annotations

from collections.abc import Iterable

LABELS = {
    "chest": "paper (CheXpert, other data)",
    "face": "paper (CelebAMask-HQ, other data)",
    "iris": "paper (Warsaw's irises, other data)",
}
"""What a line of each dataset is marked by."""
TEST_IMAGES = {"chest": 300, "face": 371, "iris": 360}

# dataset -> experiment -> SSIM to the original, twice; identity original, target; accuracy, F1
TABLE_2 = {
    "chest": {
        "reconstruction": (65.46, 96.27, 77.24, 13.95, 81.73, 82.65),
        "medical replacement": (46.22, 97.35, 100.00, 11.63, 73.42, 68.75),
        "identity replacement": (61.55, 96.22, 12.29, 100.00, 76.41, 72.37),
    },
    "face": {
        "reconstruction": (59.30, 90.68, 93.26, 2.16, 93.80, 92.60),
        "medical replacement": (46.63, 92.17, 100.00, 1.62, 92.72, 88.80),
        "identity replacement": (55.52, 90.37, 2.16, 100.00, 92.99, 91.56),
    },
    "iris": {
        "reconstruction": (53.36, 98.36, 81.76, 0.00, 90.00, 81.91),
        "medical replacement": (52.96, 98.40, 82.35, 0.59, 74.41, 78.83),
        "identity replacement": (29.01, 99.86, 0.00, 82.65, 85.88, 71.76),
    },
}
# dataset -> method -> original accuracy, overall accuracy (of irises the largest confidence: section 4.3), accuracy
TABLE_3 = {
    "chest": {"VAE with privacy loss": (10.63, 11.39, 78.41), "Montenegro et al. 2023": (29.90, 13.83, 74.42)},
    "face": {"VAE with privacy loss": (14.82, 12.96, 91.64)},
    "iris": {
        "VAE with privacy loss": (0.59, 11.76, 90.29),
        "VAE (plain)": (1.76, 38.99, 88.82),
        "averaging 6 identities": (0.88, 35.78, 91.76),
        "averaging 12 identities": (0.59, 21.98, 90.29),
        "averaging all identities": (2.06, 6.76, 91.18),
        "PP-SIR (Montenegro et al. 2021)": (4.41, 64.07, 79.71),
        "Montenegro et al. 2023": (0.29, 65.14, 61.47),
    },
}
_NAMES = {"iris": ("iris", "warsaw"), "face": ("face", "celeb")}


def kinds_of(datasets: Iterable[str]) -> list[str]:
    """Which of the paper's datasets stand beside ours, by our datasets' names: chest where they do not say."""
    found = []
    for dataset in datasets:
        name = dataset.lower()
        found.append(next((kind for kind, words in _NAMES.items() if any(word in name for word in words)), "chest"))
    return [kind for kind in LABELS if kind in found] or ["chest"]
