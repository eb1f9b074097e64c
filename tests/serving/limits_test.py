"""What the local server adds to TF Serving's refusals: nothing a request says makes it spend much memory or time."""

import http.client
import json
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from mg_keras.serving import rest_format
from mg_keras.serving.client import GrpcClient, RestClient
from mg_keras.serving.codes import ServingError
from mg_keras.serving.service import Limits
from tests.serving import stand_in
from tests.serving.conftest import MAX_REQUEST_BYTES, local_server
from tests.serving.errors_test import assert_it_goes_on, send

PREDICT = "/v1/models/multigrain:predict"
ENCODED = b'{"signature_name": "encoded", "inputs": {"image_bytes": %b, "resolution": 0, "p_star": 0}}'


@pytest.fixture(scope="module")
def local(model):
    with local_server(model) as running:
        yield running


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b" " * (MAX_REQUEST_BYTES + 1), 413, "more than the 2097152 allowed"),
        # so much more that the refusal is sent before the body has arrived
        (b" " * (20 * MAX_REQUEST_BYTES), 413, "more than the 2097152 allowed"),
        (b'{"inputs": ' + b"[" * 150_000, 400, "nested too deeply"),
        (b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "."),
        (ENCODED % (b"[" * 450 + b'"a"' + b"]" * 450), 400, "input image_bytes: its lists are nested too deeply"),
        (ENCODED % (b"[" * 65 + b'"a"' + b"]" * 65), 400, "input image_bytes: its lists are nested too deeply"),
        (b'{"inputs": [' + b"1," * 300_000 + b"1]}", 400, "more than 200000 elements"),
    ],
    ids=["large", "very large", "deep", "rather deep", "deep strings", "strings of many dimensions", "many elements"],
)
def test_rest_bodies(local, body, status, message):
    got, error = send(local, "POST", PREDICT, body)
    assert got == status
    assert error
    assert message in error or message == "."
    assert_it_goes_on(local)


def test_an_input_that_the_signature_does_not_have(local):
    # TF Serving refuses it by gRPC and in row format, and passes over it in this one
    body = json.dumps({"signature_name": "classify_embedding", "inputs": {"embedding": [[1, 2, 3, 4]], "more": [1]}})
    status, error = send(local, "POST", PREDICT, body)
    assert status == 400
    assert "more" in error
    assert_it_goes_on(local)


def test_a_body_of_unknown_length(local):
    body = json.dumps({"signature_name": "classify_embedding", "inputs": [[1, 2, 3, 4]]}).encode()
    # http.client sends it in chunks
    assert send(local, "POST", PREDICT, iter([body[:9], body[9:]])) == (200, None)
    status, error = send(local, "POST", PREDICT, iter([b" " * MAX_REQUEST_BYTES, body]))
    assert status == 413
    assert "more than the 2097152" in error
    assert_it_goes_on(local)


def test_a_client_that_waits_to_be_asked_for_its_body(local):
    host, port = local.rest.removeprefix("http://").split(":")
    body = json.dumps({"signature_name": "classify_embedding", "inputs": [[1, 2, 3, 4]]}).encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_in_the_middle(local):
    host, port = local.rest.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    assert_it_goes_on(local)


def test_a_large_grpc_message(local):
    with GrpcClient(local.grpc, retries=0) as client, pytest.raises(ServingError) as refused:
        client.embed([b" " * MAX_REQUEST_BYTES], 0)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert_it_goes_on(local)


@pytest.mark.parametrize(
    ("name", "tensor", "sizes"),
    [
        ("images", TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1]), (1, 10**6, 10**6, 3)),
        # few enough that they would be made, if they were taken to weigh nothing
        ("image_bytes", TensorProto(dtype=tf.string.as_datatype_enum, string_val=[b"x"]), (10**6,)),
    ],
    ids=["numbers", "strings"],
)
def test_a_small_message_that_unpacks_to_a_large_tensor(local, name, tensor, sizes):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "multigrain"
    request.model_spec.signature_name = "encoded" if name == "image_bytes" else ""
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    request.inputs[name].CopyFrom(tensor)
    request.inputs["p_star"].CopyFrom(tf.make_tensor_proto(np.float32([3])))
    with grpc.insecure_channel(local.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"input {name}: shape {list(sizes)} is not allowed, or too large" in refused.value.details()


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_more_photos_than_a_batch_takes(local, kind):
    files = [stand_in.png(stand_in.photo(0))] * 17
    make = {"rest": RestClient, "grpc": GrpcClient}[kind]
    with (
        make(getattr(local, kind), batch_size=17) as client,
        pytest.raises(ServingError, match="17 is larger") as refused,
    ):
        client.embed(files, 0)
    assert refused.value.code == "INVALID_ARGUMENT"
    with make(getattr(local, kind)) as client:
        assert len(client.embed(files, 0).classes) == 17


@pytest.mark.parametrize("kind", ["rest", "grpc"])
@pytest.mark.slow
def test_more_requests_than_there_may_be_at_once(model, kind):
    make = {"rest": RestClient, "grpc": GrpcClient}[kind]
    file = stand_in.png(stand_in.photo(0))
    # the batch waits for company, and its requests keep both places
    with local_server(model, limits=Limits(max_in_flight=2), batch_timeout=1.0) as running:
        codes = []

        def ask():
            with make(getattr(running, kind), retries=0) as client:
                try:
                    client.embed([file], 0)
                    codes.append("OK")
                except ServingError as error:
                    codes.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not codes:
            time.sleep(0.01)
        # a status is no request for the model, and told while all places are taken
        with RestClient(running.rest, retries=0) as client:
            assert client.status() == {1: "AVAILABLE"}
        assert codes == ["RESOURCE_EXHAUSTED"] * len(codes)
        for thread in threads:
            thread.join()
        assert codes.count("OK") >= 2
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}


def test_a_failure_of_the_server_is_told_there(local, monkeypatch, caplog):
    def fail(*arguments):
        raise RuntimeError("nobody thought of it")

    monkeypatch.setattr(rest_format, "tensors", fail)
    body = json.dumps({"signature_name": "classify_embedding", "inputs": [[1, 2, 3, 4]]}).encode()
    assert send(local, "POST", PREDICT, body) == (500, "the server failed; its standard error says how")
    # it is answered first
    until = time.monotonic() + 10
    while not caplog.records and time.monotonic() < until:
        time.sleep(0.01)
    (record,) = caplog.records
    assert "nobody thought of it" in str(record.exc_info[1])


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_a_request_that_takes_too_long(model, kind):
    make = {"rest": RestClient, "grpc": GrpcClient}[kind]
    with (
        local_server(model, limits=Limits(timeout=0.2), batch_timeout=30.0) as running,
        make(getattr(running, kind), timeout=20) as client,
        pytest.raises(ServingError, match=r"within 0\.2 seconds") as refused,
    ):
        client.embed([stand_in.png(stand_in.photo(0))], 0)
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_more_connections_than_there_may_be(model):
    with local_server(model, limits=Limits(max_in_flight=1)) as running:
        held = [http.client.HTTPConnection(running.rest.removeprefix("http://"), timeout=30) for _ in range(2)]
        for connection in held:
            connection.request("GET", "/v1/models/multigrain")
            assert connection.getresponse().status == 200
        with RestClient(running.rest, retries=0) as client:
            with pytest.raises(ServingError) as refused:
                client.status()
            assert refused.value.code == "UNAVAILABLE"
        held.pop().close()
        # its thread notices at its own pace
        with RestClient(running.rest, retries=20) as client:
            assert client.status() == {1: "AVAILABLE"}
        held.pop().close()


@pytest.mark.parametrize("name", ["max_request_bytes", "max_in_flight", "max_json_elements", "timeout"])
def test_limits_that_allow_nothing(name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0, received 0"):
        Limits(**{name: 0})
