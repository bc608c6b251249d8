"""What a thread makes ahead is what would be made without it, in any order, and so a resumed run stays exact."""

import threading
import time

import numpy as np
import pytest
import torch
from test_cohort import make_cohort

from monai_anon.cohort import Cohort
from monai_anon.pairs import PairLoader, PairSampler
from monai_anon.read_ahead import ReadAhead

ORDER = [0, 1, 2, 7, 8, 3, 3, 2, 9, 10, 11]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_are_those_of_the_function_in_any_order(count):
    ahead = ReadAhead(lambda number: number**2, count)
    for number in ORDER:
        assert ahead(number) == number**2
        assert len(ahead._made) <= count


def test_the_next_results_are_made_before_they_are_asked_for_and_no_more():
    made = []
    ahead = ReadAhead(lambda number: made.append((number, threading.current_thread().name)) or number, 2)
    ahead(5)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert [number for number, _ in made] == [5, 6, 7]
    assert all(name.startswith("read-ahead") for _, name in made)
    ahead(6)
    ahead(7)
    assert [number for number, _ in made][:3] == [5, 6, 7]
    assert len({number for number, _ in made}) == len(made)


def test_nothing_is_made_ahead_and_no_thread_started_with_a_count_of_0():
    threads = threading.active_count()
    made = []
    ReadAhead(made.append, 0)(3)
    assert made == [3]
    assert threading.active_count() == threads
    with pytest.raises(ValueError, match="must be 0 or more"):
        ReadAhead(made.append, -1)


def test_what_fails_ahead_fails_where_it_is_asked_for():
    ahead = ReadAhead(lambda number: 1 // (number - 2), 3)
    assert [ahead(0), ahead(1)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        ahead(2)
    assert ahead(3) == 1


@pytest.fixture(params=["in memory", "on disk"])
def cohort(request):
    """64 images of 20 patients; reading from the disk is played by a function."""
    generator = np.random.default_rng(1)
    made = make_cohort(generator.integers(0, 20, 64).tolist(), generator.integers(0, 2, 64).tolist())
    if request.param == "in memory":
        return made
    parts = made.images, made.patient, made.finding, made.entries, made.classes
    return Cohort(*parts, memory_mapped=True, gather=lambda indices: made.images.numpy()[indices])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("prefetch", [None, 0, 1, 5])
def test_a_loader_that_reads_ahead_gives_the_batches_of_its_iterations(cohort, prefetch):
    loader = PairLoader(cohort, 12, seed=3, prefetch=prefetch)
    batches = [batch for _ in range(3) for batch in loader]
    assert (len(loader), len(batches), loader.start) == (5, 15, 15)
    assert all(equal(batch, loader.batch(iteration)) for iteration, batch in enumerate(batches))


@pytest.mark.parametrize("start", [4, 7, 10])
def test_a_loader_that_reads_ahead_resumes_exactly(cohort, start):
    whole, resumed = (PairLoader(cohort, 12, seed=3, prefetch=3) for _ in range(2))
    expected = [batch for _ in range(3) for batch in whole][start:]
    next(iter(resumed))  # what was read ahead for another place must not be used
    resumed.start = start
    rest = [batch for _ in range(3 - start // 5) for batch in resumed]
    assert len(rest) == len(expected)
    assert all(equal(a, b) for a, b in zip(rest, expected))
    assert resumed.start == 15


def test_start_counts_the_batches_that_were_given_not_those_read_ahead(cohort):
    loader = PairLoader(cohort, 12, prefetch=4)
    batches = iter(loader)
    for done in range(1, 4):
        next(batches)
        assert loader.start == done


class Disturbed(PairSampler):
    """Another thread asks for another epoch whenever this one has looked at the epoch's order."""

    @property
    def _shuffled(self):
        found, self.kept = self.kept, (99, self.anchors[::-1])
        return found

    @_shuffled.setter
    def _shuffled(self, order):
        self.kept = order


def test_threads_that_ask_for_different_epochs_do_not_disturb_each_other(cohort):
    alone, disturbed = PairSampler(cohort, 12), Disturbed(cohort, 12)
    for iteration in (0, 1, 7, 7, 3):
        disturbed.kept = alone._shuffled
        np.testing.assert_array_equal(alone.indices(iteration)["ori"], disturbed.indices(iteration)["ori"])


def test_images_in_memory_are_not_read_ahead_and_those_on_disk_are():
    made = make_cohort([0, 1, 2, 3], [0, 1, 0, 1])
    mapped = Cohort(made.images, made.patient, made.finding, made.entries, made.classes, memory_mapped=True)
    assert PairLoader(made, 2)._foreseen.count == 0
    assert PairLoader(mapped, 2)._foreseen.count > 0
    assert equal(PairLoader(made, 2).batch(0), PairLoader(mapped, 2).batch(0))
    with pytest.raises(ValueError, match="must be 0 or more"):
        PairLoader(made, 2, prefetch=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_those_on_the_cpu(cohort):
    host, device = PairLoader(cohort, 12, seed=3), PairLoader(cohort, 12, seed=3, device="cuda")
    for expected, batch in zip(host, device, strict=True):
        assert all(values.is_cuda for values in batch.values())
        assert all(torch.allclose(batch[key].cpu().float(), expected[key].float(), atol=1e-6) for key in batch)
