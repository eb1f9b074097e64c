"""Several servers of one model: work is spread over them, and goes on as long as one is there."""

import itertools
import socket
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from mg_keras.serving.client import Client, GrpcClient, RestClient
from mg_keras.serving.codes import ServingError

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")

# what another server, or the same one later, may answer
_PASSES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "ABORTED")
# a request that was handed on so often, for longer than all servers may be away, is to blame
_TRIES = 10
# of a client: quick, since another server may be there
_RETRIES = 2
# seconds between two questions whether a server is back, and between two looks at who has a name
_WAITS = (0.2, 0.5, 1.0, 2.0, 5.0)
_LOOK = 30.0


def addresses(server: str) -> list[str]:
    """The addresses of a server, one for each machine that has its name.

    Args:
        server: `HOST:PORT` of gRPC (`dns:///HOST:PORT` as well), or `http://HOST:PORT` of REST; a name behind https has
            one, since its certificate is for the name.

    Raises:
        ServingError: nobody has the name.
        ValueError: it is none of these.

    Example:
        >>> addresses("127.0.0.1:8500"), addresses("http://127.0.0.1:8501")
        (['127.0.0.1:8500'], ['http://127.0.0.1:8501'])
    """
    if server.startswith("https://"):
        return [server]
    scheme = "http://" if server.startswith("http://") else ""
    url = urllib.parse.urlsplit("//" + server.removeprefix("dns:///").removeprefix("http://"))
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ValueError(f"a server must be HOST:PORT or http://HOST:PORT, received {server!r}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServingError("UNAVAILABLE", f"{host}: {error.strerror or error}") from error
    # a machine may have two addresses, one of each kind
    kind = min(family for family, *_ in found)
    hosts = sorted({place[0] for family, *_, place in found if family == kind})
    return [f"{scheme}{f'[{host}]' if ':' in host else host}:{port}{url.path}" for host in hosts]


class Servers:
    """Servers of one model; each has as many requests under way as it may, and takes the next when it has answered.

    So a slow server gets less work, and one that is away none until it is back. Names are looked up again every half a
    minute: servers that were added are asked too. Use as a context manager.

    Args:
        servers: as `addresses` takes them.
        in_flight: requests under way at a server.
        patience: seconds for which all servers may be away or too busy.
        keywords: of `mg_keras.serving.client.Client`, such as `name` and `version`.

    Raises:
        ServingError: nobody has one of the names.
        ValueError: a server that is none, or a keyword out of its range.
    """

    def __init__(self, servers: Sequence[str], in_flight: int = 4, patience: float = 60.0, **keywords: Any):
        self._names, self._in_flight, self._patience = list(servers), in_flight, patience
        self._keywords = {"retries": _RETRIES, **keywords}
        # address -> client, and since when those that are away are
        self._clients: dict[str, Client] = {}
        self._away: dict[str, float] = {}
        self._look(first=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        for client in self._clients.values():
            client.close()

    def answers(
        self, requests: Iterable[_Request], ask: Callable[[Client, _Request], _Answer]
    ) -> Iterator[tuple[_Request, _Answer]]:
        """Asks the servers, several at the same time.

        Args:
            requests: taken as servers have room for them, from any thread, though one at a time.
            ask: what a client is to do with a request, from any thread. A `ServingError` that may pass hands the
                request to another server.

        Yields:
            (request, answer) in any order; as many as are under way may wait to be taken, no more.

        Raises:
            ServingError: a request was refused, or all servers are away, or too busy for one, for longer than
                `patience`.
        """
        feed, threads = _Feed(requests, room=self._in_flight), []
        # who was away the last time has the same patience again
        self._away.clear()

        def work(address):
            client = self._clients[address]
            while (taken := feed.take()) is not None:
                request, tries, since = taken
                try:
                    answer = ask(client, request)
                except ServingError as error:
                    late = tries + 1 >= _TRIES and time.monotonic() - since > self._patience
                    if error.code not in _PASSES or late or error.http_status == 413:
                        feed.fail(error)
                        return
                    feed.give_back(request, tries + 1, since)
                    if not self._is_back(address, error, feed):
                        return
                except BaseException as error:
                    feed.fail(error)
                    return
                else:
                    self._away.pop(address, None)
                    feed.answer(request, answer)

        def start(new):
            for address in new:
                for _ in range(self._in_flight):
                    threads.append(threading.Thread(target=work, args=(address,), name=f"ask {address}", daemon=True))
                    threads[-1].start()

        start(self._clients)
        looked = time.monotonic()
        try:
            while True:
                # however fast answers come: that is when more servers are added
                if time.monotonic() - looked > _LOOK:
                    looked = time.monotonic()
                    start(self._look())
                if (answered := feed.answered(seconds=1.0)) is not None:
                    yield answered
                elif feed.failure:
                    raise feed.failure
                elif feed.finished:
                    return
        finally:
            feed.stop()
            for thread in threads:
                thread.join(self._patience)

    def _look(self, first=False):
        """Opens clients of the addresses that are new, and returns these."""
        new = []
        for name in self._names:
            try:
                found = addresses(name)
            except ServingError:
                # a name server that is away for a moment
                if first:
                    self.close()
                    raise
                continue
            new += [address for address in found if address not in self._clients and address not in new]
        for address in new:
            kind = RestClient if address.startswith(("http://", "https://")) else GrpcClient
            self._clients[address] = kind(address, **self._keywords)
        return new

    def _is_back(self, address, error, feed):
        """Waits until a server is there; False: there is nothing left to do, or it is for nobody to do."""
        self._away.setdefault(address, time.monotonic())
        for seconds in itertools.chain(_WAITS, itertools.repeat(_WAITS[-1])):
            if feed.wait(seconds):
                return False
            if error.code == "RESOURCE_EXHAUSTED":
                # it is there, and has enough to do
                self._away.pop(address, None)
                return True
            try:
                if "AVAILABLE" in self._clients[address].status().values():
                    self._away.pop(address, None)
                    return True
            except ServingError as found:
                error = found
            since = [self._away.get(each) for each in list(self._clients)]
            if None not in since and time.monotonic() - max(since) > self._patience:
                what = "the server is" if len(since) == 1 else f"all {len(since)} servers are"
                why = error.args[0].removeprefix(f"{address}: ")
                feed.fail(ServingError("UNAVAILABLE", f"{what} away: {address}: {why}"))
                return False
        raise AssertionError("unreachable")


class _Feed:
    """Requests for several threads, each of which may hand one back, and their answers, of which `room` may wait."""

    def __init__(self, requests, room):
        self._requests, self._back = iter(requests), deque()
        self._answers, self._room = deque(), room
        # whether a thread is at the requests, which may take their time
        self._reading = False
        self._changed, self._under_way, self._exhausted = threading.Condition(), 0, False
        self.failure, self.stopped = None, False

    @property
    def finished(self):
        with self._changed:
            return self._no_more() and not self._answers

    def _no_more(self):
        return self._exhausted and not self._back and not self._under_way

    def take(self):
        """(request, how often it was handed back, when it was first taken); None: there is none any more."""
        with self._changed:
            while not self.stopped:
                if self._back:
                    self._under_way += 1
                    return self._back.popleft()
                if not self._exhausted and not self._reading:
                    taken = self._read()
                    if taken and not self.stopped:
                        self._under_way += 1
                        return taken
                elif self._exhausted and not self._under_way:
                    self._changed.notify_all()
                    return None
                else:
                    # one that is under way may come back
                    self._changed.wait()
            return None

    def _read(self):
        """The next request, as `take` returns it; None: there is none. Answers come and go meanwhile."""
        self._reading = True
        self._changed.release()
        try:
            taken, failure = (next(self._requests), 0, time.monotonic()), None
        except StopIteration:
            taken, failure = None, None
        except BaseException as error:
            taken, failure = None, error
        self._changed.acquire()
        self._reading = False
        self._exhausted = taken is None
        if failure:
            self._fail(failure)
        self._changed.notify_all()
        return taken

    def give_back(self, request, tries, since):
        with self._changed:
            self._under_way -= 1
            self._back.append((request, tries, since))
            self._changed.notify_all()

    def answer(self, request, answer):
        """Waits until there is room."""
        with self._changed:
            while len(self._answers) >= self._room and not self.stopped:
                self._changed.wait()
            self._answers.append((request, answer))
            self._under_way -= 1
            self._changed.notify_all()

    def answered(self, seconds):
        """(request, answer); None: there was none for so many seconds, or there will be none any more."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self._answers:
                left = until - time.monotonic()
                if self.failure or self._no_more() or left <= 0:
                    return None
                self._changed.wait(left)
            self._changed.notify_all()
            return self._answers.popleft()

    def wait(self, seconds):
        """Whether there is nothing left to do after so many seconds."""
        until = time.monotonic() + seconds
        with self._changed:
            while not self.stopped and (left := until - time.monotonic()) > 0:
                if self._no_more():
                    return True
                self._changed.wait(left)
            return self.stopped

    def fail(self, error):
        with self._changed:
            self._fail(error)

    def _fail(self, error):
        self.failure = self.failure or error
        self.stopped = True
        self._changed.notify_all()

    def stop(self):
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
