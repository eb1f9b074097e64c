"""The SavedModel as TF Serving takes it: through TensorFlow's C++ loader into a session, by the tensors' names."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import kernels

from tests.export.small import EXPONENTS, SERVABLE, operations, random_images, session_of


@pytest.fixture(scope="module")
def session(exported):
    with session_of(exported) as call:
        yield call


def compared(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_each_signature_answers_as_the_loaded_model_does(session, exported):
    signatures = tf.saved_model.load(exported).signatures
    images, p_star = random_images((64, 80), 4), np.float32(EXPONENTS)
    expected = signatures["serving_default"](images=tf.constant(images), p_star=tf.constant(p_star))
    compared(session("serving_default", images=images, p_star=p_star), expected)

    files = [tf.io.encode_png(image.astype(np.uint8)).numpy() for image in (*images, random_images((96, 48), 5)[0])]
    resolution, p_star = np.int32([0, 64, 48, 64]), np.float32([0, 1, 3, 0])
    expected = signatures["encoded"](
        image_bytes=tf.constant(files), resolution=tf.constant(resolution), p_star=tf.constant(p_star)
    )
    compared(session("encoded", image_bytes=files, resolution=resolution, p_star=p_star), expected)

    embedding = expected["embedding"].numpy()
    expected = signatures["classify_embedding"](embedding=tf.constant(embedding))
    compared(session("classify_embedding", embedding=embedding), expected)


def test_a_refusal_reaches_the_caller(session):
    with pytest.raises(tf.errors.InvalidArgumentError, match="photo 0: not a JPEG"):
        session("encoded", image_bytes=[b"nothing"], resolution=np.int32([0]), p_star=np.float32([0]))


def test_every_operation_is_one_that_tf_serving_links(exported):
    proto = SavedModel.FromString((exported / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    found = set(operations(graph.graph_def))
    assert {"Conv2D", "DecodeImage", "ScaleAndTranslate"} <= found, "it looked into the functions"
    assert found <= SERVABLE, sorted(found - SERVABLE)
    signatures = {"serving_default", "encoded", "classify_embedding"}
    assert set(graph.signature_def) == {*signatures, "__saved_model_init_op"}
    assert not list(exported.rglob("keras_metadata*"))


def test_the_list_holds_tensorflows_own_operations_that_run_on_cpus():
    # those that the runtime replaces before it runs a graph have no kernel of their own
    replaced = {"StatefulPartitionedCall", "PartitionedCall"}
    for operation in SERVABLE - replaced:
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(operation).kernel}
        assert devices & {"CPU", "DEFAULT"}, operation
        assert ">" not in operation
        assert "PyFunc" not in operation
