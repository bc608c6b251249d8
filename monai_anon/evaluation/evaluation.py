"""Tables 2 and 3 of one trained model on one manifest: what `evaluate.json` and `monai-anon evaluate` run."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.cohort import Cohort
from monai_anon.datasets import file_digest
from monai_anon.engines import StepTrainer
from monai_anon.evaluation.attacks import adaptive_attack
from monai_anon.evaluation.judges import SCHEDULE, Judges, JudgeSchedule, judges_for
from monai_anon.evaluation.protocol import IdentitySource, Settings, evaluate_anonymization, evaluate_disentanglement
from monai_anon.evaluation.tables import JUDGES, Row, report, stamp, write_tables
from monai_anon.identities import AveragedIdentities, Gallery, IdentityPairs, SampledIdentities, build_gallery
from monai_anon.identity_vae_step import IdentityVAEStep
from monai_anon.manifest import load_manifest
from monai_anon.networks import Disentangler, IdentityVAE
from monai_anon.optimisation import Optimisation

logger = logging.getLogger("monai_anon")


class Evaluation:
    """Measures a trained anonymizer on the test part of a manifest.

    Args:
        model: networks with the weights of `model_file` still to be loaded.
        model_file: tensors only, as stage 2 writes it.
        manifest: path of the manifest.
        output_dir: gets `rows.jsonl`, `report.md` and one CSV a table; `judges_dir` keeps the judges for the next time.
        settings: threshold of the paper, draws of the bootstrap, seed.
        schedule: budget of the judges.
        plain_vae_epochs: of the VAE without privacy loss, which is fitted here; as many as its private sibling's.
    """

    def __init__(
        self,
        model: LatentSwapAnonymizer,
        model_file: str,
        manifest: str,
        output_dir: str,
        judges_dir: str,
        settings: Settings,
        schedule: JudgeSchedule = SCHEDULE,
        plain_vae_epochs: int = 40,
        device: str | torch.device = "cpu",
    ):
        self.model, self.model_file, self.manifest = model, Path(model_file), load_manifest(manifest)
        self.output_dir, self.judges_dir, self.settings = Path(output_dir), Path(judges_dir), settings
        self.schedule, self.plain_vae_epochs, self.device = schedule, plain_vae_epochs, torch.device(device)
        encoder = model.disentangler.encoder
        self.size, self.channels = int(encoder.size), int(encoder.channels)

    def train_judges(self) -> Judges:
        """The judges of this manifest: read from `judges_dir` when there, else trained on its training part."""
        return judges_for(
            self.manifest, self.size, self.channels, self.judges_dir, schedule=self.schedule, device=self.device
        )

    def cohort(self, part: str) -> Cohort:
        return Cohort.from_manifest(self.manifest, part, self.size, self.channels, cache_dir=self.judges_dir / "cache")

    def run(self) -> list[Row]:
        """Measure, write the files, print the tables, return the rows.

        Raises:
            FileNotFoundError: there is no model; names the commands that make one.
        """
        load_model(self.model, self.model_file)
        disentangler = self.model.disentangler.eval().to(self.device)
        judges = self.train_judges()
        training, test = self.cohort("training"), self.cohort("test")
        gallery = build_gallery(disentangler, training)
        logger.info("measuring %d test images of %d patients", len(test), test.num_patients)
        rows = evaluate_disentanglement(disentangler, test, judges, self.settings)
        sources = self.sources(disentangler, gallery)
        rows += evaluate_anonymization(disentangler, sources, training, test, judges, self.settings)
        if "adaptive" in self.settings.attacks:
            silence = next((row.note for row in rows if row.method == JUDGES and row.note), "")
            rows += self.adaptive_rows("VAE with privacy loss", judges, test, silence)
        rows = stamp(rows, weights=file_digest(str(self.model_file)), revision=revision())
        for path in write_tables(rows, self.output_dir):
            logger.info("wrote %s", path)
        print(report(rows))
        return rows

    def adaptive_rows(self, method: str, judges: Judges, test: Cohort, silence: str) -> list[Row]:
        """P2 on the anonymizer as it is released: the attacker starts from the verifier, and says nothing where that
        one knows too little (`silence` tells why).
        """
        if silence:
            return [Row(method, test.name, "adaptive_auc", None, seed=self.settings.seed, note=silence)]
        size = int(self.model.noise_size)
        model = self.model.eval().to(self.device)

        def anonymise(images: Tensor, generator: torch.Generator) -> Tensor:
            noise = torch.randn(len(images), size, generator=generator)
            return model(images.to(self.device), noise.to(self.device))

        return adaptive_attack(
            method,
            anonymise,
            self.cohort("training"),
            self.cohort("validation") if self.manifest.parts.get("validation") else None,
            test,
            start=judges.verifier,
            seed=self.settings.seed,
            n_bootstrap=self.settings.n_bootstrap,
            schedule=dataclasses.replace(self.schedule, verifier_steps=self.settings.attack_steps),
            device=self.device,
        )

    def sources(self, disentangler: Disentangler, gallery: Gallery) -> dict[str, IdentitySource]:
        """Our rows of Table 3. The plain VAE is fitted here, on the same latents."""
        unit = bool(disentangler.encoder.unit_identity)
        plain = plain_vae(self.model.identity_vae, gallery, self.settings.seed, self.plain_vae_epochs)
        sources: dict[str, IdentitySource] = {
            "VAE with privacy loss": SampledIdentities(self.model.identity_vae),
            "VAE (plain)": SampledIdentities(plain),
        }
        patients = len(gallery.patient.unique())
        for k in (6, 12):
            if k < patients:
                sources[f"averaging {k} identities"] = AveragedIdentities(gallery, k, unit)
        return sources | {"averaging all identities": AveragedIdentities(gallery, None, unit)}


def load_model(model: nn.Module, path: Path) -> None:
    """Weights into a `LatentSwapAnonymizer`; clear errors for a missing or an unfitting file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. Make it with: python -m monai.bundle run training --config_file "
            "bundles/chest/configs/train.json, then the same with train_identity_vae.json"
        )
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the configured networks (image_size, latent_sizes, widths?): {error}"
        ) from error


def plain_vae(like: IdentityVAE, gallery: Gallery, seed: int, epochs: int) -> IdentityVAE:
    """A VAE of the same shape without the privacy loss: the comparison row of Table 3."""
    torch.manual_seed(seed)
    vae = IdentityVAE(like.identity_size, like.latent_size, unit_identity=like.unit_identity)
    step = IdentityVAEStep(vae, {"reconstruction": 1.0, "kl": 0.002}, Optimisation(lr=1e-3))
    StepTrainer("cpu", epochs, IdentityPairs(gallery, seed=seed), step, seed=seed).run()
    smoothed = step.updater.smoothed
    assert isinstance(smoothed, IdentityVAE)
    return smoothed


def revision() -> str:
    """The source's git revision, `+` for uncommitted changes, `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def bundle_evaluation(bundle: Path, overrides: dict[str, object]) -> Evaluation:
    """The `evaluation` of a bundle's `configs/evaluate.json` with some entries replaced (None leaves one as it is).

    Raises:
        ValueError: the bundle has no such config, or it has no entry of that name.
    """
    from monai.bundle import ConfigParser

    config = bundle / "configs" / "evaluate.json"
    if not config.is_file():
        raise ValueError(f"{config} is missing; --bundle takes a bundle's folder, such as bundles/chest")
    content = ConfigParser.load_config_file(config)
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = sorted(set(given) - set(content))
    if unknown:
        raise ValueError(f"{config} has no {unknown}; it has {sorted(content)}")
    parser = ConfigParser(content | {"bundle_root": str(bundle)} | given)
    evaluation = parser.get_parsed_content("evaluation")
    assert isinstance(evaluation, Evaluation)
    return evaluation
