"""The report: one HTML page of one or more RUNs that needs no network, for a reviewer or a data-protection officer.

The judges come first, since every other figure rests on them. On a cohort where the verifier knows too little, and
where no attack was run, the page says "no privacy verdict" and gives no figure about persons. Pictures of patients are
left out unless somebody asks for them.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.runs import ReportError, read_run
from monai_anon.pages import templates
from monai_anon.whole_files import require_writable, write_text

__all__ = ["Report", "ReportError", "write_report"]

_MARK, _HEAD = b"<title>Evaluation of ", 4096  # what is near the beginning of every report, and how near


@dataclasses.dataclass(frozen=True)
class Report:
    """A written page; ``silence`` says why there is no privacy verdict, and is empty where there is one."""

    path: Path
    silence: str


def write_report(runs: Sequence[Path], output: Path, *, pictures: bool | None = None) -> Report:
    """One self-contained HTML page of one or more folders that `monai-anon evaluate` wrote.

    Args:
        pictures: include them; None includes them only where every run says that its cohort is generated.

    Raises:
        ReportError: a folder that is missing or damaged; names it and the command that makes one. At `output` stands
            something else than a report.
        ValueError: nothing can be written there.
    """
    _refuse_other(output)
    read = [read_run(run) for run in runs]
    if not read:
        raise ReportError("no RUN was given; name at least one folder that monai-anon evaluate wrote")
    page = Page(read)
    shown = all(run.generated for run in read) if pictures is None else pictures
    html = _environment().get_template("report.html.j2").render(page.content(shown))
    return Report(write_text(output, html), page.silence)


def _refuse_other(output: Path) -> None:
    """Of what stands at `output` only an earlier report is replaced."""
    require_writable(output.parent, "--output")
    if not os.path.lexists(output):
        return
    start = b""
    if output.is_file():
        with output.open("rb") as file:
            start = file.read(_HEAD)
    if _MARK not in start:
        what = "a folder" if output.is_dir() else "there already and no report"
        raise ReportError(f"--output {output} is {what}; only an earlier report is replaced, choose another file")


def _environment() -> jinja2.Environment:
    environment = templates("monai_anon.evaluation.reporting")
    environment.filters["csp_hash"] = _csp_hash
    return environment


def _csp_hash(script: str) -> str:
    """What a Content-Security-Policy calls a script by: the page runs this one and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode("ascii")
