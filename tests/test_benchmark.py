"""What the benchmark prints can be read by a program, and how it measures is right; no test asserts a speed."""

import importlib.util
import json
import operator
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ALWAYS = {"benchmark", "device", "device_type", "cores", "threads", "load", "torch", "monai", "python", "revision"}
# Sizes that take about a second, and what each verb promises.
VERBS = {
    "render": (
        "--size 32 --images 12 --rounds 1",
        {"rendered_images_per_s", "ratio_of_threads", "written_images_per_s", "share_of_rendering", "share_of_writing"},
    ),
    "anonymize": (
        "--images 3 --rounds 1 --batch-size 2",
        {
            "ratio",
            "images_per_s",
            "monai_images_per_s",
            "serial_ms_per_image",
            "share_of_serial_time",
            "model_images_per_s",
        },
    ),
    "gallery": (
        "--images 12 --vectors 50 --vectors 70 --queries 10 --rounds 1 --no-memory",
        {"latents", "search", "queries", "length"},
    ),
    "nearest": (
        "--patients 30 --patients 40 --images 2 --queries 5 --rounds 1 --no-memory",
        {"galleries", "queries", "length"},
    ),
}


pytestmark = pytest.mark.usefixtures("scripts")


@pytest.fixture
def benchmark(monkeypatch):
    """Run a verb; gives (exit code, stdout, stderr)."""
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark", module)  # typer resolves the options' types through it
    spec.loader.exec_module(module)

    def run(*words):
        result = CliRunner().invoke(module.app, list(words))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless told: `clock.now += seconds`."""
    from benchmarks import timing

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


# ---- verbs ----


@pytest.mark.parametrize("verb", VERBS)
def test_json_is_exactly_one_object_with_the_promised_figures(benchmark, tmp_path, verb):
    options, promised = VERBS[verb]
    code, out, err = benchmark(verb, *options.split(), "--json", "--output", str(tmp_path / "new" / "figures.json"))
    assert code == 0, err
    figures = json.loads(out)
    assert figures["benchmark"] == verb
    assert promised | ALWAYS <= figures.keys()
    assert json.loads((tmp_path / "new" / "figures.json").read_text()) == figures
    assert all(value >= 0 for value in numbers(figures))


def numbers(value):
    """All numbers of nested figures."""
    if isinstance(value, dict | list):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in numbers(one)]
    return [value] if isinstance(value, int | float) else []


def test_without_json_the_figures_are_lines_of_name_and_value(benchmark):
    code, out, err = benchmark("gallery", *VERBS["gallery"][0].split())
    assert code == 0, err
    names = [line.split()[0] for line in out.splitlines()]
    assert len(names) == len(set(names)) and names[0] == "benchmark"
    assert {"latents.images_per_s", "search.50.seconds.whole", "search.70.rank_1"} <= set(names)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("render --size 7", "size is 7; it must lie between 32 and 512"),
        ("render --images 1", "error: "),
        ("anonymize --bundle nowhere", "nowhere is no folder; --bundle takes a bundle's folder"),
        ("anonymize --device nowhere", "device 'nowhere' cannot be used here"),
        (
            "gallery --vectors 9 --queries 10",
            "10 queries in a gallery of 9; each query's person must be in the gallery",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(benchmark, words, reason):
    code, out, err = benchmark(*words.split())
    assert (code, out, len(err.strip().splitlines())) == (1, "", 1)
    assert reason in err


@pytest.mark.parametrize("words", ["render --rounds 0", "anonymize --images 0", "start --repeats 0", "nothing"])
def test_what_makes_no_sense_is_a_usage_error(benchmark, words):
    assert benchmark(*words.split())[0] == 2


@pytest.mark.slow
def test_start_runs_the_bundle_and_its_parts_add_up(benchmark):
    code, out, err = benchmark("start", "--repeats", "1", "--images", "60", "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["parts_s"].keys() == {"imports", "config", "networks", "cohort", "first_step"}
    assert sum(figures["parts_s"].values()) == pytest.approx(figures["seconds_to_first_step"], abs=0.01)
    assert all(seconds > 0 for seconds in figures["parts_s"].values())
    assert figures["processor_seconds_to_first_step"] > 0 and figures["help_s"] > 0


def test_a_training_that_does_not_start_is_told_with_its_last_words(tmp_path, monkeypatch):
    from benchmarks import start

    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such entry' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ChildProcessError, match="exit code 3 before its first step:\nno such entry"):
        start.started(tmp_path / "run", [])


# ---- how it is timed ----


def test_candidates_take_turns_and_every_other_round_goes_backwards():
    from benchmarks import timing

    calls = []
    timing.alternate({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warm_up=2)
    assert "".join(calls) == "abcabc" + "abc" + "cba" + "abc"
    with pytest.raises(ValueError, match="rounds is 0"):
        timing.alternate({}, rounds=0)


def test_a_ratio_survives_a_machine_that_becomes_slower(clock):
    from benchmarks import timing

    def takes(seconds):
        def run():
            clock.now += seconds * pace[0]

        return run

    def slower():
        pace[0] *= 2

    pace = [1.0]
    timings = timing.alternate({"fast": takes(1), "slow": takes(3), "load": slower}, rounds=4, warm_up=0)
    # Backwards the load comes first, so that both feel the same of it.
    assert timings.seconds["slow"] == [3 * seconds for seconds in timings.seconds["fast"]]
    assert timings.median("fast") > 1
    assert timings.speed_up("fast", "slow") == timing.Ratio(3, 3, 3)
    assert timings.speed_up("slow", "fast").median == pytest.approx(1 / 3)


def test_a_ratio_is_the_median_of_the_rounds_with_its_extremes():
    from benchmarks import timing

    timings = timing.Timings({"ours": [1.0, 2.0, 4.0], "theirs": [8.0, 2.0, 12.0]})
    assert timings.speed_up("ours", "theirs") == timing.Ratio(3, 1, 8)


def test_a_rate_leaves_the_first_call_out(clock):
    from benchmarks import timing

    durations = iter([100.0] + [0.5] * 9)

    def run():
        clock.now += next(durations)
        return 10

    assert timing.rate(run, 2.0) == pytest.approx(20)


@pytest.mark.slow
def test_peak_memory_sees_what_the_child_allocates_and_nothing_of_its_parent():
    from benchmarks import timing

    held = operator.mul(b"x", 500_000_000)
    little, much = (timing.peak_memory(operator.mul, b"x", count) for count in (1, 200_000_000))
    assert len(held) == 500_000_000
    assert 190 < much - little < 230


def test_time_inside_an_inner_part_is_not_the_outer_ones(monkeypatch):
    from benchmarks import start

    clock = SimpleNamespace(now=5.0)
    monkeypatch.setattr(start, "time", SimpleNamespace(time=lambda: clock.now))
    parts = start.Parts(4.0, "imports")
    parts.goes_on_as("config")

    def work(seconds, inner=None):
        clock.now += seconds
        if inner is not None:
            inner()
            clock.now += seconds

    def broken():
        clock.now += 10
        raise ValueError

    cohort = parts.timed(lambda: work(2), lambda: "cohort")
    unnamed = parts.timed(lambda: work(0.5, cohort), lambda: None)
    parts.timed(lambda: work(3, unnamed), lambda: "networks")()
    with pytest.raises(ValueError):
        parts.timed(broken, lambda: "cohort")()
    clock.now += 0.25
    assert parts.turn() == clock.now
    assert parts.seconds == {"imports": 1, "config": 0.25, "networks": 7, "cohort": 12}


def test_components_are_charged_to_the_part_of_their_module():
    from benchmarks import start

    def part(target):
        return start.part_of(SimpleNamespace(get_config=lambda: {"_target_": target}))

    assert part("monai_anon.networks.Encoder") == "networks"
    assert part("monai_anon.cohort.Cohort.from_manifest") == part("monai_anon.datasets.training_manifest") == "cohort"
    assert part("monai_anon.engines.StepTrainer") is part("@validate#best") is None


# ---- what is timed ----


def test_the_renderer_runs_on_as_many_threads_as_it_is_measured_with(monkeypatch):
    from benchmarks import render

    from monai_anon.phantoms import chest, rendering

    asked, pool, cores = [], rendering.ThreadPoolExecutor, os.cpu_count()
    monkeypatch.setattr(
        rendering, "ThreadPoolExecutor", lambda max_workers: asked.append(max_workers) or pool(max_workers)
    )
    factors = chest.sample_factors(0, (4, 4, 4), (2, 2, 2))
    for count in (1, 3):
        render._on_threads(count, lambda: chest.render(factors, 32))
    assert asked == [1, 3] and os.cpu_count() == cores


@pytest.mark.parametrize("size", [64, 40])
def test_monais_copies_have_the_form_of_ours(tmp_path, size):
    from benchmarks import anonymize

    anonymize.draw(tmp_path / "in", 3, size)
    with anonymize.quiet_readers():
        anonymize.evaluator(anonymize.BUNDLE, tmp_path, size, 2, "cpu").run()
    originals, copies = (sorted((tmp_path / folder).rglob("*.png")) for folder in ("in", "monai"))
    assert len(originals) == len(copies) == 3
    for original, copy in zip(originals, copies, strict=True):
        with Image.open(original) as before, Image.open(copy) as after:
            assert (after.size, after.mode) == (before.size, before.mode) == ((size, size), "L")
            difference = np.abs(np.asarray(after, float) - np.asarray(before, float)).mean()
        assert 2 < difference < 60  # another person, neither transposed nor noise


def test_all_searches_find_the_same_people():
    from benchmarks import gallery

    asked, people = gallery.random_vectors(400, gallery.BLOCK + 5, 64)
    found = gallery.whole(asked, people)
    assert 0.05 < found < 0.95
    assert gallery.blocks(asked, people) == pytest.approx(found) == gallery.sklearn(asked, people)
    assert gallery.whole(people[:9], people) == gallery.blocks(people[:9], people) == 1
