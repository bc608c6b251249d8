"""Measure speed and memory on this machine: every figure in docs/performance.md comes from here.

    python scripts/benchmark.py step                 # one training step against the authors' order of calls
    python scripts/benchmark.py data --json          # one JSON object instead of a table
    python scripts/benchmark.py VERB --help

What is compared is run in turns in one process, and the ratio is the figure: absolute ones belong to a machine and to
what else ran on it. Nothing is downloaded; images are generated in a temporary folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from benchmarks import timing

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Output = Annotated[Optional[Path], typer.Option(help="File that is given the JSON as well.")]  # noqa: UP045
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
CHEST = timing.ROOT / "bundles/chest"
Bundle = Annotated[
    Path, typer.Option(help="Folder of the bundle whose networks are used.", show_default="bundles/chest")
]
Threads = Annotated[Optional[int], typer.Option(min=1, help="Of a CPU's operators.  [default: all cores]")]  # noqa: UP045


@app.callback(help=__doc__)
def common() -> None:
    """The command's verbs share no option."""


@app.command()
def step(
    recipe: Annotated[
        str,
        typer.Option(help="paper: the authors' widths and losses against their order of calls; train: ours, plainly."),
    ] = "paper",
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps a turn; on a GPU take 50.")] = 1,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    bf16: Annotated[Optional[bool], typer.Option(help="[default: where it pays]")] = None,  # noqa: UP045
    channels_last: Annotated[Optional[bool], typer.Option(help="[default: where it pays]")] = None,  # noqa: UP045
    compiled: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A mode of torch.compile, or none.  [default: default on CUDA, none on a CPU]"),
    ] = None,
    shares: Annotated[
        bool, typer.Option("--shares", help="Also each change on its own, one on top of the other.")
    ] = False,
    hot_spots: Annotated[
        bool, typer.Option("--hot-spots", help="Also what takes the time (torch's profiler).")
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each candidate in its own process.")] = True,
    threads: Threads = None,
    device: Device = timing.DEVICE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """One training step of stage 1 against the authors' order of calls in eager float32."""
    from benchmarks import step as benchmark

    from monai_anon.compute import chosen

    def measure() -> dict[str, Any]:
        compute = chosen(device, bf16, channels_last, False if compiled == "none" else compiled, threads)
        result = benchmark.measure(compute, device, recipe, batch_size, rounds, steps, size, shares, memory)
        result["parts"] = benchmark.parts(device, batch_size, size)
        if hot_spots:
            result["hot_spots"] = benchmark.hot_spots(compute, device, recipe, batch_size, size)
        return result

    show_measured("step", measure, as_json, output, device, threads)


@app.command()
def quality(
    output: Annotated[
        Path, typer.Option(help="Folder of curves, picture, checkpoints and judges; a stopped run goes on there.")
    ] = Path("quality"),
    recipes: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="recommended, paper, paper_fast, paper_losses.")
    ] = "recommended,paper",
    budget: Annotated[float, typer.Option(help="Seconds of training a recipe.")] = 600,
    checks: Annotated[int, typer.Option(help="Judgements within the budget.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the trainings; the judges have their own.")] = 0,
    manifest: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A manifest or its folder.  [default: the generated cohort, made when absent]"),
    ] = None,
    part: Annotated[str, typer.Option(help="Whose images are judged: test or validation.")] = "test",
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 64,
    epochs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Length of recommended and paper_losses.  [default: the quick run's]"),
    ] = None,
    judges: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Judges that are trained already.  [default: --output]"),
    ] = None,
    judge_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Batches for each judge.  [default: the bundle's]"),
    ] = None,
    bf16: Annotated[Optional[bool], typer.Option(help="For all recipes.  [default: where it pays]")] = None,  # noqa: UP045
    threads: Threads = None,
    device: Device = timing.DEVICE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do none of it.")] = False,
    as_json: Json = False,
) -> None:
    """Train recipes side by side until independent judges find the quick run's bars met, and show the curves."""
    from benchmarks import quality as benchmark

    from monai_anon.compute import chosen

    with plain_errors():
        names = tuple(name.strip() for name in recipes.split(","))
        given = None if manifest is None else str(manifest)
        run = benchmark.Run(output, names, budget, checks, seed, given, part, size, epochs, judges, judge_steps, device)
        compute = chosen(device, bf16, threads=threads)
        if dry_run:
            typer.echo("\n".join(benchmark.planned(run, compute)))
            return
        result = {"benchmark": "quality", **timing.environment(device), **benchmark.measure(run, compute)}
    benchmark.report(result, output, as_json)


def show_measured(
    name: str,
    measure: Callable[[], dict[str, Any]],
    as_json: bool,
    output: Path | None,
    device: str = "cpu",
    threads: int | None = None,
) -> None:
    """Set the threads, measure, and show the figures with what they must be read with."""
    from monai_anon.bundles import chosen_device
    from monai_anon.compute import chosen

    with plain_errors():
        chosen(chosen_device(device), threads=threads)
        result = {"benchmark": name, **timing.environment(device), **measure()}
    timing.show(result, as_json, output)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a person can mend, as one line on stderr."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def data(
    images: Annotated[int, typer.Option(min=4, help="Of the training part.")] = 300,
    sizes: Annotated[list[int], typer.Option(min=32, help="Side in pixels; may be given again.")] = [64, 256],  # noqa: B006
    batch_size: Annotated[int, typer.Option(min=1, help="Images I_ori a batch.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 5,
    threads: Threads = None,
    device: Device = timing.DEVICE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Pair batches and starts of a cohort against CacheDataset and DataLoader, and against what the step asks for."""
    from benchmarks import data as benchmark

    show_measured(
        "data",
        lambda: benchmark.measure(device, images, sizes, batch_size, rounds=rounds),
        as_json,
        output,
        device,
        threads,
    )


@app.command()
def scale(
    images: Annotated[int, typer.Option(min=96, help="In the file that is read from; 224316 for CheXpert's.")] = 16_000,
    size: Annotated[int, typer.Option(min=32, help="Side of the stored images in pixels.")] = 256,
    files: Annotated[int, typer.Option(min=1, help="JPEG files that are built into a cache.")] = 2000,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where a temporary folder is made, with room for the file.  [default: the system's]"),
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """CheXpert's size: how fast a cache is built and read from the disk, and what another million images costs."""
    from benchmarks import scale as benchmark

    show_measured("scale", lambda: benchmark.measure(images, size, files, folder), as_json, output)


@app.command()
def ranks(
    recipe: Annotated[str, typer.Option(help="train or paper.")] = "train",
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="Images of one rank's step.  [default: 24; 32 of paper]"),
    ] = None,
    processes: Annotated[int, typer.Option(min=2, help="On the CPU, with one thread each.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps a turn.")] = 2,
    model: Annotated[bool, typer.Option("--model", help="Compute scaling from bytes and links; time nothing.")] = False,
    step_ms: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Of the model: a step without exchange.  [default: its operations, counted, at --tflops]"),
    ] = None,
    tflops: Annotated[float, typer.Option(help="Of the model: speed in 10^12 operations a second.")] = 275.0,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Weak scaling: one process against two that train as one, or the model of many GPUs (docs/many_gpus.md)."""
    from benchmarks import exchange
    from benchmarks import ranks as benchmark

    images = batch_size or (32 if recipe == "paper" else 24)
    if not model:
        show_measured("ranks", lambda: benchmark.measure(recipe, images, processes, rounds, steps), as_json, output)
        return
    modelled = partial(exchange.model, recipe, images, step_ms=step_ms, tflops=tflops)
    if as_json or output is not None:
        show_measured("ranks", modelled, as_json, output)
        return
    with plain_errors():
        typer.echo(exchange.shown(modelled()))


@app.command()
def render(
    size: Annotated[int, typer.Option(help="Side of the images in pixels, 32 to 512.")] = 64,
    images: Annotated[int, typer.Option(min=1, help="Of the cohort's training part.")] = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 3,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Generated images drawn and written, on one thread and on one a core."""
    from benchmarks import render as benchmark

    show_measured("render", lambda: benchmark.measure(size, images, rounds), as_json, output)


@app.command()
def anonymize(
    images: Annotated[int, typer.Option(min=1, help="PNG files.")] = 200,
    size: Annotated[int, typer.Option(min=32, help="Side of the files in pixels.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step, of both.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 5,
    bundle: Bundle = CHEST,
    threads: Threads = None,
    device: Device = timing.DEVICE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Files anonymised as the command does it, against the bundle's inference.json run by MONAI."""
    from benchmarks import anonymize as benchmark

    show_measured(
        "anonymize",
        lambda: benchmark.measure(images, size, batch_size, rounds, device, bundle),
        as_json,
        output,
        device,
        threads,
    )


@app.command()
def gallery(
    images: Annotated[int, typer.Option(min=1, help="Of the cohort's training part.")] = 600,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step, of both.")] = 256,
    vectors: Annotated[list[int], typer.Option(min=1, help="People in the gallery; may be given again.")] = [10_000],  # noqa: B006
    queries: Annotated[int, typer.Option(min=1, help="People looked for.")] = 300,
    length: Annotated[int, typer.Option(min=1, help="Of a vector.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 3,
    memory: Annotated[bool, typer.Option(help="Measure the search's peak memory, each way in its own process.")] = True,
    bundle: Bundle = CHEST,
    threads: Threads = None,
    device: Device = timing.DEVICE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Identity latents against MONAI's loader and inferer; the exact search of people among them."""
    from benchmarks import gallery as benchmark

    show_measured(
        "gallery",
        lambda: benchmark.measure(images, batch_size, vectors, queries, length, rounds, memory, device, bundle),
        as_json,
        output,
        device,
        threads,
    )


@app.command()
def nearest(
    patients: Annotated[list[int], typer.Option(min=1, help="In the gallery; may be given again.")] = [65_000],  # noqa: B006
    images: Annotated[int, typer.Option(min=1, help="Of each patient.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Images asked about at once.")] = 64,
    length: Annotated[int, typer.Option(min=1, help="Of a vector.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each candidate.")] = 3,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, each in its own process.")] = True,
    threads: Threads = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """The privacy gate's search for the nearest training patient: in blocks, at once, and by scikit-learn."""
    from benchmarks import nearest as benchmark

    show_measured(
        "nearest",
        lambda: benchmark.measure(patients, images, queries, length, rounds, memory),
        as_json,
        output,
        threads=threads,
    )


@app.command()
def start(
    repeats: Annotated[int, typer.Option(min=1, help="Processes timed, after one that fills the cache.")] = 3,
    images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Of the cohort's training part.  [default: the paper's 6000, with 200 and 300]"),
    ] = None,
    threads: Threads = None,
    device: Device = timing.DEVICE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """From the start of the chest bundle's training command to its first step, on a cached cohort."""
    from benchmarks import start as benchmark

    show_measured(
        "start", lambda: benchmark.measure(repeats, images, device, threads), as_json, output, device, threads
    )


@app.command("all")
def everything(
    output: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Given one JSON file a result; existing ones are kept.")
    ],
    device: Device = timing.DEVICE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure again what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run none.")] = False,
) -> None:
    """Everything above on one device (not `quality`): some ten minutes on two CPU cores that do nothing else."""
    from benchmarks import everything as benchmark

    if dry_run:
        for command in benchmark.commands(device, output).values():
            typer.echo(f"python scripts/benchmark.py {' '.join(command)}")
        return
    outcome = benchmark.run(device, output, overwrite)
    timing.show(outcome, as_json=False)
    if "failed" in outcome.values():
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
