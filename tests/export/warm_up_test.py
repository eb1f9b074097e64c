import numpy as np
import pytest
import tensorflow as tf

from mg_keras.export import warm_up
from mg_keras.export.saved_model import export_saved_model
from tests.export.small import METADATA, P_STAR

SIGNATURES = {
    "serving_default": {"images", "p_star"},
    "encoded": {"image_bytes", "resolution", "p_star"},
    "classify_embedding": {"embedding"},
}


def fields(message):
    """(number, content) of each field of a protocol buffers message of length-prefixed fields: the wire format."""

    def number(place):
        value, shift = 0, 0
        while True:
            byte = message[place]
            value |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                return value, place

    place = 0
    while place < len(message):
        key, place = number(place)
        assert key & 7 == 2
        length, place = number(place)
        yield key >> 3, message[place : place + length]
        place += length


def only(message, wanted):
    ((number, content),) = fields(message)
    assert number == wanted
    return content


def parsed(record):
    """(signature, inputs) of a serialized PredictionLog."""
    request = list(fields(only(only(record, 6), 1)))
    signature = only(request[0][1], 3).decode()
    inputs = {}
    for number, entry in request[1:]:
        assert number == 2
        (_, name), (_, tensor) = fields(entry)
        proto = tf.make_tensor_proto(0.0)
        proto.ParseFromString(tensor)
        inputs[name.decode()] = tf.make_ndarray(proto)
    return signature, inputs


@pytest.mark.slow
def test_an_export_brings_requests_that_it_can_answer(exported):
    records = list(tf.data.TFRecordDataset(str(exported / warm_up.PLACE)).as_numpy_iterator())
    loaded = tf.saved_model.load(exported)
    seen = []
    for signature, inputs in map(parsed, records):
        assert set(inputs) == SIGNATURES[signature]
        answer = loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        assert np.isfinite(answer["logits"]).all()
        if signature == "serving_default":
            seen.append(inputs["images"].shape[1:3])
    # the training resolution and those of the table
    assert seen == [(size, size) for size in sorted({48, *P_STAR})]
    assert len(records) == 1 + 2 * len(seen)
    assert sum(map(len, records)) < 10_000, "no image is written out value by value"


@pytest.mark.slow
def test_what_the_model_would_refuse_is_no_request(model, tmp_path):
    # of more pixels than encoded takes, though an exponent was chosen for it
    path = export_saved_model(model, None, tmp_path, metadata={**METADATA, "p_star": {64: 2.5, 2400: 5.0}})
    records = tf.data.TFRecordDataset(str(path / warm_up.PLACE)).as_numpy_iterator()
    asked = [inputs["resolution"].tolist() for signature, inputs in map(parsed, records) if signature == "encoded"]
    assert asked == [[48], [64]]
    loaded = tf.saved_model.load(path)
    grey = tf.io.encode_jpeg(tf.fill([1800, 2400, 3], tf.constant(128, tf.uint8)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="ask for a lower resolution"):
        loaded.signatures["encoded"](image_bytes=grey[None], resolution=tf.constant([2400]), p_star=tf.constant([0.0]))


def test_the_messages_are_those_of_tf_serving():
    prediction_log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    for record in warm_up.model_requests([224, 500], 2049):
        signature, inputs = parsed(record)
        found, expected = prediction_log.PredictionLog.FromString(record), prediction_log.PredictionLog()
        expected.predict_log.request.model_spec.signature_name = signature
        for name, value in inputs.items():
            proto = found.predict_log.request.inputs[name]
            np.testing.assert_array_equal(tf.make_ndarray(proto), value)
            expected.predict_log.request.inputs[name].CopyFrom(proto)
        # and holds nothing besides
        assert found == expected


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_lengths_of_any_size(length):
    contents = b"x" * length
    record = warm_up.prediction_log("encoded", {"image_bytes": tf.make_tensor_proto([contents])})
    assert parsed(record)[1]["image_bytes"].tolist() == [contents]
