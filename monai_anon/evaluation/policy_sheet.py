"""A sheet of what each policy makes of the same images, large enough to look at ribs, vessels and fluid.

Columns are test images, first some without a finding, then the sides that occur, each from slight to severe. All rows
that draw something have the same draws, so that only what passes of the original differs from row to row.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import round_up
from monai_anon.evaluation.contents.channel import with_policy
from monai_anon.evaluation.figures import DPI, Picture, save_png, write_pictures_json
from monai_anon.evaluation.judge_networks import severities, side_codes, sides_of
from monai_anon.evaluation.latents import decode, device_of, encode
from monai_anon.readers import to_model_range, to_uint8

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

FILE = "policies.png"
CASES, HEALTHY = 8, 2
SHOWN, GAP, LABEL, LINE = 192, 4, 190, 16  # pixels: of an image, between images, left of them, a line


class Row(NamedTuple):
    """One row of the sheet: what stands beside it, and images (N, C, S, S) in [-1, 1]."""

    label: str
    images: Tensor


# ---- which images ----


def choose_cases(cohort: Cohort, count: int = CASES, healthy: int = HEALTHY, seed: int = 0) -> np.ndarray:
    """Indices of up to `count` images of different people: without a finding (0) first, then every finding and side.

    Of each kind the severities are spread from the slightest to the most severe; where one kind has too few people,
    others have more.
    """
    finding, side = cohort.finding.numpy(), side_codes(cohort, sides_of(cohort))
    severity = np.nan_to_num(severities(cohort))
    kinds = sorted(set(zip(finding.tolist(), side.tolist(), strict=True)))
    ill = [(what, where) for what, where in kinds if what > 0]
    shares = dict.fromkeys(ill, 0)
    for place in range(count - healthy if ill else 0):
        shares[ill[place % len(ill)]] += 1
    patients, order = cohort.patient.numpy(), np.random.default_rng(seed).permutation(len(finding))
    chosen: list[int] = []

    def add(rows: np.ndarray, share: int) -> None:
        """Different people who are not shown yet, evenly by severity."""
        free = {int(patients[row]): int(row) for row in rows if patients[row] not in patients[chosen]}
        ranked = sorted(free.values(), key=lambda row: float(severity[row]))
        share = min(share, len(ranked))
        chosen.extend(ranked[place] for place in np.linspace(0, len(ranked) - 1, share).round().astype(int))

    add(order[finding[order] == 0], healthy if ill else count)
    for (what, where), share in shares.items():
        add(order[(finding[order] == what) & (side[order] == where)], share)
    add(order, count - len(chosen))
    return np.array(sorted(chosen, key=lambda row: (finding[row], side[row], severity[row])))


def case_names(cohort: Cohort, rows: np.ndarray) -> list[str]:
    """What each image shows, as far as its entry says: finding, side, severity."""
    names = []
    for row in rows:
        entry, finding = cohort.entries[row], int(cohort.finding[row])
        words = [cohort.classes[finding] if finding else "no finding"]
        if finding and entry.get("side", "none") != "none":
            words.append(str(entry["side"]))
        if finding and entry.get("severity") is not None:
            words.append(f"severity {float(entry['severity']):.2f}")
        names.append(", ".join(words))
    return names


# ---- what is made of them ----


@torch.no_grad()
def sheet_rows(networks: LatentSwapAnonymizer, original: Tensor, seed: int = 0) -> list[Row]:
    """Original images (N, C, S, S) in [-1, 1], their reconstruction, a release under each policy, a counterfactual.

    Without prototypes there is no release but that of the policy latents.
    """
    networks = networks.eval()
    disentangler, channel = networks.disentangler, networks.channel
    noise = torch.randn(len(original), networks.noise_size, generator=torch.Generator().manual_seed(seed))
    device = device_of(disentangler)

    def released(policy: str) -> Tensor:
        found: Tensor = with_policy(networks, policy)(original.to(device), noise.to(device))
        return found.float().clamp(-1, 1).cpu()

    z = encode(disentangler, original)
    shift = max(1, 3 * len(original) // 8)
    rows = [
        Row("original", original),
        Row("reconstruction", decode(disentangler, z)),
        Row("anonymised, policy latents: all but the identity passes", released("latents")),
    ]
    if channel.fitted():
        bits = channel.codebook.statement(channel.level).bits
        rows += [
            Row("anonymised, policy residual: the medical latent passes", released("residual")),
            Row(
                f"anonymised, policy code of {round(2**bits)}: {round_up(bits, 1):.1f} bits pass, no more",
                released("code"),
            ),
        ]
    borrowed = z._replace(medical=z.medical.roll(-shift, 0))
    away = f"{shift} column{'s' if shift > 1 else ''} to the right"
    return [*rows, Row(f"counterfactual: medical latent of the image {away}", decode(disentangler, borrowed))]


# ---- the picture ----


def draw_sheet(rows: list[Row], names: list[str], path: Path) -> Path:
    """Rows of images with their labels as PNG, each pixel enlarged to a square."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    times = max(1, round(SHOWN / rows[0].images.shape[-1]))
    cell = rows[0].images.shape[-1] * times + GAP
    titles = [textwrap.fill(name, 20) for name in names]
    head = LINE // 2 + LINE * max(title.count("\n") + 1 for title in titles)
    width, height = LABEL + cell * len(names), head + cell * len(rows)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    words: Any = {"fontsize": 7, "va": "center"}
    for column, title in enumerate(titles):
        x, y = LABEL + (column + 0.5) * cell, head / 2
        figure.text(x / width, 1 - y / height, title, ha="center", **words)
    for number, row in enumerate(rows):
        y = head + (number + 0.5) * cell
        figure.text(8 / width, 1 - y / height, textwrap.fill(row.label, 20), ha="left", **words)
        strip = np.concatenate([_enlarged(image, times) for image in to_uint8(row.images)], axis=1)
        figure.figimage(strip, LABEL, height - head - cell * (number + 1))
    return save_png(figure, path)


def _enlarged(image: Tensor, times: int) -> np.ndarray:
    """(C, S, S) uint8 as (S', S', 3) with a white margin on the right and below."""
    colours = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    large = colours.permute(1, 2, 0).numpy().repeat(times, axis=0).repeat(times, axis=1)
    return np.pad(large, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def draw_policies(
    networks: LatentSwapAnonymizer, test: Cohort, output: str | Path, *, seed: int = 0, command: str = ""
) -> Path:
    """`policies.png` in `output`, listed in its `pictures.json`; it shows originals, and is as confidential as they."""
    chosen = choose_cases(test, seed=seed)
    names = case_names(test, chosen)
    rows = sheet_rows(networks, to_model_range(test.images[torch.from_numpy(chosen)]), seed)
    path = draw_sheet(rows, names, Path(output) / FILE)
    caption = f"From top to bottom: {'; '.join(row.label for row in rows)}. Releases have the same draws."
    write_pictures_json([Picture(FILE, "What each policy lets pass", names, caption, command)], output)
    return path
