"""The judges: two networks that only measure, trained on real training images, never with the anonymizer.

`Verifier` says whether two images show one person; `MedicalJudge` reads the finding, and its side and severity where
the cohort states them. Both are MONAI ResNets with batch normalisation and a strided stem, an architecture that the
anonymizer does not share, and have their own seed. A judge's own figures on untouched images come before any it gives.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monai_anon.evaluation import galleries, metrics
from monai_anon.evaluation.judge_networks import (
    MedicalJudge,
    Verifier,
    batched,
    severities,
    side_codes,
    sides_of,
)
from monai_anon.evaluation.judge_training import SCHEDULE, JudgeSchedule, train_medical_judge, train_verifier

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort
    from monai_anon.manifest import Manifest

logger = logging.getLogger(__name__)
Array = np.ndarray

LEAST_VERIFIER_AUC = 0.80  # below this the verifier knows too little for any statement about privacy (evaluation.md)


@dataclasses.dataclass
class Judges:
    """Both judges, what they were trained for, and how good they are on images nobody touched.

    Args:
        verifier: who is it.
        medical: what is it.
        classes: names of the findings.
        sides: names of the sides; empty where the training cohort stated none.
        quality: figure -> [value, low, high, n] on the validation part (empty if there is none).
        settings: everything the training depended on, for the cache.
    """

    verifier: Verifier
    medical: MedicalJudge
    classes: list[str]
    sides: list[str]
    quality: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.verifier.parameters()).device

    def to(self, device: str | torch.device) -> Judges:
        """Both networks on ``device``, in evaluation mode."""
        networks: list[Any] = [self.verifier, self.medical]  # torch's stubs know no memory format without a dtype
        for network in networks:
            network.to(device, memory_format=torch.channels_last).eval()
        return self

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 256) -> Array:
        """Embeddings (N, 128) of images (N, C, H, W), uint8 or float in [-1, 1]."""
        self.verifier.eval()
        return batched(self.verifier, images, self.device, batch_size)[0]

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 256) -> tuple[Array, Array, Array]:
        """Probabilities (N, K) of the findings, side probabilities (N, S), severity (N,) of images as in `embed`."""
        self.medical.eval()

        def probabilities(batch: Tensor) -> tuple[Tensor, ...]:
            reading = self.medical(batch)
            return reading.finding.softmax(dim=1), reading.side.softmax(dim=1), reading.severity

        finding, side, severity = batched(probabilities, images, self.device, batch_size)
        return finding, side, severity

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically; names, settings and quality are JSON in its header."""
        path = Path(path)
        tensors = {f"verifier.{k}": v for k, v in self.verifier.state_dict().items()}
        tensors |= {f"medical.{k}": v for k, v in self.medical.state_dict().items()}
        about = {k: getattr(self, k) for k in ("classes", "sides", "quality", "settings")}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, {"judges": json.dumps(about)})
        part.replace(path)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> Judges:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is no judges' file.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(
                f"{path} holds no judges: it is damaged, or no file that `monai-anon judges` wrote"
            ) from error
        if "judges" not in header:
            raise ValueError(f"{path} holds no judges: its header names {sorted(header)}, not 'judges'")
        about = json.loads(header["judges"])
        channels, planes = about["settings"]["channels"], tuple(about["settings"]["schedule"]["planes"])
        verifier = Verifier(channels, planes)
        medical = MedicalJudge(channels, planes, len(about["classes"]), len(about["sides"]))
        for name, network in (("verifier.", verifier), ("medical.", medical)):
            network.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
        return Judges(verifier, medical, **about).to(device)


def judges_for(
    manifest: Manifest,
    size: int,
    channels: int,
    output_dir: str | Path,
    *,
    seed: int = 1000,
    schedule: JudgeSchedule = SCHEDULE,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Judges:
    """Judges for a manifest: read from ``output_dir`` if trained there with the same settings and images, else trained.

    The seed is the judges' own; its default keeps away from those an anonymizer is usually trained with.
    """
    from monai_anon.cohort import Cohort

    settings = {"schedule": dataclasses.asdict(schedule), "seed": seed, "size": size, "channels": channels}
    settings |= {"data": _fingerprint(manifest), "code": _code()}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(output_dir) / f"judges_{key}.safetensors"
    if path.exists():
        logger.info("judges: %s", path)
        return Judges.load(path, device)
    training = Cohort.from_manifest(manifest, "training", size, channels, progress=progress)
    validation = None
    if manifest.parts.get("validation"):
        validation = Cohort.from_manifest(manifest, "validation", size, channels, progress=progress)
    judges = train_judges(training, validation, seed=seed, schedule=schedule, device=device, progress=progress)
    judges.settings = settings
    judges.save(path)
    return judges


def train_judges(
    training: Cohort,
    validation: Cohort | None = None,
    *,
    seed: int = 1000,
    schedule: JudgeSchedule = SCHEDULE,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Judges:
    """Both judges, and their quality on the validation part if there is one."""
    options: dict[str, Any] = {"schedule": schedule, "device": device, "progress": progress}
    verifier = train_verifier(training, validation, seed=seed, **options)
    medical = train_medical_judge(training, validation, seed=seed + 1, **options)
    settings = {"schedule": dataclasses.asdict(schedule), "seed": seed, "channels": training.images.shape[1]}
    judges = Judges(verifier, medical, list(training.classes), sides_of(training), {}, settings).to(device)
    if validation is not None:
        judges.quality = {name: list(interval) for name, interval in quality(judges, validation).items()}
    return judges


def _code() -> str:
    """Changes when the judges' networks or their training do."""
    home = Path(__file__).parent
    files = [home / "judge_networks.py", home / "judge_training.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _fingerprint(manifest: Manifest) -> str:
    """Changes when an entry or a file's size does; reads no image."""
    entries = [
        (part, sorted((key, str(value)) for key, value in entry.items()), manifest.image_path(entry).stat().st_size)
        for part in ("training", "validation")
        for entry in manifest.parts.get(part, [])
    ]
    return hashlib.sha256(json.dumps([manifest.classes, entries]).encode()).hexdigest()


def quality(judges: Judges, cohort: Cohort, *, n_bootstrap: int = 1000, seed: int = 0) -> dict[str, metrics.Interval]:
    """The judges' own figures on untouched images, with patient-clustered intervals: of patients whom they have not
    seen, or in a closed set by other images only.

    Returns:
        ``verification_auc``, ``rank_1`` (gallery of one image per patient), ``rank_1_chance``, ``finding_auc``,
        ``finding_accuracy``, and where the cohort states them ``side_accuracy`` and ``severity_correlation``, both
        among images with the finding. Figures that the cohort cannot show are left out.
    """
    patients, finding = cohort.patient.numpy(), cohort.finding.numpy()
    everyone = np.arange(len(patients))

    def interval(statistic: metrics.Statistic) -> metrics.Interval:
        return metrics.patient_bootstrap(statistic, patients, n_bootstrap, seed)

    figures = {}
    vectors = judges.embed(cohort.images)
    similarity = vectors @ vectors.T
    first, second, same = metrics.claim_pairs(patients)
    if same.any() and not same.all():
        auc = metrics.pair_auc(similarity[first, second], first, second, same, patients)
        figures["verification_auc"] = interval(auc)
        hits, gallery = galleries.linkage_hits(similarity, patients, patients, everyone, seed=seed)
        chance = galleries.rank_k_chance(gallery)
        figures["rank_1"] = interval(lambda weights: metrics.weighted_mean(hits, weights))
        figures["rank_1_chance"] = metrics.Interval(chance, chance, chance, gallery)
    probabilities, side_scores, severity = judges.read(cohort.images)
    right = probabilities.argmax(axis=1) == finding
    if len(np.unique(finding)) > 1:
        figures["finding_auc"] = interval(metrics.finding_auc(probabilities, finding))
    figures["finding_accuracy"] = interval(lambda weights: metrics.weighted_mean(right, weights))
    figures |= _side_and_severity(judges, cohort, side_scores, severity, interval)
    return figures


def _side_and_severity(
    judges: Judges,
    cohort: Cohort,
    side_scores: Array,
    severity: Array,
    interval: Callable[[metrics.Statistic], metrics.Interval],
) -> dict[str, metrics.Interval]:
    figures = {}
    side, true_severity = side_codes(cohort, judges.sides), severities(cohort)
    if (shown := side >= 0).any():
        right = np.where(shown, side_scores.argmax(axis=1) == side, np.nan)
        figures["side_accuracy"] = interval(lambda w: metrics.weighted_mean(right, w))._replace(n=int(shown.sum()))
    if (present := true_severity > 0).sum() > 1:
        figures["severity_correlation"] = interval(
            lambda w: metrics.severity_correlation(severity[present], true_severity[present], w[present])
        )._replace(n=int(present.sum()))
    return figures


def verdict(verification: metrics.Interval | None) -> str:
    """Empty where the verifier is good enough to speak of privacy, else the sentence to print in place of a figure."""
    if verification is None:
        return "no verdict: no patient has two images"
    if verification.value < LEAST_VERIFIER_AUC:
        return f"no verdict: the verifier's own AUC is {verification.value:.3f}, below {LEAST_VERIFIER_AUC:.2f}"
    return ""
