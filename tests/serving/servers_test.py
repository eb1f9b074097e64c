"""Work spread over several servers, of which some are away."""

import socket
import threading
import time
from typing import ClassVar

import pytest

from mg_keras.serving import servers as module
from mg_keras.serving.codes import ServingError
from mg_keras.serving.servers import Servers, addresses


class Client:
    """A server as its client sees it: `away` or `busy`, and how much it was asked."""

    known: ClassVar[dict] = {}

    def __init__(self, address, **keywords):
        assert keywords["retries"] <= 2, "another server may be there"
        self.address, self.away, self.busy, self.asked, self.most, self.now = address, False, 0, 0, 0, 0
        self.lock = threading.Lock()
        Client.known[address] = self

    def status(self):
        if self.away:
            raise ServingError("UNAVAILABLE", "nobody listens")
        return {1: "AVAILABLE"}

    def close(self):
        pass

    def ask(self, request):
        with self.lock:
            self.asked, self.now = self.asked + 1, self.now + 1
            self.most = max(self.most, self.now)
            self.busy -= 1
            refused = self.busy >= 0
        time.sleep(0.002)
        with self.lock:
            self.now -= 1
        if refused:
            raise ServingError("RESOURCE_EXHAUSTED", "too much")
        if self.away:
            raise ServingError("UNAVAILABLE", "nobody listens")
        if request == "wrong":
            raise ServingError("INVALID_ARGUMENT", "not this one")
        return f"{request} answered"


@pytest.fixture(autouse=True)
def clients(monkeypatch):
    monkeypatch.setattr(module, "GrpcClient", Client)
    monkeypatch.setattr(module, "RestClient", Client)
    monkeypatch.setattr(module, "_WAITS", (0.01,))
    Client.known = {}
    return Client.known


def asked(client, request):
    return client.ask(request)


def test_a_name_stands_for_all_who_have_it(monkeypatch):
    def getaddrinfo(host, port, type):
        if host == "nobody":
            raise socket.gaierror(-2, "Name or service not known")
        found = {"pods": ["10.0.0.2", "10.0.0.1", "10.0.0.1"], "six": ["::1"]}[host]
        family = socket.AF_INET6 if host == "six" else socket.AF_INET
        more = [(socket.AF_INET6, type, 6, "", ("fe80::1", port, 0, 0))]
        return [(family, type, 6, "", (ip, port)) for ip in found] + more

    monkeypatch.setattr(module.socket, "getaddrinfo", getaddrinfo)
    both = ["10.0.0.1:8500", "10.0.0.2:8500"]
    assert addresses("pods:8500") == addresses("dns:///pods:8500") == both
    assert addresses("http://pods:8500") == [f"http://{each}" for each in both]
    assert addresses("six:1")[0] == "[::1]:1"
    assert addresses("https://pods/x") == ["https://pods/x"]
    with pytest.raises(ServingError, match="nobody: Name or service not known"):
        addresses("nobody:1")
    for wrong in ("pods", "", "http://pods", "pods:x"):
        with pytest.raises(ValueError, match=f"HOST:PORT or http://HOST:PORT, received '{wrong}'"):
            addresses(wrong)


def test_all_are_asked_and_no_more_is_taken_than_is_answered(clients):
    taken = []

    def requests():
        for number in range(100):
            taken.append(number)
            yield number

    with Servers(["127.0.0.1:1", "127.0.0.2:1"], in_flight=3) as servers:
        answers = servers.answers(requests(), asked)
        first = next(answers)
        time.sleep(0.1)
        assert len(taken) <= 1 + 3 + 2 * 3, "six under way, three that wait, one that was taken"
        found = [first, *answers]
    assert sorted(found) == [(number, f"{number} answered") for number in range(100)]
    assert all(client.asked > 10 and client.most <= 3 for client in clients.values())


def test_what_a_server_leaves_others_take_and_it_comes_back(clients):
    clients_of = Servers(["127.0.0.1:1", "127.0.0.2:1"])
    one, other = clients.values()
    one.busy = 2
    found = []
    for count, answer in enumerate(clients_of.answers(range(200), asked)):
        found.append(answer)
        other.away = 30 < count < 60
    assert sorted(found) == [(number, f"{number} answered") for number in range(200)]
    assert one.asked > 50
    assert other.asked > 50


def test_a_busy_server_is_waited_for_as_long_as_one_that_is_away(clients):
    with Servers(["127.0.0.1:1"], patience=60) as servers:
        (client,) = clients.values()
        client.busy = 200
        assert len(list(servers.answers(range(10), asked))) == 10
    with Servers(["127.0.0.1:1"], patience=0.05) as servers:
        (client,) = clients.values()
        client.busy = 1 << 30
        with pytest.raises(ServingError, match="too much"):
            list(servers.answers(range(10), asked))


def asking():
    """The threads that ask; other tests' servers have theirs."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ask 127.")]


def test_one_line_where_all_are_away_or_one_refuses(clients):
    with Servers(["127.0.0.1:1", "127.0.0.2:1"], patience=0.1) as servers:
        assert len(list(servers.answers(range(10), asked))) == 10
        with pytest.raises(ServingError, match="not this one"):
            list(servers.answers(["right", "wrong", "right"], asked))
        for client in clients.values():
            client.away = True
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(ServingError, match=r"all 2 servers are away: 127\.0\.0\.[12]:1: nobody listens"):
                list(servers.answers(range(10), asked))
            assert time.monotonic() - began > 0.1, "whoever was away has the same patience again"
        with pytest.raises(ZeroDivisionError):
            list(servers.answers((1 // 0 for _ in range(2)), asked))


@pytest.mark.usefixtures("clients")
def test_a_caller_that_stops_leaves_no_thread_behind():
    with Servers(["127.0.0.1:1", "127.0.0.2:1"], patience=20.0) as servers:
        answers = servers.answers(range(1000), asked)
        next(answers)
        # until they wait for room
        time.sleep(0.1)
        assert asking()
        answers.close()
        assert not asking()


def test_there_is_more_while_an_answer_waits():
    feed = module._Feed(["request"], room=1)
    assert feed.take()[0] == "request"
    feed.answer("request", "answer")
    assert feed.take() is None
    assert not feed.finished
    assert feed.answered(seconds=1.0) == ("request", "answer")
    assert feed.finished


@pytest.mark.usefixtures("clients")
def test_answers_come_while_a_request_is_made():
    """A request may wait for an answer, and the last answer comes though the requests end late."""
    answered = threading.Event()

    def requests():
        yield "first"
        assert answered.wait(20.0)
        yield "second"
        time.sleep(1.2)

    with Servers(["127.0.0.1:1"]) as servers:
        found = []
        for request, _ in servers.answers(requests(), asked):
            found.append(request)
            answered.set()
    assert found == ["first", "second"]


def test_a_server_that_was_added_is_asked_too(clients, monkeypatch):
    found = ["127.0.0.1:1"]
    monkeypatch.setattr(module, "addresses", lambda name: list(found))
    monkeypatch.setattr(module, "_LOOK", 0.0)
    with Servers(["pods:1"], in_flight=1) as servers:
        answers = servers.answers(range(300), asked)
        next(answers)
        found.append("127.0.0.2:1")
        assert len(list(answers)) == 299
    assert clients["127.0.0.2:1"].asked > 100, "though there was an answer at any time"
