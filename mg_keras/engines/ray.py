"""Photos described on a Ray cluster, or on this machine's cores by Ray: workers that stay, and may vanish.

Each worker is an actor with the SavedModel, which comes through Ray's object store, so that machines need share no
disk; rows come back to this process, which alone writes. A worker that is lost is not waited for: its pieces go to
those that are there, and another one is asked for, which starts when a machine has room.
"""

import contextlib
import math
import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mg_keras.embedding.settings import Settings
from mg_keras.embedding.work import Piece
from mg_keras.engines.contract import Engine
from mg_keras.errors import UserError
from mg_keras.export.files import ExportedFiles

# of a worker: while one piece runs through the network, photos of the next are decoded
_AT_ONCE = 2
_CPUS_A_WORKER = 2
# a piece that has lost its worker so often is to blame
_TRIES = 5
# seconds between two looks at which machines there are, and after which it is said that none has room
_LOOK, _SAY = 10.0, 60.0
# for which a cluster may leave a connection unanswered
_PATIENCE = 10.0
_OBJECT_STORE_BYTES = 1 << 30


class Ray(Engine):
    """An engine of actors on a Ray cluster.

    Machines that join meanwhile get workers too.

    Args:
        files: the SavedModel.
        settings: how photos are described; without a whitening, as the model has its own.
        address: of the cluster, such as `auto` or `10.0.0.1:6379`; None: what RAY_ADDRESS says, else a cluster of this
            machine's cores, for as long as this lasts.
        workers: how many; None: as many as there is room for.
        cpus: cores that a worker reserves and uses; None: two, or one where no machine has two.
        gpus: GPUs that a worker reserves; a part of one is shared with others.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(
        self,
        files: ExportedFiles,
        settings: Settings,
        address: str | None = None,
        workers: int | None = None,
        cpus: int | None = None,
        gpus: float = 0.0,
    ):
        # no messages to elsewhere unless somebody wants them
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError(
                f'{error}: pip install "mg-keras[ray]" (in a checkout: -e ".[ray]") brings what it needs'
            ) from error
        self._ray, self._files, self._settings = ray, files, settings
        self._address = address or os.environ.get("RAY_ADDRESS")
        self._limit, self._cpus, self._gpus = workers, cpus, gpus
        self.made_from = settings.made_from(files.fingerprint(), files.precision)
        self.dimensions = files.about["embedding_size"]
        self._crew: dict[Any, int] = {}
        self._starting: dict[Any, Any] = {}
        self._started = False
        # when it was looked for machines, and when there was a worker or it was said that there is none
        self._looked, self._seen = -math.inf, math.inf

    def start(self) -> None:
        """Joins the cluster, or makes one, and has the first worker ready."""
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address:
                _check_listens(self._address)
                self._ray.init(address=self._address, **quiet)
            else:
                self._ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            what = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"no Ray cluster at {self._address or 'this machine'}: {what[0]}") from error
        self._started, self._seen = True, time.monotonic()
        self._cpus = self._cpus or min(
            _CPUS_A_WORKER, max([1, *(int(each.get("CPU", 0)) for each in self._machines())])
        )
        model = {
            str(path.relative_to(self._files.path)): path.read_bytes()
            for path in self._files.path.rglob("*")
            if path.is_file()
        }
        self._model = self._ray.put(model)
        self._worker = self._ray.remote(_Worker).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0, max_concurrency=_AT_ONCE
        )
        if not self._room() and not self._limit:
            raise UserError(f"no machine of the Ray cluster has {self._needs()}: see --cpus_a_worker, --gpus_a_worker")
        while not self._crew:
            self._ready({})

    def close(self) -> None:
        """Leaves the cluster; its workers end."""
        if self._started:
            self._crew, self._starting, self._started = {}, {}, False
            self._ray.shutdown()

    def rows(self, pieces: Iterator[Piece], columns: pa.Schema, counted: Callable[[int], None]) -> Iterator[pa.Table]:
        """As `Engine.rows`."""
        ray = self._ray
        # reference of the rows -> (worker, piece); pieces that have lost their worker, and how often
        under_way, again, lost, given_up = {}, deque(), {}, []
        try:
            while True:
                self._give(pieces, again, columns, under_way)
                if not under_way and not again:
                    if (piece := next(pieces, None)) is None:
                        break
                    again.append(piece)
                for reference in self._ready(under_way):
                    worker, piece = under_way.pop(reference)
                    try:
                        rows = ray.get(reference)
                    except _lost(ray) as error:
                        self._dismiss(worker)
                        place = int(piece.ids[0])
                        lost[place] = lost.get(place, 0) + 1
                        if lost[place] < _TRIES:
                            again.append(piece)
                        else:
                            given_up.append((piece, error))
                        continue
                    if worker in self._crew:
                        self._crew[worker] -= 1
                    counted(len(piece.ids))
                    yield rows
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from error
        except ray.exceptions.RayError as error:
            what = f"the Ray cluster is lost: {_line(error)}"
            raise UserError(f"{what}; the same command goes on where it was") from error
        if given_up:
            piece, error = given_up[0]
            raise UserError(
                f"{len(given_up)} pieces ended their workers {_TRIES} times, the first with {len(piece.photos)} photos "
                f"from {piece.photos[0].uri} on: {_line(error)}; all others are described"
            ) from error

    def _give(self, pieces, again, columns, under_way):
        """Gives work to all who have room for it, those with least first."""
        for load in range(_AT_ONCE):
            for worker in [worker for worker, known in self._crew.items() if known == load]:
                piece = again.popleft() if again else next(pieces, None)
                if piece is None:
                    return
                self._crew[worker] += 1
                under_way[worker.rows.remote(piece, columns)] = worker, piece

    def _ready(self, under_way):
        """Which of the rows under way are there, after seconds at most; workers join the crew meanwhile."""
        now = time.monotonic()
        if now - self._looked > _LOOK:
            self._looked = now
            self._hire()
        if self._crew:
            self._seen = now
        elif now - self._seen > _SAY:
            self._seen = now
            print(f"waiting for a worker of {self._needs()}", file=sys.stderr, flush=True)
        if not under_way and not self._starting:
            # all are gone, and no machine has room for another one yet
            time.sleep(_LOOK / 2)
            return []
        ready, _ = self._ray.wait([*under_way, *self._starting], timeout=_LOOK / 2)
        self._meet([each for each in ready if each in self._starting])
        return [each for each in ready if each in under_way]

    def _machines(self):
        """The resources of each machine that is there."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _room(self):
        """For how many workers there is room on all machines, were they empty."""

        def on(machine):
            rooms = [machine.get("CPU", 0) // self._cpus]
            if self._gpus:
                rooms.append(machine.get("GPU", 0) // self._gpus)
            return int(min(rooms))

        return sum(map(on, self._machines()))

    def _needs(self):
        return f"{self._cpus:g} CPUs" + (f" and {self._gpus:g} GPUs" if self._gpus else "")

    def _hire(self):
        """Asks for the workers that are missing; each starts when a machine has room for it."""
        wanted = self._limit or self._room()
        while len(self._crew) + len(self._starting) < wanted:
            worker = self._worker.remote(self._model, self._settings, self._cpus, self._gpus)
            self._starting[worker.ready.remote()] = worker

    def _meet(self, ready):
        """Takes workers that are ready into the crew."""
        for reference in ready:
            worker = self._starting.pop(reference)
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                # one whose machine is gone is replaced; one that can't be made will not be made elsewhere
                if getattr(error, "actor_init_failed", False):
                    raise UserError(f"a worker can't start: {_line(error)}") from error
            else:
                self._crew[worker] = 0

    def _dismiss(self, worker):
        if self._crew.pop(worker, None) is not None:
            self._looked = -math.inf
            with contextlib.suppress(Exception):
                self._ray.kill(worker)


def _check_listens(address):
    """Raises an OSError where nobody listens: Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


class _Worker:
    """The SavedModel on a machine of the cluster."""

    def __init__(self, model, settings, cpus, gpus):
        from mg_keras.quiet import import_tensorflow

        import_tensorflow()
        import tensorflow as tf

        from mg_keras.embedding.describer import Describer
        from mg_keras.export.opened import Exported

        # TensorFlow would count the machine's cores
        tf.config.threading.set_intra_op_parallelism_threads(cpus)
        tf.config.threading.set_inter_op_parallelism_threads(cpus)
        for device in tf.config.list_physical_devices("GPU") if gpus else ():
            tf.config.experimental.set_memory_growth(device, True)
        with tempfile.TemporaryDirectory(prefix="mg-keras-") as folder:
            for name, contents in model.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents)
            self._describer = Describer(Exported.load(folder), settings)

    def ready(self):
        return True

    def rows(self, piece, columns):
        return self._describer.rows(piece, columns)


def _lost(ray):
    """What says that a worker, its machine, or the rows that lay there are gone."""
    found = ray.exceptions
    return (
        found.RayActorError,
        found.WorkerCrashedError,
        found.ObjectLostError,
        found.NodeDiedError,
        found.OutOfMemoryError,
    )


def _line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # of an error on the way, Ray tells the trace first
    return lines[-1] if lines else type(error).__name__
