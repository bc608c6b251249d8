"""P8: what each latent knows. What a latent that passes knows of the patient, every release passes on.

The paper's releases pass on the medical and the residual latent; what does not pass is the channel's matter.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_training import PatientPairs, fit, seeded, verification_score
from monai_anon.evaluation.latents import real_latents
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject, channel_of
from monai_anon.evaluation.tables import Row
from monai_anon.networks import Latents

Array = np.ndarray
HIDDEN, OUTPUT = 128, 64
PASSING = {"latents": ("medical", "residual"), "residual": ("medical",), "code": ()}
"""The latents of an original from which its release is decoded, by policy."""
NOT_PASSED = "does not pass"
"""What the note of a latent's rows begins with where a release has nothing of it."""


def probes(subject: Subject, scene: Scene) -> list[Row]:
    """P8: for identity, medical and residual latent, how well a learner tells patients and findings from it alone.

    Patients: a small network trained on pairs of the training patients (InfoNCE), then the AUC of test pairs. Findings:
    a small classifier.

    Returns:
        `probe_LATENT_patient_auc` and `probe_LATENT_finding_auc`; none for anonymizers without the paper's latents. The
        note says where a latent does not pass.
    """
    if subject.networks is None:
        return []
    parts = {
        name: real_latents(subject, scene, name) for name in ("training", "validation", "test") if scene.part(name)
    }
    rows = []
    for name in Latents._fields:
        latents = {part: getattr(found, name).numpy() for part, found in parts.items()}
        if scene.silence:
            rows.append(scene.silent(subject, f"probe_{name}_patient_auc", scene.silence))
        else:
            rows.append(patient_row(subject, scene, name, latents))
        rows.append(finding_row(subject, scene, name, latents))
        if note := not_passed(subject, name):
            rows[-2:] = [dataclasses.replace(row, note=row.note or note) for row in rows[-2:]]
    return rows


def not_passed(subject: Subject, latent: str) -> str:
    """Why a release has nothing of the medical or the residual latent; empty where it has, and for the identity."""
    channel = channel_of(subject)
    if channel is None or latent == "identity" or latent in PASSING[channel.policy]:
        return ""
    return f"{NOT_PASSED} with the policy {channel.policy}"


def patient_row(subject: Subject, scene: Scene, name: str, latents: dict[str, Array]) -> Row:
    """How well test patients are told apart from one latent."""
    scaler = StandardScaler().fit(latents["training"])
    scaled = {part: torch.from_numpy(scaler.transform(z).astype(np.float32)) for part, z in latents.items()}
    pairs = PatientPairs(scene.training, scene.schedule.batch_size // 2, scene.seed)
    width = scaled["training"].shape[1]
    probe: nn.Module = seeded(lambda: _probe(width), scene.seed, "cpu")

    def embedded(z: Tensor) -> Tensor:
        return F.normalize(probe(z), dim=1)

    def loss() -> Tensor:
        one, other = (embedded(scaled["training"][torch.from_numpy(index)]) for index in pairs.draw())
        similarity = one @ other.T / scene.schedule.temperature
        right = torch.arange(pairs.count)
        return (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2

    def score() -> float:
        if scene.validation is None:
            return float("nan")
        found = embedded(scaled["validation"]).numpy()
        return verification_score(found @ found.T, scene.validation)

    steps = scene.schedule.verifier_steps
    fit(probe, loss, score, steps, scene.schedule, scene.title(f"{subject.name}: probe of the {name} latent"))
    with torch.no_grad():
        found = embedded(scaled["test"]).numpy()
    first, second, same = metrics.claim_pairs(scene.patients)
    auc = metrics.pair_auc((found @ found.T)[first, second], first, second, same, scene.patients)
    return scene.row(subject, f"probe_{name}_patient_auc", auc)


def finding_row(subject: Subject, scene: Scene, name: str, latents: dict[str, Array]) -> Row:
    """How well the finding is told from one latent."""
    metric = f"probe_{name}_finding_auc"
    finding, true = scene.training.finding.numpy(), scene.test.finding.numpy()
    if len(np.unique(finding)) < 2 or len(np.unique(true)) < 2:
        return scene.silent(subject, metric, "not measured: only one finding occurs")
    learner = make_pipeline(
        StandardScaler(), MLPClassifier((64,), random_state=scene.seed, max_iter=500, early_stopping=True)
    )
    learner.fit(latents["training"], finding)
    probabilities = np.zeros((len(true), len(scene.test.classes)))
    probabilities[:, learner.classes_] = learner.predict_proba(latents["test"])
    return scene.row(subject, metric, metrics.finding_auc(probabilities, true))


def _probe(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, OUTPUT)
    )
