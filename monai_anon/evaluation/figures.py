"""The paper's Figures 4-7 and an explanation, drawn from images: rows are people, columns what was made of them.

Half of the people have a finding. Gray runs from -1 to 1 everywhere, so that pictures can be compared; a difference has
a fixed scale too, which its column names. Every picture shows originals: where these are of patients, it is as
confidential as they are. `pictures.json` lists the pictures of a folder with caption and command. matplotlib is
imported when something is drawn, without its global state.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.evaluation import metrics
from monai_anon.evaluation.latents import decode, device_of, encode
from monai_anon.evaluation.people import OUTSIDE
from monai_anon.evaluation.protocol import IdentitySource
from monai_anon.evaluation.targets import draw_targets
from monai_anon.identities import AveragedIdentities, Gallery, SampledIdentities
from monai_anon.networks import Disentangler, IdentityVAE, Latents
from monai_anon.readers import to_model_range
from monai_anon.whole_files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from monai_anon.cohort import Cohort
    from monai_anon.evaluation.subjects import Subject

PICTURES = "pictures.json"
PEOPLE = 6
CELL, TITLE, NOTE, DPI = 1.15, 0.35, 0.15, 150  # inches; dots an inch: 6 columns fit a page and a phone
SPAN = {"gray": (-1.0, 1.0), "difference": (0.0, 1.0), "change": (-1.0, 1.0)}
COLOURS = {"gray": "gray", "difference": "gray", "change": "RdBu_r"}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a picture.

    Args:
        title: what stands on top.
        images: (N, C, S, S): in [-1, 1] for `gray`, in [0, 2] for `difference` and in [-2, 2] for `change`.
        kind: of `SPAN`; a difference is drawn from 0 to 1, a change from -1 (blue) to 1 (red), what is beyond as that.
        notes: a line under each image, or none.
    """

    title: str
    images: Tensor
    kind: str = "gray"
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """An entry of `pictures.json`: a PNG's name, what it shows, and the command that makes it anew."""

    file: str
    title: str
    columns: Sequence[str]
    caption: str
    command: str


def draw_columns(columns: Sequence[Column], path: str | Path) -> Path:
    """A picture of titled columns, one row a person, as PNG.

    Raises:
        ValueError: no column or no image, or columns of different lengths.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {len(column.images) for column in columns}
    if len(rows) != 1 or rows == {0}:
        raise ValueError(f"columns have {sorted(rows)} images; each needs the same number, at least one")
    (count,) = rows
    room = NOTE if any(column.notes for column in columns) else 0.0
    width, height = CELL * len(columns), (CELL + room) * count + TITLE
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    place = {"left": 0, "right": 1, "bottom": room / height, "top": 1 - TITLE / height}
    place |= {"wspace": 0.02, "hspace": room / CELL + 0.02}
    grid = figure.subplots(count, len(columns), squeeze=False, gridspec_kw=place)
    for number, column in enumerate(columns):
        low, high = SPAN[column.kind]
        for row, image in enumerate(column.images):
            axes = grid[row, number]
            axes.set_axis_off()
            look = {"cmap": COLOURS[column.kind], "vmin": low, "vmax": high, "interpolation": "nearest"}
            axes.imshow(_pixels(image, column.kind), **look)
            if row == 0:
                axes.set_title(textwrap.fill(column.title, 20), fontsize=7)
            if column.notes:
                axes.text(0.5, -0.02, column.notes[row], transform=axes.transAxes, fontsize=6, ha="center", va="top")
    return save_png(figure, Path(path))


def save_png(figure: Figure, path: Path) -> Path:
    """A figure as a PNG without a date, written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".png.part")
    figure.savefig(draft, format="png", metadata={"Software": None})
    with Image.open(draft) as drawn:  # a palette of 256 colours: half the size, for pages that hold their pictures
        drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(draft, format="png", optimize=True)
    draft.replace(path)
    return path


def _pixels(image: Tensor, kind: str) -> np.ndarray:
    """What imshow takes: (S, S), or (S, S, 3) in [0, 1] for three channels."""
    array = image.detach().float().cpu().numpy()
    if len(array) == 1:
        return np.asarray(array[0])
    if kind == "change":
        return np.asarray(array.mean(axis=0))
    low, high = SPAN[kind]
    return np.asarray(((array.transpose(1, 2, 0) - low) / (high - low)).clip(0, 1))


def choose_people(patients: np.ndarray, finding: np.ndarray, count: int = PEOPLE, seed: int = 0) -> np.ndarray:
    """Indices of up to `count` images of different people, half without a finding (0) and then half with one.

    Where one half has too few people, the other has more.

    Args:
        patients, finding: (N,) of the images.
    """
    patients, ill = np.asarray(patients), np.asarray(finding) > 0
    order, chosen = np.random.default_rng(seed).permutation(len(patients)), np.empty(0, dtype=np.int64)
    for limits in ((count - count // 2, count // 2), (count, count)):  # each half its share, then whoever is left
        for image in order:
            room = len(chosen) < count and (ill[chosen] == ill[image]).sum() < limits[int(ill[image])]
            if room and patients[image] not in patients[chosen]:
                chosen = np.append(chosen, image)
    return chosen[np.argsort(ill[chosen], kind="stable")]


class Stand:
    """The chosen people as the model sees them: what every figure is drawn from.

    Args:
        model: both stages.
        plain_vae: the VAE without privacy loss.
        test: people whom the model has not seen, or in a closed set by other images only.
        gallery: identity latents of the training part.
        seed: of people, targets and synthetic identities.
        known: the gallery's codes (N,) of the test images' people; None where they are in no gallery.
    """

    def __init__(
        self,
        model: LatentSwapAnonymizer,
        plain_vae: IdentityVAE,
        test: Cohort,
        gallery: Gallery,
        seed: int,
        known: np.ndarray | None = None,
    ) -> None:
        self.model, self.plain_vae, self.gallery, self.seed = model.eval(), plain_vae, gallery, seed
        self.networks: Disentangler = model.disentangler
        patients, finding = test.patient.numpy(), test.finding.numpy()
        self.people = choose_people(patients, finding, seed=seed)
        codes = np.full(len(patients), OUTSIDE) if known is None else known
        self.codes = torch.from_numpy(codes[self.people])
        first, last = draw_targets(patients, finding, seed)
        self.original, self.first, self.last = (
            to_model_range(test.images[torch.from_numpy(rows)])
            for rows in (self.people, first[self.people], last[self.people])
        )
        self.z, self.z_first, self.z_last = (self.encode(i) for i in (self.original, self.first, self.last))

    def encode(self, images: Tensor) -> Latents:
        """Latents of images, on the CPU."""
        return encode(self.networks, images)

    def decode(self, latents: Latents) -> Tensor:
        """Images in [-1, 1] of latents, on the CPU."""
        return decode(self.networks, latents)

    def identity(self, source: IdentitySource) -> Tensor:
        """New identities of the people, never averaged over themselves; the same noise for every source."""
        return source(self.z.identity, self.codes, torch.Generator().manual_seed(self.seed)).cpu()

    @torch.no_grad()
    def released(self, z: Latents) -> Latents:
        """What a release of people with these latents is decoded from, by the model's policy; the same draws always."""
        place, generator = device_of(self.networks), torch.Generator().manual_seed(self.seed)
        noise = torch.randn(len(z.identity), self.model.noise_size, generator=generator).to(place)
        found = self.model.drawn(Latents(*(latent.to(place) for latent in z)), noise)
        return Latents(*(latent.cpu() for latent in found))

    def with_identity(self, source: IdentitySource) -> Tensor:
        """The people with new identities."""
        return self.decode(self.z._replace(identity=self.identity(source)))


def figure_4(stand: Stand) -> list[Column]:
    """Figure 4: the finding replaced twice, against once by that of the final target."""
    once_first = stand.decode(stand.z._replace(medical=stand.z_first.medical))
    twice = stand.decode(stand.encode(once_first)._replace(medical=stand.z_last.medical))
    once = stand.decode(stand.z._replace(medical=stand.z_last.medical))
    notes = [f"SSIM {value:.3f}" for value in metrics.ssim(twice, once)]
    return [
        Column("original", stand.original),
        Column("target 1", stand.first),
        Column("target 2", stand.last),
        Column("finding of 1", once_first),
        Column("then of 2 (twice)", twice),
        Column("of 2 (once)", once),
        Column("|difference|, 0 to 1", (twice - once).abs(), "difference", notes),
    ]


def figure_5(stand: Stand) -> list[Column]:
    """Figure 5: disentanglement and anonymisation."""
    return [
        Column("original", stand.original),
        Column("target", stand.first),
        Column("reconstruction", stand.decode(stand.z)),
        Column("medical replaced", stand.decode(stand.z._replace(medical=stand.z_first.medical))),
        Column("identity replaced", stand.decode(stand.z._replace(identity=stand.z_first.identity))),
        Column("anonymised", stand.with_identity(SampledIdentities(stand.model.identity_vae))),
    ]


def figure_6(stand: Stand) -> list[Column]:
    """Figure 6: a plain VAE and the one with the privacy loss, from the same noise."""
    return [
        Column("original", stand.original),
        Column("plain VAE", stand.with_identity(SampledIdentities(stand.plain_vae))),
        Column("VAE, privacy loss", stand.with_identity(SampledIdentities(stand.model.identity_vae))),
    ]


def figure_7(stand: Stand) -> list[Column]:
    """Figure 7: identities averaged over training patients; a number that the gallery cannot give is left out."""
    unit, patients = bool(stand.networks.encoder.unit_identity), len(stand.gallery.patient.unique())
    averages = [
        Column(f"average of {k}", stand.with_identity(AveragedIdentities(stand.gallery, k, unit)))
        for k in (6, 12)
        if k < patients
    ]
    everyone = Column("average of all", stand.with_identity(AveragedIdentities(stand.gallery, None, unit)))
    return [Column("original", stand.original), *averages, everyone]


def explanation(stand: Stand) -> list[Column]:
    """The released image, and what would be seen in it with the other finding (section 5.1's counterfactual)."""
    anonymised = stand.decode(stand.released(stand.z))
    counterfactual = stand.decode(stand.released(stand.z._replace(medical=stand.z_first.medical)))
    return [
        Column("original", stand.original),
        Column("reconstruction", stand.decode(stand.z)),
        Column("anonymised", anonymised),
        Column("counterfactual", counterfactual),
        Column("change, blue - red +", counterfactual - anonymised, "change"),
    ]


# Number -> what is drawn, title, caption; 0 is the report's own.
FIGURES: dict[int, tuple[Callable[[Stand], list[Column]], str, str]] = {
    4: (
        figure_4,
        "Figure 4: replaced twice against once",
        "The medical latent replaced by that of target 1, the result encoded and replaced by that of target 2; beside "
        "it target 2's put in at once. Targets are other people with the other finding. SSIM between the two.",
    ),
    5: (
        figure_5,
        "Figure 5: disentanglement and anonymisation",
        "Medical latent or identity latent of the target put into the original; anonymised "
        "as in the paper: a synthetic identity, all else of the original.",
    ),
    6: (
        figure_6,
        "Figure 6: identities of a plain VAE and of one with the privacy loss",
        "Both VAEs decode the same noise. The paper shows iris images here, we the evaluated cohort.",
    ),
    7: (
        figure_7,
        "Figure 7: averaged identities",
        "Identity averaged over 6, 12 and all training patients. The paper shows iris images here, we the evaluated "
        "cohort.",
    ),
    0: (
        explanation,
        "Explanation: what the finding looks like in this image",
        "Anonymised: as it is released. Counterfactual: the same with the medical latent of another person who has the "
        "other finding, or what passes of it. Change: counterfactual less anonymised image.",
    ),
}
_HALVES = " Rows: different people of the test part, the upper half without the finding, the lower half with it."


def file_name(number: int) -> str:
    """A figure's PNG."""
    return f"figure_{number}.png" if number else "explanation.png"


def draw_figures(
    model: LatentSwapAnonymizer,
    plain_vae: IdentityVAE,
    test: Cohort,
    gallery: Gallery,
    output: str | Path,
    *,
    numbers: Sequence[int] = (4, 5, 6, 7),
    seed: int = 0,
    command: str = "",
    known: np.ndarray | None = None,
) -> list[Path]:
    """The figures of these numbers (0: the report's explanation) as PNG in `output`; returns their paths.

    The folder's `pictures.json` gets an entry for each. `known` as for `Stand`.

    Raises:
        ValueError: a number that is not of `FIGURES`, or a test part in which somebody has no target.
    """
    if unknown := sorted(set(numbers) - set(FIGURES)):
        raise ValueError(f"figures {unknown} are not drawn here; known are {sorted(FIGURES)} (0: explanation)")
    stand, folder, pictures = Stand(model, plain_vae, test, gallery, seed, known), Path(output), []
    for number in numbers:
        columns_of, title, caption = FIGURES[number]
        columns = columns_of(stand)
        draw_columns(columns, folder / file_name(number))
        names = [column.title for column in columns]
        pictures.append(Picture(file_name(number), title, names, caption + _HALVES, command))
    write_pictures_json(pictures, folder)
    return [folder / picture.file for picture in pictures]


def draw_releases(subject: Subject, test: Cohort, output: str | Path, *, seed: int = 0, command: str = "") -> Path:
    """What any anonymizer makes of some test images: original, released, change; listed as `draw_figures` does."""
    people = choose_people(test.patient.numpy(), test.finding.numpy(), seed=seed)
    original = to_model_range(test.images[torch.from_numpy(people)])
    released = subject.anonymise(original, torch.Generator().manual_seed(seed))
    columns = [
        Column("original", original),
        Column("released", released),
        Column("change, blue - red +", released - original, "change"),
    ]
    path = draw_columns(columns, Path(output) / file_name(0))
    names = [column.title for column in columns]
    caption = "Each row is one test image." + _HALVES
    write_pictures_json([Picture(path.name, f"What {subject.name} makes of an image", names, caption, command)], output)
    return path


def write_pictures_json(pictures: Sequence[Picture], folder: str | Path) -> Path:
    """Lists pictures in the folder's `pictures.json`, where a picture of the same file replaces its older entry."""
    path = Path(folder) / PICTURES
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    entries = {entry["file"]: entry for entry in [*known, *map(dataclasses.asdict, pictures)]}
    return write_text(path, json.dumps(list(entries.values()), indent=2, ensure_ascii=False) + "\n")
