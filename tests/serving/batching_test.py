import threading

import numpy as np
import pytest

from mg_keras.serving.batching import Batcher
from mg_keras.serving.codes import ServingError


class Doubler:
    """Doubles its input, remembers the batches it got, and refuses those that hold a -1."""

    def __init__(self):
        self.batches = []

    def __call__(self, inputs):
        self.batches.append(inputs["x"].copy())
        if np.any(inputs["x"] == -1):
            raise ServingError("INVALID_ARGUMENT", "-1 is in it")
        return {"y": inputs["x"] * 2, "rows": np.arange(len(inputs["x"]))}


@pytest.fixture
def batcher():
    made = []

    def make(*arguments, **keywords):
        made.append(Batcher(*arguments, **keywords))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def rows(*values):
    return {"x": np.array(values, np.float32)}


def test_full_batches_run_before_their_time(batcher):
    run, batches = Doubler(), batcher(4, timeout=3600)
    futures = [batches.submit(("f",), run, rows(number, number + 10)) for number in range(4)]
    for number, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(30)["y"], [2 * number, 2 * number + 20])
    assert sorted(len(batch) for batch in run.batches) == [4, 4]


def test_a_lonely_task_runs_after_the_timeout(batcher):
    run = Doubler()
    answer = batcher(4, timeout=0.01).submit(("f",), run, rows(1)).result(30)
    np.testing.assert_array_equal(answer["y"], [2])


def test_a_task_that_does_not_fit_closes_the_batch_before_it(batcher):
    run, batches = Doubler(), batcher(4, timeout=3600)
    first = [batches.submit(("f",), run, rows(1, 2)), batches.submit(("f",), run, rows(3))]
    assert not any(future.done() for future in first)
    batches.submit(("f",), run, rows(4, 5))
    np.testing.assert_array_equal(first[0].result(30)["y"], [2, 4])
    np.testing.assert_array_equal(first[1].result(30)["y"], [6])


def test_only_equal_shapes_dtypes_and_functions_are_joined(batcher):
    run, other, batches = Doubler(), Doubler(), batcher(8, timeout=0.05)
    inputs = [np.zeros((1, 2)), np.zeros((2, 2)), np.zeros((1, 3)), np.zeros((1, 2), np.float32)]
    futures = [batches.submit(("f",), run, {"x": array}) for array in inputs]
    futures.append(batches.submit(("g",), other, {"x": inputs[0]}))
    for array, future in zip([*inputs, inputs[0]], futures, strict=True):
        answer = future.result(30)["y"]
        assert answer.shape == array.shape
        assert answer.dtype == array.dtype
    assert sorted(batch.shape for batch in run.batches) == [(1, 2), (1, 3), (3, 2)]
    assert [batch.shape for batch in other.batches] == [(1, 2)]


def test_an_error_in_one_does_not_fail_the_others(batcher):
    run, batches = Doubler(), batcher(3, timeout=3600)
    futures = [batches.submit(("f",), run, rows(value)) for value in (1, -1, 3)]
    np.testing.assert_array_equal(futures[0].result(30)["y"], [2])
    np.testing.assert_array_equal(futures[2].result(30)["y"], [6])
    with pytest.raises(ServingError, match="-1 is in it"):
        futures[1].result(30)
    assert [len(batch) for batch in run.batches] == [3, 1, 1, 1]


def test_an_output_without_batch_dimension_is_an_error(batcher):
    future = batcher(1).submit(("f",), lambda inputs: {"y": np.float32(1)}, rows(1))
    with pytest.raises(ServingError, match="output y") as raised:
        future.result(30)
    assert raised.value.code == "FAILED_PRECONDITION"


def test_a_task_too_large_for_a_batch(batcher):
    with pytest.raises(ServingError, match="3 is larger than maximum input batch size 2"):
        batcher(2).submit(("f",), Doubler(), rows(1, 2, 3))


def test_who_has_given_up_is_left_out(batcher):
    run, batches = Doubler(), batcher(2, timeout=3600)
    gone = batches.submit(("f",), run, rows(1))
    assert gone.cancel()
    np.testing.assert_array_equal(batches.submit(("f",), run, rows(2)).result(30)["y"], [4])
    assert [list(batch) for batch in run.batches] == [[2]]


class Queue:
    """A batcher whose only thread is held up while tasks are submitted; remembers the order in which they ran."""

    def __init__(self, batches):
        self.ran, self.futures, self._batches, self._go_on = [], [], batches, threading.Event()
        started = threading.Event()

        def hold(inputs):
            started.set()
            assert self._go_on.wait(30)
            return inputs

        # as many rows as a batch takes, so that it does not wait for company
        self.futures.append(batches.submit(("hold",), hold, rows(*[0] * batches.max_batch_size)))
        assert started.wait(30)

    def submit(self, name, *values):
        def run(inputs):
            self.ran.append((name, len(inputs["x"])))
            return {"y": inputs["x"] * 2}

        self.futures.append(self._batches.submit((name,), run, rows(*values)))

    def finish(self):
        self._go_on.set()
        for future in self.futures:
            future.result(30)


def test_a_lone_task_does_not_wait_for_the_full_batches_of_others(batcher):
    queue = Queue(batcher(2, timeout=0, threads=1))
    queue.submit("full", 1, 2)
    queue.submit("lone", 3)
    queue.submit("full", 4, 5)
    # one that fills up late keeps its place
    queue.submit("late", 6)
    queue.submit("full", 7, 8)
    queue.submit("late", 9)
    queue.finish()
    assert queue.ran == [("full", 2), ("lone", 1), ("full", 2), ("late", 2), ("full", 2)]


def test_a_full_batch_does_not_wait_for_the_time_of_another(batcher):
    run, batches = Doubler(), batcher(2, timeout=3600, threads=1)
    waiting = batches.submit(("waiting",), run, rows(1))
    np.testing.assert_array_equal(batches.submit(("full",), run, rows(2, 3)).result(30)["y"], [4, 6])
    assert not waiting.done()


def test_tasks_that_cannot_be_joined_are_run_alone(batcher, monkeypatch):
    def fail(arrays):
        raise MemoryError

    run, batches = Doubler(), batcher(2, timeout=3600, threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(np, "concatenate", fail)
        futures = [batches.submit(("f",), run, rows(value)) for value in (1, 2)]
        for value, future in zip((1, 2), futures, strict=True):
            np.testing.assert_array_equal(future.result(30)["y"], [2 * value])
    # the thread goes on
    np.testing.assert_array_equal(batches.submit(("f",), run, rows(3, 4)).result(30)["y"], [6, 8])


@pytest.mark.parametrize("timeout", [-1, float("inf"), float("nan")])
def test_a_timeout_that_cannot_be_waited_for(timeout):
    with pytest.raises(ValueError, match=f"timeout must be between 0 and .* received {timeout}"):
        Batcher(timeout=timeout)


def test_stopping_finishes_what_waits():
    run, batches = Doubler(), Batcher(4, timeout=3600)
    waiting = batches.submit(("f",), run, rows(1))
    batches.stop()
    np.testing.assert_array_equal(waiting.result(0)["y"], [2])
    with pytest.raises(ServingError, match="stopping") as refused:
        batches.submit(("f",), run, rows(1))
    assert refused.value.code == "UNAVAILABLE"


def test_many_threads_each_get_their_own_rows(batcher):
    run, batches, wrong = Doubler(), batcher(5, timeout=0.001, threads=3), []

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            values = rng.integers(0, 1000, rng.integers(1, 6))
            got = batches.submit(("f",), run, rows(*values)).result(30)
            if not np.array_equal(got["y"], 2 * values) or len(got["rows"]) != len(values):
                wrong.append(values)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(len(batch) for batch in run.batches) <= 5
    # 480 requests, fewer runs: some were joined
    assert len(run.batches) < 480
