"""P2: the attacker has the anonymizer, releases images of people it knows, and trains on the result.

Two towers, one for released images and one for real ones, are trained on pairs of the training patients and then link
the test patients, whom they have never seen; four attackers differ in their pairs and in what they see. A verifier
trained on untouched images alone (P1) is the weaker attacker: what fools it need not fool one who has adapted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from monai_anon.evaluation.attacks.towers import PAIRINGS, Pairing, similarities, train_towers
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row


def adaptive(subject: Subject, scene: Scene, pairings: Sequence[Pairing] = PAIRINGS) -> list[Row]:
    """P2: rows `adaptive_PAIRING_{auc,eer,tar_at_far_10,tar_at_far_1,rank_1}` of every pairing, and `adaptive_auc`, the
    one farthest from 0.5. Fewer `pairings` are fewer attackers, and a weaker test.
    """
    if scene.silence:
        return [scene.silent(subject, "adaptive_auc", scene.silence)]
    known, asked = scene.releases(subject, "training"), scene.releases(subject, "test")
    checked = scene.released(subject, "validation") if scene.validation else None
    rows: list[Row] = []
    for pairing in pairings:
        towers = train_towers(
            known,
            checked,
            pairing,
            start=scene.judges.verifier,
            seed=scene.seed,
            schedule=scene.schedule,
            device=scene.device,
            title=scene.title(f"{subject.name}: attacker, {pairing}"),
        )
        found = [similarities(towers, one, pairing, scene.device) for one in asked]
        rows += scene.person_rows(subject, f"adaptive_{pairing}", found)
    return [*rows, strongest([row for row in rows if row.metric.endswith("_auc")])]


def strongest(aucs: Sequence[Row]) -> Row:
    """Of the pairings' AUC rows the one farthest from 0.5, on either side, as `adaptive_auc`."""
    found = max(aucs, key=lambda row: abs(row.value - 0.5) if row.value is not None else -1.0)
    if found.value is None:
        return dataclasses.replace(found, metric="adaptive_auc")
    pairing = found.metric.removeprefix("adaptive_").removesuffix("_auc")
    return dataclasses.replace(found, metric="adaptive_auc", note=f"strongest pairing: {pairing}")
