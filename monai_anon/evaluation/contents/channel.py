"""What the channel says and lets pass: the bound of the release that is measured, and what codes of every size keep.

The curve releases the test part under code after code: the same networks, the same draws of identity and residual, so
that only the code differs. It is the code as it is, without randomised response, whatever policy the subject has.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import LEVELS, Channel
from monai_anon.evaluation.findings import Truth, finding_figures
from monai_anon.evaluation.latents import device_of
from monai_anon.evaluation.subjects import Subject, channel_of, subject_of
from monai_anon.evaluation.tables import KEPT

if TYPE_CHECKING:
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.tables import Row

NO_BOUND = {
    "latents": "no bound: with the policy latents the medical and the residual latent pass",
    "residual": "no bound: with the policy residual the medical latent passes; the residual is drawn",
}


def channel(subject: Subject, scene: Scene) -> list[Row]:
    """The statement of the subject's policy, and what is kept under codes of all `LEVELS`.

    Returns:
        `channel_bits`, `channel_patients` and, with a randomised response, `channel_epsilon`; for a policy without a
        bound `channel_bits` alone, without a value. Then, where there are prototypes, `code_K_bits`, `code_K_patients`
        and `code_K_FIGURE` for every `KEPT` of which the cohort states the truth. No rows for anonymizers without a
        channel.
    """
    found = channel_of(subject)
    if found is None:
        return []
    rows = statement_rows(subject, scene, found)
    if found.fitted():
        rows += [row for prototypes in LEVELS for row in code_rows(subject, scene, found, prototypes)]
    return rows


def statement_rows(subject: Subject, scene: Scene, found: Channel) -> list[Row]:
    """The bound of what is measured."""
    said = found.statement()
    if said is None:
        return [scene.silent(subject, "channel_bits", NO_BOUND[found.policy])]
    figures = {"bits": said.bits, "patients": said.patients, "epsilon": said.epsilon}
    return [scene.plain(subject, f"channel_{name}", value) for name, value in figures.items() if value is not None]


def code_rows(subject: Subject, scene: Scene, found: Channel, prototypes: int) -> list[Row]:
    """One point of the curve: bits, patients, and what the medical judge still reads."""
    said, name = found.codebook.statement(LEVELS.index(prototypes)), f"code_{prototypes}"
    read = scene.judges.read(released_under(subject, scene, prototypes))
    figures = finding_figures(read, Truth.of(scene.test, scene.judges.sides))
    return [
        scene.plain(subject, f"{name}_bits", said.bits),
        scene.plain(subject, f"{name}_patients", said.patients),
        *(
            scene.row(subject, f"{name}_{kept}", figures[kept].statistic, n=figures[kept].n)
            for kept in KEPT
            if kept in figures
        ),
    ]


def released_under(subject: Subject, scene: Scene, prototypes: int) -> Tensor:
    """The test part, uint8 (N, C, S, S), as the subject's networks release it under a code.

    The draws are those of the subject's own first release: under its own code, the same pixels.
    """
    assert subject.networks is not None
    module = with_policy(subject.networks, "code", prototypes)
    coded = subject_of(subject.name, module, device=device_of(subject.networks.disentangler))
    images = scene.released(coded, "test").images
    scene.forget(coded)
    return images


def with_policy(networks: LatentSwapAnonymizer, policy: str, prototypes: int | None = None) -> LatentSwapAnonymizer:
    """The same networks behind a copy of their channel, without randomised response; `prototypes` None leaves K."""
    passing = copy.deepcopy(networks.channel)
    passing.policy, passing.epsilon = policy, 0.0
    if prototypes is not None:
        passing.level = LEVELS.index(prototypes)
    return LatentSwapAnonymizer(networks.disentangler, networks.identity_vae, passing)
