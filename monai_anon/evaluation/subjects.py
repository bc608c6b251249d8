"""Who is measured: anything that turns images into images, with what is known of how it was trained."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.channel import Channel
from monai_anon.datasets import file_digest
from monai_anon.model_files import read_record, read_tensors
from monai_anon.readers import to_model_range, to_uint8

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

Anonymise = Callable[[Tensor, torch.Generator], Tensor]
"""Images (B, C, S, S) in [-1, 1] and a generator to released images of the same shape and range."""


SLACK = 1e-3
"""By how much rounding may leave [-1, 1]."""


class SubjectError(ValueError):
    """An anonymizer that cannot be loaded, or does not keep the contract of one."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """An anonymizer under test.

    Args:
        name: its name in every table (a row's `method`).
        anonymise: what it does; deterministic under the generator.
        weights: what identifies it: a digest of its weights and of what it was fitted to, or of its name.
        networks: the paper's networks, where it is built of them: attacks on latents need those.
        images_seen: images that its training looked at, repetitions counted; 0 where nothing was trained.
    """

    name: str
    anonymise: Anonymise
    weights: str = ""
    networks: LatentSwapAnonymizer | None = None
    images_seen: int = 0


def channel_of(subject: Subject) -> Channel | None:
    """What lets something of an original pass; None for an anonymizer that is not built of the paper's networks."""
    found: Channel | None = getattr(subject.networks, "channel", None)
    return found


def subject_of(name: str, module: nn.Module, *, device: str | torch.device = "cpu", images_seen: int = 0) -> Subject:
    """A module as a subject. Its randomness is torch's: it is seeded from the generator, batch by batch.

    What it returns is checked batch by batch: an image of NaN would be released as black, and pass for private.
    """
    networks = module if isinstance(module, LatentSwapAnonymizer) else None
    module = module.to(device).eval()
    place = torch.device(device)

    @torch.no_grad()
    def anonymise(images: Tensor, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator))
        with _seeded(seed, place):
            released: Tensor = module(images.to(place)).float().cpu()
        if not torch.isfinite(released).all():
            raise SubjectError(f"{name} returned values that are NaN or infinite")
        if len(released) and float(released.abs().max()) > 1 + SLACK:
            low, high = float(released.min()), float(released.max())
            raise SubjectError(f"{name} returned values from {low:.3g} to {high:.3g}; images lie in [-1, 1]")
        return released.clamp(-1, 1)

    return Subject(name, anonymise, digest(module), networks, images_seen)


def trained_subject(
    name: str, network: LatentSwapAnonymizer, file: Path, device: str | torch.device = "cpu"
) -> Subject:
    """The paper's networks with the weights of a file, `network` itself included; what they saw stands beside the file.

    Raises:
        FileNotFoundError: there is no model; names the commands that make one.
        ValueError: it is no file of weights, or they do not fit.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing. Make one with: python -m monai.bundle run training --config_file "
            "BUNDLE/configs/train.json, then the same with train_identity_vae.json (BUNDLE: bundles/chest, say)"
        )
    try:
        network.load_state_dict(read_tensors(file))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{file} does not fit the configured networks (image_size, latent_sizes, widths?): {error}"
        ) from error
    seen = int(read_record(file).get("images_seen", 0))
    return dataclasses.replace(
        subject_of(name, network, device=device, images_seen=seen), weights=file_digest(str(file))
    )


def load_subject(
    path: str,
    channels: int,
    size: int,
    device: str | torch.device = "cpu",
    training: Callable[[], Cohort] | None = None,
) -> Subject:
    """The class or function `package.module:Name`, made without arguments, fitted and tried on a small batch.

    Where it has a method `fit(images, patients)`, that is called once, with seeded random numbers: images (N, C, S, S)
    of the training part in [-1, 1] and patients (N,) int64, both on the CPU. It sees no other part.

    Args:
        training: reads the training part; called only where there is a `fit`.

    Raises:
        SubjectError: no such module or name, it cannot be made without arguments, its `fit` takes something else or
            there is no training part for it, or what it returns for images `(2, channels, size, size)` is not of the
            same shape, finite and in [-1, 1].
    """
    made = _made(path)
    seen = _fit(path, made, training, torch.device(device))
    subject = subject_of(
        path.partition(":")[2] if path.startswith("monai_anon.") else path,
        made if isinstance(made, nn.Module) else _Function(made),
        device=device,
        images_seen=int(getattr(made, "images_seen", len(seen) if seen is not None else 0)),
    )
    if seen is not None:  # what was fitted need not be in tensors, where a digest would find it
        both = f"{subject.weights} {seen.fingerprint()}"
        subject = dataclasses.replace(subject, weights=hashlib.sha256(both.encode()).hexdigest()[:16])
    check_contract(subject, channels, size)
    return subject


def _made(path: str) -> Any:
    """The object that `package.module:Name` names: a class without arguments is made, all else is taken as it is."""
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise SubjectError(
            f"--anonymizer is {path!r}; it must be package.module:Class, such as monai_anon.baselines:Blur"
        )
    if os.getcwd() not in sys.path:  # a console script does not look where it is started
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise SubjectError(f"--anonymizer {path}: no module {error.name!r} here or on PYTHONPATH") from error
    except AttributeError as error:
        raise SubjectError(f"--anonymizer {path}: {module_name} has no {name!r}") from error
    needed = [
        parameter.name
        for parameter in (inspect.signature(found).parameters.values() if inspect.isclass(found) else ())
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if needed:
        raise SubjectError(
            f"--anonymizer {path}: it needs {needed}; give it defaults, or wrap it in a class without arguments"
        )
    made = found() if inspect.isclass(found) else found
    if not callable(made):
        raise SubjectError(
            f"--anonymizer {path} is a {type(made).__name__}; it must be a class or function that takes images"
        )
    return made


def _fit(path: str, made: Any, training: Callable[[], Cohort] | None, place: torch.device) -> Cohort | None:
    """Show what has a `fit` the training part, and return that; None where there is no `fit`."""
    fit = getattr(made, "fit", None)
    if not callable(fit):
        return None
    try:
        inspect.signature(fit).bind("images", "patients")
    except TypeError as error:
        raise SubjectError(
            f"--anonymizer {path}: its fit{inspect.signature(fit)} cannot be called as fit(images, patients): {error}"
        ) from error
    if training is None:
        raise SubjectError(f"--anonymizer {path} has a fit(images, patients), and there is no training part for it")
    cohort = training()
    with _seeded(0, place):
        fit(to_model_range(cohort.images), cohort.patient.clone())
    return cohort


@contextlib.contextmanager
def _seeded(seed: int, place: torch.device) -> Iterator[None]:
    """Torch's random numbers from a seed, and those of before afterwards."""
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Function(nn.Module):
    """A plain function, or an object that can be called, as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def check_contract(subject: Subject, channels: int, size: int) -> None:
    """Refuse what is no anonymizer: shape, range, finite values, and the same pixels under the same seed.

    Raises:
        SubjectError: says which.
    """
    images = torch.linspace(-1, 1, 2 * channels * size * size).reshape(2, channels, size, size)
    first, again = (subject.anonymise(images.clone(), torch.Generator().manual_seed(0)) for _ in range(2))
    if first.shape != images.shape:
        raise SubjectError(f"{subject.name}: {tuple(images.shape)} gave {tuple(first.shape)}; shapes must be equal")
    if not torch.equal(first, again):
        raise SubjectError(
            f"{subject.name} gave other pixels under the same seed; draw random numbers from torch's global generator"
        )


def release(anonymise: Anonymise, images: Tensor, seed: int, batch_size: int = 128) -> Tensor:
    """One release of every image: uint8 (N, C, S, S) to the same; the same seed gives the same pixels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parts = [anonymise(to_model_range(batch), generator) for batch in images.split(batch_size)]
    return torch.cat([to_uint8(part.clamp(-1, 1).cpu()) for part in parts])


def digest(module: nn.Module) -> str:
    """16 hex digits of a module's class, settings, source and weights."""
    parts = [module.function if isinstance(module, _Function) else module]
    found = hashlib.sha256(repr([_named(part) for part in parts]).encode())
    for part in parts:
        plain = {
            k: v for k, v in getattr(part, "__dict__", {}).items() if isinstance(v, (int, float, str, bool, tuple))
        }
        found.update(repr(sorted(plain.items())).encode())
    found.update(repr(module).encode() if not isinstance(module, _Function) else b"")
    for name, tensor in module.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _named(part: Any) -> tuple[str, str, str]:
    """Where something callable is defined, and its source where that can be found."""
    of = part if hasattr(part, "__qualname__") else type(part)
    try:
        source = inspect.getsource(of)
    except (OSError, TypeError):  # built in, or typed at a prompt
        source = ""
    return of.__module__ or "", of.__qualname__, source
