"""Similar cases of an archive, anonymised, and what their being shown says of them.

**Why not simply the nearest.** "This case is among the five nearest of 2,000 to that query" is a statement about the
case's own medical latent, its rank another, its distance a real number; none of them is in its image, and no bound on
images counts them. Which cases are shown, and in which order, is therefore decided by what a release of each would pass
anyway, under `code` by the distance between *prototypes* (from the query's, or, for cases with another finding, from
its counterfactual's), and by chance among those with one code. Little is lost: an anonymised case shows its prototype,
so of two with one code neither can be shown to be nearer (docs/explain.md).

**One image a patient.** Each patient is a candidate for one of two lists, of the query's finding or of another one;
which, is drawn without looking at any image, half of them each (those whose images are all of the other kind go there).
There the patient's nearest image stands for him: one code j*, of his images' codes, the query's code and chance. Noise
hangs on the patient it is drawn for and on nobody else. So given all others and the noise, the page is a function of
j*, and of whether the original vetoed it, upon which it is the page without this patient, with one withheld case more:
K + 1 outcomes, log2(K + 1) bits (`gated_release`), of a patient with however many images. For that there must be one
count for both lists, and no list is shorter than asked for: where one cannot be filled nothing is written.

With an epsilon even the nearest of a patient's codes would tell of each of them, and spend it as often. There one image
of each patient is drawn, without looking, and the response to that one decides everything.

Under `residual` and `latents` real-valued latents pass, they are what is compared, and nothing is bounded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.cohort import Cohort
from monai_anon.dicom import read_header
from monai_anon.explaining.counterfactuals import Draws, finding_count, passing, responses
from monai_anon.gate import Gate
from monai_anon.gated_release import TRIES, OriginalCheck, anonymise_through
from monai_anon.manifest import PARTS, Manifest
from monai_anon.originals import Original, kind_of
from monai_anon.readers import to_model_range

logger = logging.getLogger("monai_anon")

BATCH = 256


class CasesError(ValueError):
    """An archive that cannot answer: says what there is and what it would take."""


@dataclass(frozen=True)
class Archive:
    """Cases to choose from, in the order of their manifest.

    Args:
        cohorts: that the images are in, one after the other.
        paths: of their files; they may hold names.
        patient: codes `(N,)`.
        medical: what passes of the medical latents, `(N, D)`.
        probabilities: of the findings, `(N, K)`, by these latents.
        response: that was drawn for each, `(N, RESPONSE)`.
    """

    cohorts: list[Cohort]
    paths: list[Path]
    patient: Tensor
    medical: Tensor
    probabilities: Tensor
    response: Tensor

    def __repr__(self) -> str:
        return f"Archive({len(self.patient)} images of {len(self.patient.unique())} patients)"

    def pixels(self, rows: Sequence[int]) -> Tensor:
        """Originals, uint8 `(B, C, S, S)`."""
        starts = np.cumsum([0, *(len(cohort) for cohort in self.cohorts)])
        found = []
        for row in rows:
            which = int(np.searchsorted(starts, row, side="right")) - 1
            found.append(self.cohorts[which].pixels(torch.tensor([row - int(starts[which])])))
        return torch.cat(found)

    def without(self, patients: Tensor) -> np.ndarray:
        """Rows of all but some patients."""
        return np.flatnonzero(~torch.isin(self.patient, patients).numpy())


def read_cohorts(manifest: Manifest, part: str, size: int, channels: int, cache_dir: Path | None) -> list[Cohort]:
    """The parts of a manifest that hold images; one of PARTS, or "all".

    Raises:
        CasesError: no such part, or no images in it.
        CohortError: images that cannot be used.
    """
    if part not in (*PARTS, "all"):
        raise CasesError(f"--part is {part!r}; it must be all, {', '.join(PARTS)}")
    chosen = [name for name in PARTS if part in (name, "all") and manifest.parts[name]]
    if not chosen:
        raise CasesError(f"{manifest.path} has no images{'' if part == 'all' else f' in the part {part}'}: no cases")
    return [Cohort.from_manifest(manifest, name, size, channels, cache_dir) for name in chosen]


@torch.inference_mode()
def encode_archive(
    network: LatentSwapAnonymizer,
    manifest: Manifest,
    cohorts: list[Cohort],
    query: Original | None = None,
    query_path: Path | None = None,
    progress: bool = True,
) -> tuple[Archive, Tensor]:
    """The archive, and the codes of the patients whom the query's image is of, as far as its file or its pixels tell.

    Raises:
        CasesError: the manifest's findings are not as many as the model's.
    """
    if manifest.num_classes != finding_count(network):
        raise CasesError(
            f"{manifest.path} has {manifest.num_classes} classes and the model tells {finding_count(network)} findings "
            "apart; take the manifest that the model was trained with, or one of the same findings"
        )
    entries = [entry for cohort in cohorts for entry in cohort.entries]
    _, codes = np.unique([entry["patient"] for entry in entries], return_inverse=True)
    paths = [manifest.image_path(entry) for entry in entries]
    response = responses(network, len(entries))
    device, medical, same = next(network.parameters()).device, [], []
    with tqdm(total=len(entries), desc="reading cases", unit="image", disable=None if progress else True) as bar:
        for cohort in cohorts:
            for rows in torch.arange(len(cohort)).split(BATCH):
                pixels, start = cohort.pixels(rows), bar.n
                z = network.disentangler.encode(to_model_range(pixels).to(device))
                medical.append(passing(network, z, response[start : start + len(rows)]).cpu())
                same.append(torch.zeros(len(rows)) if query is None else (pixels == query.pixels).flatten(1).all(1))
                bar.update(len(rows))
    latents, found = torch.cat(medical), torch.cat(same).bool()
    if query_path is not None:
        real = query_path.resolve()
        found |= torch.tensor([path.name == real.name and path.resolve() == real for path in paths])
    read = network.disentangler.classify(latents.to(device)).float().softmax(1).cpu()
    patient = torch.from_numpy(codes.astype(np.int64))
    return Archive(cohorts, paths, patient, latents, read, response), patient[found].unique()


def retrieve(
    archive: Archive,
    medical: Tensor,
    other: Tensor,
    finding: int,
    chance: np.random.Generator,
    rows: np.ndarray,
    one_image: bool = False,
) -> tuple[list[int], list[int]]:
    """Rows of the archive from the nearest on: of the query's finding, and of another one; no patient occurs twice.

    Args:
        medical: what passes of the query's medical latent, `(1, D)`, from which the first list is the nearest.
        other: the counterfactual's, from which the second one is.
        finding: that `medical` stands for.
        chance: decides who is a candidate for which list, and between equals; looks at no image.
        rows: that may be chosen.
        one_image: draw one image of each patient first, and look at no other.
    """
    patients = np.unique(archive.patient.numpy())
    likes = dict(zip(chance.permutation(patients).tolist(), (np.arange(len(patients)) % 2 == 0).tolist(), strict=True))
    tie = chance.random(len(archive.patient))
    # rounded: equal prototypes are equally far, whatever a sum over another batch makes of it
    alike, patient = (archive.probabilities.argmax(1) == finding).numpy(), archive.patient.numpy()
    from_whom = torch.where(torch.from_numpy(alike)[:, None], medical, other)
    far = (archive.medical - from_whom).square().sum(1).sqrt().numpy().round(5)
    wanted = np.array([likes[code] for code in patient.tolist()]) == alike
    if one_image:
        drawn = rows[np.argsort(tie[rows])]
        may = drawn[np.unique(patient[drawn], return_index=True)[1]]
    else:
        has = np.isin(patient, patient[rows][wanted[rows]])
        may = rows[wanted[rows] | ~has[rows]]
    order = may[np.lexsort((tie[may], far[may]))]
    _, first = np.unique(patient[order], return_index=True)
    nearest = order[np.sort(first)]
    return nearest[alike[nearest]].tolist(), nearest[~alike[nearest]].tolist()


class Shown(NamedTuple):
    """Cases that passed the gate: rows of the archive, uint8 `(k, C, S, S)`, and how many nearer ones did not."""

    rows: list[int]
    pixels: Tensor
    withheld: int


def release_cases(
    gate: Gate,
    network: LatentSwapAnonymizer,
    archive: Archive,
    ordered: Sequence[int],
    count: int,
    draws: Draws,
    tries: int = TRIES,
    check: OriginalCheck | None = None,
    refuse_text: bool = False,
) -> Shown:
    """The first `count` of these rows that the gate lets pass, anonymised; each is far from every image of its patient.

    Args:
        refuse_text: withhold DICOM images that may have text in their pixels.

    Raises:
        CasesError: fewer than `count` of them pass.
    """
    left, withheld = list(ordered), 0
    shown: list[int] = []
    pixels: list[Tensor] = []
    while len(shown) < count and left:
        rows, left = left[: count - len(shown)], left[count - len(shown) :]
        safe = [row for row in rows if not (refuse_text and _may_hold_text(archive.paths[row]))]
        withheld += len(rows) - len(safe)
        if not safe:
            continue
        names = [f"patient {int(archive.patient[row])}" for row in safe]
        noise = draws.of(names, archive.response[safe])
        known = [_others(archive, row) for row in safe]
        images = to_model_range(archive.pixels(safe))
        for row, image, decision in zip(
            safe, *anonymise_through(gate, network, images, noise, tries, check, known), strict=True
        ):
            if decision.released:
                shown.append(row)
                pixels.append(image)
            else:
                withheld += 1
    if len(shown) < count:
        raise CasesError(
            f"{len(shown)} of {len(ordered)} cases pass the gate, {withheld} are withheld, and {count} are asked for; "
            "nothing was written. Take a smaller -k, or more cases"
        )
    return Shown(shown, torch.stack(pixels), withheld)


def require(ordered: Sequence[int], count: int, what: str) -> None:
    """Raises:
    CasesError: there are fewer candidates than asked for.
    """
    if len(ordered) < count:
        raise CasesError(
            f"{len(ordered)} patients could be shown as cases of {what}, and {count} are asked for (each patient is "
            "shown once, half of them in each list): take a smaller -k, or a manifest with more patients"
        )


def _others(archive: Archive, row: int) -> Tensor:
    """The other images of a row's patient, `(M, C, S, S)` in [-1, 1]."""
    rows = (archive.patient == archive.patient[row]).nonzero().flatten().tolist()
    rest = [other for other in rows if other != row]
    own = archive.pixels([row])
    return to_model_range(archive.pixels(rest) if rest else own[:0])


def _may_hold_text(path: Path) -> bool:
    return kind_of(path) == "dicom" and read_header(path, "").text_risk is not None
