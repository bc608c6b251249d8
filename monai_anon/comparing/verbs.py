"""The verb `compare`: what it takes and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from monai_anon.evaluation.verbs import CHEST, BundleOption, JudgesOption, ManifestOption


def compare(
    output: Annotated[Path, typer.Option(metavar="RUN", help="Gets trainings, rows.jsonl, comparison.md, pictures.")],
    bundle: BundleOption = CHEST,
    manifest: ManifestOption = None,
    systems: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time, on Python 3.10 too
        typer.Option(metavar="NAME[,NAME...]", help="These alone, such as none,k-same,pp-sir.  [default: all]"),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Batches that every system is trained for.")] = 600,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a batch, each with two that are paired to it.")] = 8,
    attack_budget: Annotated[
        int, typer.Option(min=1, help="Batches for every attacker and all else trained to measure.")
    ] = 100,
    bootstrap: Annotated[int, typer.Option(min=1, help="Draws of patients behind every interval.")] = 300,
    judges_dir: JudgesOption = None,
    jobs: Annotated[int, typer.Option(min=1, help="Systems at once; the processor's cores are shared out.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of trainings, attackers and draws.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the systems and write nothing.")] = False,
) -> None:
    """Train every system of the paper's tables at one budget, attack all alike, and write Table 1, Table 3 and a plot.

    The same command goes on where a stopped one was. One system's failure does not lose the others: it is named at the
    end, and the exit code is 1. The default budget is small: it shows mechanisms, not what systems can do at best.

    \b
    Example:
      monai-anon compare --output runs/compare
      monai-anon compare --systems none,k-same,pp-sir,ours --budget 4000 --attack-budget 400 --output runs/large
    """  # noqa: D301
    from monai_anon.comparing.job import Comparison
    from monai_anon.comparing.run import compare as run
    from monai_anon.comparing.systems import chosen, groups

    names = chosen([name for each in systems for name in each.split(",")] if systems else None)
    if dry_run:
        typer.echo(f"would train for {budget} batches of {batch_size}, and attack for {attack_budget}:")
        for group in groups(names):
            typer.echo(f"  {', '.join(group)}")
        return
    comparison = Comparison(
        str(bundle),
        manifest=str(manifest or ""),
        judges_dir=str(judges_dir or ""),
        budget=budget,
        batch_size=batch_size,
        attack_budget=attack_budget,
        bootstrap=bootstrap,
        seed=seed,
    )
    if code := run(comparison, names, output, jobs, typer.echo):
        raise typer.Exit(code)
