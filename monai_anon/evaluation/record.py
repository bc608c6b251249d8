"""What a run was: command, revision, data, subject, settings and times, as `run.json` beside the rows."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from monai_anon.channel import LEVELS
from monai_anon.evaluation.measuring import Measuring, cohort_digest
from monai_anon.evaluation.protocol import Settings
from monai_anon.evaluation.subjects import Subject, channel_of
from monai_anon.manifest import Manifest
from monai_anon.phantoms.writing import SETTINGS_KEY


def run_record(
    bundle: str, manifest: Manifest, subject: Subject, settings: Settings, measuring: Measuring, seconds: float
) -> dict[str, Any]:
    """Everything a report says of how its figures came about; no path but those typed, no patient, no file of one."""
    import monai

    scene = measuring.scene
    sizes = {
        name: {"images": len(part), "patients": part.num_patients}
        for name in ("training", "validation", "test")
        if (part := scene.part(name)) is not None
    }
    return {
        "command": typed_command(),
        "revision": revision(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "monai": monai.__version__},
        "bundle": bundle,
        "cohort": {
            "fingerprint": cohort_digest(scene),
            "name": scene.test.name.removesuffix("/test"),
            "generated": is_generated(manifest),
            "closed_set": manifest.closed_set,
            "image_size": scene.test.images.shape[-1],
            "channels": scene.test.images.shape[1],
            "classes": list(scene.test.classes),
            "parts": sizes,
        },
        "subject": {
            "name": subject.name,
            "weights": subject.weights,
            "images_seen": subject.images_seen,
            "channel": channel_record(subject),
        },
        "settings": dataclasses.asdict(settings) | {"verifier_batch": scene.schedule.batch_size},
        "seconds": {name: found.seconds for name, found in measuring.results.items()} | {"this run": round(seconds, 1)},
    }


def channel_record(subject: Subject) -> dict[str, Any] | None:
    """Policy, and what of prototypes and epsilon it has; None for an anonymizer without a channel."""
    channel = channel_of(subject)
    if channel is None:
        return None
    code = {"prototypes": LEVELS[channel.level]} if channel.policy == "code" else {}
    return {"policy": channel.policy} | code | ({"epsilon": channel.epsilon} if channel.epsilon else {})


def is_generated(manifest: Manifest) -> bool:
    """Whether the manifest says that its images were generated: nobody's."""
    return bool(manifest.extra.get(SETTINGS_KEY))


def typed_command() -> str:
    """The command of this process as a person would type it."""
    words = list(getattr(sys, "orig_argv", sys.argv))
    if "-m" in words[:-1]:
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        start = ["monai-anon"] if module == "monai_anon" else ["python", "-m", module]
    else:
        rest = sys.argv[1:]
        start = [Path(sys.argv[0]).name] if sys.argv else []
    return shlex.join([*start, *rest])


def machine() -> str:
    """Processor and number of cores; the accelerator where there is one."""
    found = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return found + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    """The source's git revision, `+` for uncommitted changes, `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
