"""What the MONAI Label app answers, without MONAI Label: `label_server` puts it behind that server's addresses.

Whoever may ask is told what a recipient may be told: an image that the gate let pass, or that there is none, and never
why. Reasons, names and paths stay here.

**Asking again tells no more.** All draws hang on the key and on the image's pixels at the model's size: the same
question has the same answer. So m different questions about one image (an anonymised copy, a counterfactual of 2 steps,
of 3, ...) are answered by functions of its one code and of m bits, given or withheld: log2 K + m bits at most, however
often each is asked. And a patient of the archive with one image is shown in all retrievals by one code and one draw:
log2(K + 1) bits, whatever is asked for; with n images, n times that (`explaining.cases`).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.bundles import InferenceSettings
from monai_anon.channel import round_up
from monai_anon.copies import WithheldError, copy_bytes
from monai_anon.dicom import DicomSettings
from monai_anon.explaining.cases import (
    Archive,
    CasesError,
    Shown,
    encode_archive,
    read_cohorts,
    release_cases,
    require,
    retrieve,
)
from monai_anon.explaining.counterfactuals import MOST_STEPS, Draws, other_finding, passing, responses, series_through
from monai_anon.explaining.explanation import as_image, what_passes
from monai_anon.explaining.pictures import png
from monai_anon.explaining.preparing import prepared, read_query, require_gate
from monai_anon.gate import Gate
from monai_anon.gated_release import Noise, OriginalCheck, anonymise_through
from monai_anon.integrations.label_requests import RequestError, truth, whole
from monai_anon.jobs import COPY_SUFFIXES
from monai_anon.keys import Key, read_key
from monai_anon.manifest import load_manifest
from monai_anon.originals import Original, quiet_decoders
from monai_anon.readers import to_model_range

logger = logging.getLogger("monai_anon")

TASKS = {
    "anonymize": "A copy with the finding kept and a synthetic person; saved under the tag anonymised if asked to.",
    "counterfactual": "The finding drawn for a synthetic person, and the same with another finding.",
    "retrieve": "Cases of the archive with the same finding and with another one, by pseudonyms.",
}
MOST_CASES, MOST_FINDINGS = 50, 1000


class Withheld(RequestError):
    """The gate let nothing pass; why is for the site only."""

    def __init__(self) -> None:
        super().__init__("withheld: the privacy gate let no image pass", 422)


# ---- Settings ----


@dataclass(frozen=True)
class Settings:
    """The app's settings, `--conf NAME VALUE` each.

    Args:
        bundle: folder of the bundle whose anonymizer is used.
        model: its weights; the bundle's own without.
        site: folder of the gate, as `monai-anon calibrate` makes it; `judges`, file of judges in place of its own.
        no_gate: say that there is no gate: nothing is then saved under `TAG`.
        cases: manifest of the archive for `retrieve`.
        key: file of the secret that draws and pseudonyms hang on; without, a new one each start.
        serve_originals: list the folder's images and hand them out, as a viewer needs.
        origins: of web pages that may ask, with commas between them.
        to_gray: read colour as gray.
    """

    bundle: str = "bundles/chest"
    model: str | None = None
    site: str | None = None
    judges: str | None = None
    no_gate: bool = False
    cases: str | None = None
    key: str | None = None
    serve_originals: bool = False
    origins: str = ""
    to_gray: bool = False
    device: str | None = None

    @staticmethod
    def read(given: Mapping[str, str]) -> Settings:
        """Raises:
        ValueError: an unknown setting, a switch that is neither true nor false, or neither `site` nor `no_gate`.
        """
        known = {field.name: field.type for field in fields(Settings)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"--conf {name}: no such setting; {hint}")
            values[name] = _switch(name, value) if known[name] == "bool" else value
        settings = Settings(**values)
        if settings.site is None and not settings.no_gate:
            raise ValueError(
                "no gate: give --conf site SITE, the folder that `monai-anon calibrate SITE` makes, or --conf "
                "no_gate true, and then no image is compared with any real person and nothing is saved as anonymised"
            )
        require_gate(_path(settings.site), _path(settings.judges), settings.no_gate)
        return settings


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def _switch(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(f"--conf {name} is {value!r}; it must be true or false")
    return value.lower() == "true"


# ---- Answers ----


class Answer(NamedTuple):
    """What a task gives: a file's bytes and the ending of its name, where it is an image; numbers in words."""

    content: bytes | None
    suffix: str
    params: dict[str, Any]


class Tasks:
    """The three tasks; one image at a time, however many ask.

    Args:
        network, gate, said: as `explaining.preparing.prepared` gives them.
        archive: cases for `retrieve`, and `names`, of each its path below the manifest's folder.
        classes: names of the archive's findings.
    """

    def __init__(
        self,
        network: LatentSwapAnonymizer,
        gate: Gate,
        said: InferenceSettings,
        key: Key | None = None,
        archive: Archive | None = None,
        names: list[str] | None = None,
        classes: list[str] | None = None,
        to_gray: bool = False,
    ) -> None:
        self.network, self.gate, self._said, self._to_gray = network, gate, said, to_gray
        self.archive, self._names, self._classes = archive, names or [], classes or []
        self.passes = what_passes(network, gate)
        if network.channel.epsilon:
            raise ValueError(
                "a randomised response would be drawn anew, and spent, with each question; epsilon must be off"
            )
        self._check = OriginalCheck(self.passes.check)
        self._key = key or Key.random()
        self._draws = Draws(self._key.seed(), int(network.noise_size))
        self._busy = threading.Lock()
        self._patients = _patients_by_pixels(archive) if archive is not None else {}

    @staticmethod
    def load(settings: Settings) -> Tasks:
        """Raises:
        ValueError: what cannot be read, does not fit the model, or would withhold everything.
        """
        model, site, judges = (_path(one) for one in (settings.model, settings.site, settings.judges))
        network, gate, inference = prepared(Path(settings.bundle), model, (), settings.device, {}, site, judges)
        key = None if settings.key is None else read_key(settings.key)
        archive = names = classes = None
        if settings.cases is not None:
            manifest = load_manifest(settings.cases)
            with quiet_decoders():
                cohorts = read_cohorts(manifest, "all", inference.image_size, inference.channels, None)
                archive, _ = encode_archive(network, manifest, cohorts)
            names = [Path(entry["image"]).as_posix() for cohort in cohorts for entry in cohort.entries]
            classes = manifest.classes
        return Tasks(network, gate, inference, key, archive, names, classes, settings.to_gray)

    def answer(self, task: str, path: Path, params: Mapping[str, Any]) -> Answer:
        """What a task makes of an image file.

        Raises:
            RequestError: an unknown task, parameters out of range, a file that is no image the model can use, too few
                cases; `Withheld`, which is one, where the gate let nothing pass.
        """
        known = {"anonymize": self._anonymize, "counterfactual": self._counterfactual, "retrieve": self._retrieve}
        if task not in known:
            raise RequestError(f"no such task; there are {', '.join(known)}", 404)
        with self._busy, quiet_decoders(), torch.inference_mode():
            original = self.read(path)
            try:
                return known[task](original, params)
            except WithheldError as error:
                logger.info("%s: an image is withheld (%s)", task, error)
                raise Withheld from error

    def read(self, path: Path) -> Original:
        """An image as the model takes it.

        Raises:
            RequestError: it cannot be used, and why; without its name.
        """
        try:
            return read_query(path, self._said, self._to_gray, self.passes.bits is None)
        except ValueError as error:
            raise RequestError(str(error).replace("the query", "the image")) from error
        except MemoryError as error:
            raise RequestError("the image cannot be used: it needs more memory than there is") from error

    def _noise(self, original: Original) -> Noise:
        return self._draws.of([f"image {_digest(original.pixels)}"], responses(self.network, 1))

    def _told(self) -> dict[str, Any]:
        said = self.passes
        return {"released": True, "gate": said.gate, "policy": said.policy, "bits": said.bits and round_up(said.bits)}

    def _anonymize(self, original: Original, params: Mapping[str, Any]) -> Answer:
        image = to_model_range(original.pixels)[None]
        batch = anonymise_through(self.gate, self.network, image, self._noise(original), check=self._check)
        decision = batch.decisions[0]
        if not decision.released:
            raise WithheldError(", ".join(reason.value for reason in decision.reasons))
        dicom = DicomSettings(self._key, bits=self.passes.bits, policy=self.passes.policy, gated=self.passes.gate)
        content = copy_bytes(to_model_range(batch.pixels[0]), original, dicom=dicom)
        return Answer(content, COPY_SUFFIXES[original.kind], {**self._told(), **decision.shareable()})

    def _counterfactual(self, original: Original, params: Mapping[str, Any]) -> Answer:
        steps = whole(params, "steps", 2, 2, MOST_STEPS)
        to = whole(params, "to", 0, 0, MOST_FINDINGS) if "to" in params else None
        image, noise, check = to_model_range(original.pixels)[None], self._noise(original), self._check
        try:
            series = series_through(self.gate, self.network, image, noise, to, steps, check=check)
        except WithheldError:
            raise
        except ValueError as error:  # a finding that there is not
            raise RequestError(str(error).replace("--", "")) from error
        read = [_rounded(row) for row in series.probabilities]
        ends = {"finding": int(series.probabilities[0].argmax()), "to": int(series.probabilities[-1].argmax())}
        return Answer(png(_side_by_side(series.pixels)), ".png", {**self._told(), **ends, "probabilities": read})

    def _retrieve(self, original: Original, params: Mapping[str, Any]) -> Answer:
        count, pictures = whole(params, "k", 5, 1, MOST_CASES), truth(params, "images")
        if self.archive is None:
            raise RequestError("this server has no archive of cases; --conf cases MANIFEST gives it one", 404)
        device = next(self.network.parameters()).device
        z = self.network.disentangler.encode(to_model_range(original.pixels)[None].to(device))
        response = responses(self.network, 1)
        passed = passing(self.network, z, response)
        read, medical = self.gate.findings(passed)[0], passed.cpu()
        other = other_finding(self.network, z, passed, response).cpu()
        own = torch.tensor(sorted(self._patients.get(_digest(original.pixels), ())), dtype=torch.long)
        chance = np.random.default_rng(list(self._key.digest("order")))
        rows = self.archive.without(own)
        lists = retrieve(self.archive, medical, other, int(read.argmax()), chance, rows)
        cases, withheld = [], 0
        for kind, ordered, end in zip(("similar", "other finding"), lists, (medical, other), strict=True):
            shown = self._shown(ordered, count)
            withheld += shown.withheld
            for row, pixels in zip(shown.rows, shown.pixels, strict=True):
                case: dict[str, Any] = {"id": self._key.name("file", self._names[row]), "list": kind}
                case["finding"] = self._classes[int(self.archive.probabilities[row].argmax())]
                case["distance"] = round(float((self.archive.medical[row] - end[0]).square().sum().sqrt()), 3)
                if pictures:
                    case["image"] = base64.b64encode(png(as_image(pixels))).decode("ascii")
                cases.append(case)
        told = {"finding": self._classes[int(read.argmax())], "probabilities": _rounded(read)}
        return Answer(None, "", {**self._told(), **told, "cases": cases, "withheld": withheld})

    def _shown(self, ordered: list[int], count: int) -> Shown:
        assert self.archive is not None
        text = self.passes.bits is None
        try:
            require(ordered, count, "")
            return release_cases(
                self.gate, self.network, self.archive, ordered, count, self._draws, check=self._check, refuse_text=text
            )
        except CasesError as error:
            raise RequestError(
                f"there are not {count} cases of each kind that may be shown; take a smaller k", 422
            ) from error


# ---- Parts ----


def _digest(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.numpy().tobytes()).hexdigest()


def _patients_by_pixels(archive: Archive) -> dict[str, set[int]]:
    """Codes of the patients who have an image with these pixels."""
    found: dict[str, set[int]] = {}
    for row, patient in enumerate(archive.patient.tolist()):
        found.setdefault(_digest(archive.pixels([row])[0]), set()).add(patient)
    return found


def _rounded(probabilities: Tensor) -> list[float]:
    return [round(float(value), 3) for value in probabilities]


def _side_by_side(pixels: Tensor) -> np.ndarray:
    """uint8 `(M, C, S, S)` as one picture, from left to right."""
    return as_image(torch.cat(list(pixels), dim=2))
