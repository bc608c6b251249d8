"""Single images released with a TorchScript file of `monai-anon export`: what an application of a site is made of.

Nothing but the file is needed of the bundle: networks, channel, bound and the digest by which a site's gallery knows
the model are in it. The gate is on unless the site says otherwise, and without what it needs everything is withheld.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import round_up
from monai_anon.copies import WithheldError, copy_bytes
from monai_anon.dicom import HEADERS, DicomSettings
from monai_anon.drawing import Drawing
from monai_anon.export import ABOUT
from monai_anon.gate import Gate, gate_of
from monai_anon.gated_release import bits, default_check
from monai_anon.jobs import Job, Naming
from monai_anon.keys import Key, read_key
from monai_anon.originals import Original, read_original
from monai_anon.pseudonyms import digest_of
from monai_anon.readers import ReadError, to_model_range, to_uint8
from monai_anon.site import JUDGES as SITE_JUDGES
from monai_anon.statements import append_statements
from monai_anon.whole_files import write_bytes

logger = logging.getLogger("monai_anon")
SITE, JUDGES, GATE, KEY, HEADER = (f"MONAI_ANON_{name}" for name in ("SITE", "JUDGES", "GATE", "KEY", "HEADER"))
_LEVEL = 1
"""By how many of 255 gray levels two programs' images of one noise may differ."""


class DeployError(ValueError):
    """Settings or a model file that nothing can be released with; says what would be right."""


@dataclass(frozen=True)
class SiteSettings:
    """How a site releases.

    Args:
        site: folder that `monai-anon calibrate` has made for the gate; None releases without a gate.
        judges: file of the gate's judges; None for the site's.
        key: file of the key of UIDs, names, draws and patients' identities; None for a new one that nobody keeps, and
            an identity an image.
        header: what passes of an original's header, one of `monai_anon.dicom.HEADERS`.
    """

    site: Path | None
    judges: Path | None = None
    key: Path | None = None
    header: str = "groups"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> SiteSettings:
        """As environment variables say it; an empty one counts as not set.

        Raises:
            DeployError: no gate and no word that there shall be none, or a value that is unknown.
        """
        found = {name: value for name in (SITE, JUDGES, GATE, KEY, HEADER) if (value := environment.get(name))}
        gate = found.get(GATE, "on")
        if gate not in ("on", "off"):
            raise DeployError(f"{GATE} is {gate!r}; it must be on or off")
        if gate == "on" and SITE not in found:
            raise DeployError(
                f"{SITE} is not set: it names the folder that `monai-anon calibrate` makes, which the privacy "
                f"gate needs. {GATE}=off releases images that no gate has seen"
            )
        if gate == "off" and (also := [name for name in (SITE, JUDGES) if name in found]):
            raise DeployError(f"{GATE} is off, and {also[0]} is set, which only the gate reads; leave one of them out")
        header = found.get(HEADER, "groups")
        if header not in HEADERS:
            raise DeployError(f"{HEADER} is {header!r}; it must be one of {', '.join(HEADERS)}")
        site, judges, key = (Path(found[name]) if name in found else None for name in (SITE, JUDGES, KEY))
        return cls(site, judges, key, header)


class Script(NamedTuple):
    """What a TorchScript file holds: its network, built anew with its tensors, and what it says of itself."""

    network: LatentSwapAnonymizer
    about: Mapping[str, Any]
    size: int
    channels: int


def script_file(path: str | Path) -> Path:
    """A TorchScript file, or the only one below a folder, which is what a MONAI Application Package is given.

    Raises:
        DeployError: there is none, or several.
    """
    path = Path(path)
    found = sorted(path.rglob("*.ts")) if path.is_dir() else [path]
    if len(found) != 1 or not found[0].is_file():
        raise DeployError(
            f"{path} has {len(found) if path.is_dir() else 'no'} model; one .ts of monai-anon export is needed"
        )
    return found[0]


def open_script(path: str | Path) -> Script:
    """Read a file that `monai-anon export` wrote. Its config holds expressions that are run: open files that you trust.

    Raises:
        DeployError: no such file, or another one.
    """
    from monai.bundle import ConfigParser

    texts = {"inference.json": "", ABOUT: ""}
    try:
        scripted = torch.jit.load(str(path), map_location="cpu", _extra_files=texts)
        config, about = (json.loads(text) for text in texts.values())
    except (RuntimeError, ValueError, OSError) as error:
        raise DeployError(f"{path} is no TorchScript file of monai-anon export ({type(error).__name__})") from error
    network = ConfigParser(config | {"bundle_root": "."}).get_parsed_content("network_def")
    network.load_state_dict(scripted.state_dict())
    return Script(network.eval().requires_grad_(False), about, int(config["image_size"]), int(config["channels"]))


class Item(NamedTuple):
    """An image to release: its path below the input folder, on which its draw hangs, and what was read."""

    name: str
    original: Original

    def picture(self) -> np.ndarray:
        """What the bundle's preprocessing takes, uint8 `(S, S)`, columns first as MONAI's readers give it."""
        return self.original.pixels[0].numpy().T.copy()


class Releaser:
    """Reads, checks and writes single DICOM images as `monai-anon anonymize` does, with the same draws and names of the
    same key.

    Raises:
        DeployError: the output folder lies in the input folder, or a model with colour.
        KeyFileError: a key that cannot be used.
    """

    def __init__(self, script: Script, settings: SiteSettings, source: Path, output: Path):
        if script.channels != 1:
            raise DeployError(f"the model takes images of {script.channels} channels; radiographs have 1")
        if output.resolve().is_relative_to(source.resolve()):
            raise DeployError(f"{output} lies inside the input folder {source}; choose a place outside")
        self.script, self.settings, self.source, self.output = script, settings, source, output
        self._keyed = settings.key is not None
        self._key = Key.random() if settings.key is None else read_key(settings.key)
        self._naming, self.gate = Naming(self._key), self._gate()
        self.statement = self._statement()
        self._dicom = DicomSettings(
            self._key, settings.header, self.statement["bits"], self.statement["policy"], gated=bool(self.gate)
        )
        seed = self._key.seed() if self._keyed else secrets.randbits(128)
        self._drawing = Drawing(script.network, seed, self._key if self._keyed else None, self.gate)
        self.written, self.problems = 0, list[str]()

    def read(self, path: Path, number: int) -> Item | None:
        """A file as the anonymizer takes it; None, and a problem noted under its number, where it cannot be used."""
        name = path.relative_to(self.source).as_posix()
        try:
            original = read_original(path, self.script.size, self.script.channels, name)
        except ReadError as error:
            self.problems.append(_about(number, error.reason))
            return None
        except OSError as error:
            self.problems.append(_about(number, f"cannot be read ({error.strerror})"))
            return None
        if original.header is None:
            self.problems.append(_about(number, "is no DICOM file"))
            return None
        if self._dicom.bits is None and original.header.text_risk is not None:
            self.problems.append(_about(number, original.header.text_risk))
            return None
        return Item(name, original)

    def noise(self, item: Item) -> Tensor:
        """Standard normal noise `(noise_size,)` of an image's first draw."""
        return self._drawing.noise(self._job(item))

    def release(self, item: Item, pixels: np.ndarray, number: int) -> Path | None:
        """Write the copy of an image; None, and a problem noted, where it must not leave.

        Args:
            pixels: what the application drew with `noise(item)`, uint8 `(S, S)`, rows first. The gate decides
                about an image that it draws itself of the same noise, which must be this one, or of further draws.
        """
        try:
            job = self._job(item)
            made, training = self._checked(item, job, torch.from_numpy(np.ascontiguousarray(pixels))[None])
            content = copy_bytes(to_model_range(made), item.original, False, self._dicom)
            write_bytes(job.target, content, overwrite=False)
            append_statements(self.output, {job.target.name: training}, self.statement)
        except WithheldError as error:
            self.problems.append(_about(number, str(error)))
            return None
        except FileExistsError:
            self.problems.append(_about(number, "its copy is there already, and is not replaced"))
            return None
        except OSError as error:
            self.problems.append(_about(number, f"its copy cannot be written ({error.strerror})"))
            return None
        self.written += 1
        return job.target

    def failed(self, number: int, error: Exception) -> None:
        """Note an image that an operator broke down on; of the error only its kind, for the message may quote."""
        self.problems.append(_about(number, f"could not be processed ({type(error).__name__})"))

    def _job(self, item: Item) -> Job:
        """As `monai-anon anonymize` would plan it."""
        assert item.original.header is not None
        patient = digest_of(item.original.header, self._key)
        target = self._naming.target(self.output, Path(item.name), "dicom")
        shared = self._keyed and self.settings.header != "none"
        return Job(self.source / item.name, target, item.name, patient, patient if shared else "")

    def _checked(self, item: Item, job: Job, pixels: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        """Pixels uint8 `(1, S, S)` that may leave, and how like they are to training patients."""
        if pixels.shape != item.original.pixels.shape or pixels.dtype != torch.uint8:
            raise WithheldError(f"the model gave an image of the shape {tuple(pixels.shape)}")
        images = to_model_range(item.original.pixels)[None]
        with torch.inference_mode():
            own = self.script.network(images, self._drawing.noise(job)[None])[0]
        own = own.add(1).mul(127.5).round().clamp(0, 255)
        if float((own - pixels.float()).abs().max()) > _LEVEL:
            raise WithheldError("the application drew another image than the model does of the same noise")
        if self.gate is None:
            return pixels, {}
        drawn = self._drawing([job], item.original.pixels[None])
        assert drawn.decisions is not None
        decision = drawn.decisions[0]
        if not decision.released:
            raise WithheldError(f"withheld: {', '.join(reason.value for reason in decision.reasons)}")
        return to_uint8(drawn.images[0]), decision.shareable()["training"]

    def _gate(self) -> Gate | None:
        site, judges = self.settings.site, self.settings.judges
        if site is None:
            logger.warning("no privacy gate: images are released that nothing was compared with")
            return None
        judges = site / SITE_JUDGES if judges is None else judges
        return gate_of(self.script.network, str(self.script.about["model"]), site, judges)

    def _statement(self) -> dict[str, Any]:
        """What a copy may say of its original, for statements.jsonl and the header."""
        said = {name: value for name, value in self.script.about.items() if name != "noise_size"}
        if self.gate is not None:
            said["gate"] = self.gate.digest()
            if said["bits"] is not None:
                said["bits"] = round_up(bits(said["prototypes"], default_check(self.script.network.channel)))
        return said | {"header": self.settings.header}


def _about(number: int, reason: str) -> str:
    return f"image {number}: {reason}"


def settings_here() -> SiteSettings:
    """The settings of this process's environment."""
    return SiteSettings.of(os.environ)
