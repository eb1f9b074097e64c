"""Dynamic batching: requests that fit together wait a few milliseconds for each other and run as one."""

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from mg_keras.serving.codes import ServingError

Arrays = Mapping[str, np.ndarray]


@dataclass
class _Task:
    inputs: Arrays
    rows: int
    future: Future


@dataclass
class _Group:
    """Tasks that run as one."""

    key: tuple
    run: Callable[[Arrays], Arrays]
    deadline: float
    tasks: list[_Task] = field(default_factory=list)
    rows: int = 0
    closed: bool = False


class Batcher:
    """Joins tasks of one function whose inputs have the same dtypes and, but for the first dimension, the same shapes.

    A joint batch runs when it holds `max_batch_size` rows or its first task has waited `timeout` seconds. Of several
    such batches, the one whose first task came first runs first, so none waits for ever. If a batch fails, each of its
    tasks runs alone, so that the one at fault fails and the others don't.

    Args:
        max_batch_size: int >= 1, rows in a batch. A task has no more than that.
        timeout: float >= 0, seconds; 0 joins nothing but what waits for a free thread.
        threads: int >= 1, batches that run at the same time.

    Raises:
        ValueError: a timeout that cannot be waited for.
    """

    def __init__(self, max_batch_size: int = 16, timeout: float = 0.002, threads: int = 2):
        if not 0 <= timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout must be between 0 and {threading.TIMEOUT_MAX} seconds, received {timeout}")
        self.max_batch_size = max_batch_size
        self._timeout = timeout
        # in the order of their first tasks, and so of their deadlines, since all wait equally long
        self._waiting: list[_Group] = []
        # those of them that take further tasks
        self._open: dict[tuple, _Group] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, name=f"batch_{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: tuple, run: Callable[[Arrays], Arrays], inputs: Arrays) -> Future:
        """Have `run(inputs)` done, alone or together with others of the same `function`.

        Args:
            function: what tells functions apart; `run` must be the same for the same `function`.
            run: arrays to arrays, row by row; raises `ServingError`.
            inputs: {name: array [B, ...]}, 1 <= B <= max_batch_size, B the same for all.

        Returns:
            A Future of {name: array [B, ...]}.

        Raises:
            ServingError: INVALID_ARGUMENT for more rows than a batch takes; UNAVAILABLE after `stop`.
        """
        rows = len(next(iter(inputs.values())))
        if rows > self.max_batch_size:
            raise ServingError(
                "INVALID_ARGUMENT", f"Task size {rows} is larger than maximum input batch size {self.max_batch_size}"
            )
        task = _Task(inputs, rows, Future())
        key = (function, *((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items())))
        with self._changed:
            if self._stopping:
                raise ServingError("UNAVAILABLE", "the server is stopping")
            group = self._open.get(key)
            if group is not None and group.rows + rows > self.max_batch_size:
                self._close(key)
                group = None
            if group is None:
                group = self._open[key] = _Group(key, run, time.monotonic() + self._timeout)
                self._waiting.append(group)
            group.tasks.append(task)
            group.rows += rows
            if group.rows == self.max_batch_size:
                self._close(key)
            # all: the one woken could be the one that waits for another group's deadline
            self._changed.notify_all()
        return task.future

    def stop(self) -> None:
        """Finish what was submitted, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _close(self, key: tuple) -> None:
        self._open.pop(key).closed = True

    def _work(self) -> None:
        while (group := self._next()) is not None:
            # a task whose caller has given up is cancelled
            tasks = [task for task in group.tasks if task.future.set_running_or_notify_cancel()]
            _run(group.run, tasks)

    def _next(self) -> _Group | None:
        with self._changed:
            while True:
                now = time.monotonic()
                for place, group in enumerate(self._waiting):
                    if group.closed or group.deadline <= now or self._stopping:
                        if not group.closed:
                            self._close(group.key)
                        return self._waiting.pop(place)
                if self._stopping:
                    return None
                self._changed.wait(self._waiting[0].deadline - now if self._waiting else None)


def _run(run: Callable[[Arrays], Arrays], tasks: list[_Task]) -> None:
    """Answer the tasks together, or one by one if that fails."""
    if not tasks:
        return
    # all but the answering itself: what escaped from here would end the thread and leave the tasks without an answer
    try:
        answers = _answers(run, tasks)
    except Exception as error:
        if len(tasks) == 1:
            tasks[0].future.set_exception(error)
            return
        for task in tasks:
            _run(run, [task])
        return
    for task, answer in zip(tasks, answers, strict=True):
        task.future.set_result(answer)


def _answers(run: Callable[[Arrays], Arrays], tasks: list[_Task]) -> list[Arrays]:
    """What one run gives for each of the tasks."""
    if len(tasks) == 1:
        inputs = tasks[0].inputs
    else:
        inputs = {name: np.concatenate([task.inputs[name] for task in tasks]) for name in tasks[0].inputs}
    rows = sum(task.rows for task in tasks)
    outputs = run(inputs)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ServingError("FAILED_PRECONDITION", f"output {name} has shape {array.shape} for {rows} rows")
    ends = itertools.accumulate(task.rows for task in tasks)
    return [
        {name: array[end - task.rows : end] for name, array in outputs.items()}
        for task, end in zip(tasks, ends, strict=True)
    ]
