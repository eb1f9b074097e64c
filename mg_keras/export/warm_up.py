"""Warm-up requests: what TF Serving runs through a new version before it takes over, so that no user waits for it.

They lie in `assets.extra/tf_serving_warmup_requests`, a TFRecord file of `tensorflow.serving.PredictionLog`. Those
messages are a few length-prefixed fields around TensorFlow's own `TensorProto`, so they are written here without the
tensorflow-serving-api package, which only a client needs.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

PLACE = Path("assets.extra", "tf_serving_warmup_requests")


def write_requests(path: str | os.PathLike, requests: Iterable[bytes]) -> None:
    """Write requests, as `prediction_log` gives them, to the file `path`; TF Serving reads at most 1000."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(os.fspath(path)) as file:
        for request in requests:
            file.write(request)


def model_requests(resolutions: Iterable[int], embedding_size: int) -> list[bytes]:
    """One request for each signature of an exported model, and for each resolution where it takes photos.

    Args:
        resolutions: pixels.
        embedding_size: D.

    Returns:
        Serialized `PredictionLog` messages, a few hundred bytes each.
    """
    proto = tf.make_tensor_proto
    # a value that stands once counts for all places of a tensor
    stored = proto(0.1, shape=[1, embedding_size])
    requests = [prediction_log("classify_embedding", {"embedding": stored})]
    for size in resolutions:
        images = proto(128.0, shape=[1, size, size, 3])
        grey = tf.io.encode_jpeg(tf.fill([size * 3 // 4, size, 3], tf.constant(128, tf.uint8)))
        requests += [
            prediction_log("serving_default", {"images": images, "p_star": proto([3.0])}),
            prediction_log(
                "encoded",
                {"image_bytes": proto([grey.numpy()]), "resolution": proto([size]), "p_star": proto([0.0])},
            ),
        ]
    return requests


def prediction_log(signature: str, inputs: Mapping[str, Any]) -> bytes:
    """A serialized `PredictionLog` that calls `signature` with `inputs`: name -> what `tf.make_tensor_proto` gives."""
    spec = _field(3, signature.encode())  # ModelSpec.signature_name; TF Serving asks its own model
    request = _field(1, spec)  # PredictRequest.model_spec
    for name, tensor in inputs.items():
        # PredictRequest.inputs, a map: pairs of key and value
        request += _field(2, _field(1, name.encode()) + _field(2, tensor.SerializeToString()))
    # PredictionLog.predict_log, PredictLog.request
    return _field(6, _field(1, request))


def _field(number: int, content: bytes) -> bytes:
    """A length-prefixed field of a protocol buffers message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set on all but the last."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
