"""A trunk's optimised graph in 8 bits, by TensorFlow's own operations (oneDNN's), for processors without bfloat16.

Each convolution runs, with its bias, the residual and the activation, as one operation that reads and writes 8-bit
numbers: maps are uint8, `step * (q - zero)`, with one step and one zero a map, kernels int8 with a step for each output
channel. What follows from a zero that is not 0 lies in the bias of the convolutions that read the map, which works
where they pad nothing. ReLU6 costs nothing: beyond 255 steps numbers stay 255. What can't be in 8 bits stays float32.

Rounding kernels moves the means of what they give. That is taken back in the bias, from the means of what they read
(Nagel et al., 2019, "Data-free quantization through weight equalization and bias correction"): of the error of
EfficientNet-Lite0's descriptors it leaves a third.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from mg_keras.export.optimize import CONVOLUTIONS, INPUT, Graph, as_function, constant, node_of, rewritten

INT8 = "int8"
"""The precision's name, beside `mg_keras.export.optimize.PRECISIONS`, which a SavedModel can have, too."""

_LEVELS = 255
_SIGNED_LEVELS = 127
_RELUS = ("Relu", "Relu6")


class Observed(NamedTuple):
    """What the N convolutions of a trunk's graph, in its order, read and give on photos.

    Attributes:
        means: list of N float [C], of each channel that they read.
        read: float [N, 2], the least and the largest value that they read.
        given: float [N, 2], of what they give with their bias, residual and activation.
    """

    means: list[np.ndarray]
    read: np.ndarray
    given: np.ndarray


class _Unit(NamedTuple):
    """A convolution and what runs as one operation with it: node names, in order; `residual` is another's."""

    nodes: list[str]
    bias: np.ndarray
    residual: str | None
    activation: str | None


class _Map(NamedTuple):
    """A map in 8 bits: what gives it, and the numbers `step * (q - zero)` that it stands for."""

    source: str
    step: float
    zero: int
    dtype: tf.DType


def supported() -> bool:
    """Whether this TensorFlow has the operations: those for ARM and macOS have not."""
    one = np.ones([1, 1, 1, 1], np.float32)
    nodes = [tf.compat.v1.NodeDef(name=INPUT, op="Placeholder")]
    nodes[0].attr["dtype"].type = tf.quint8.as_datatype_enum
    kernel = np.ones([1, 1, 1, 1], np.int8)
    added, _ = _convolution("tried", _Map(INPUT, 1.0, 0, tf.quint8), kernel, one.ravel(), one.ravel(), None, 1.0, {})
    try:
        with tf.Graph().as_default() as graph:
            tf.graph_util.import_graph_def(tf.compat.v1.GraphDef(node=nodes + added), name="")
            with tf.compat.v1.Session(graph=graph) as session:
                session.run("tried:0", {INPUT + ":0": np.ones([1, 1, 1, 1], np.uint8)})
    except (tf.errors.OpError, ValueError):
        return False
    return True


def observe(trunk: keras.Model, batches: Iterable[tf.Tensor]) -> Observed:
    """Runs a trunk in float32 on photos, and notes what its convolutions read and give.

    Args:
        trunk: as `mg_keras.export.optimize.optimized_trunk` takes it.
        batches: of photos as the trunk takes them, normalised, float32 [B, H, W, 3]; a few hundred photos in all.

    Returns:
        `Observed`.
    """
    graph = rewritten(trunk)
    definition = graph.definition()
    convolutions = _convolutions(graph)
    units = _units(graph)
    ends = [units[name].nodes[-1] if name in units else name for name in convolutions]
    sources = [graph.nodes[name].input[0] for name in convolutions]

    def extremes(values):
        return tf.stack([tf.reduce_min(values), tf.reduce_max(values)])

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)], autograph=False)
    def looked_at(images):
        wanted = [source if ":" in source else f"{source}:0" for source in sources + ends]
        found = tf.graph_util.import_graph_def(definition, {INPUT: images}, wanted, name="")
        read, given = found[: len(ends)], found[len(ends) :]
        means = [tf.reduce_mean(values, [0, 1, 2]) for values in read]
        return means, tf.stack([extremes(values) for values in read]), tf.stack([extremes(values) for values in given])

    count, sums, ranges = 0, [], []
    for images in batches:
        means, *extreme = looked_at(images)
        count += len(images)
        sums = [len(images) * mean.numpy() + (sums[place] if sums else 0) for place, mean in enumerate(means)]
        ranges.append(np.stack(extreme))
    if not count:
        raise ValueError("no photo to look at")
    lowest, highest = np.min(ranges, axis=0)[..., 0], np.max(ranges, axis=0)[..., 1]
    read, given = np.stack([lowest, highest], axis=-1)
    return Observed([total / count for total in sums], read, given)


def quantized_trunk(trunk: keras.Model, observed: Observed) -> Callable[[tf.Tensor], tf.Tensor | list[tf.Tensor]]:
    """A trunk as `mg_keras.export.optimize.optimized_trunk` gives it, its convolutions in 8 bits.

    Args:
        trunk: as `optimized_trunk` takes it.
        observed: of this trunk, by `observe`.

    Returns:
        As `optimized_trunk`. It runs where `supported()`.

    Raises:
        ValueError: `observed` is of another trunk.
    """
    graph = rewritten(trunk)
    channels = [_channels_read(graph, name) for name in _convolutions(graph)]
    found = [len(mean) for mean in observed.means]
    # a convolution in groups has kernels for some of the channels
    if len(found) != len(channels) or any(given % own for given, own in zip(found, channels, strict=True)):
        raise ValueError(f"{len(found)} convolutions were observed, which are not this trunk's {len(channels)}")
    return as_function(_Quantizer(graph, observed).quantized(), trunk)


def _convolutions(graph):
    """Names of the convolutions with constant kernels, in the graph's order."""
    return [
        node.name
        for node in graph.definition().node
        if node.op in CONVOLUTIONS and graph.constant_value(node.input[1]) is not None
    ]


def _channels_read(graph, name):
    return graph.constant_value(graph.nodes[name].input[1]).shape[2]


def _units(graph):
    """Convolution -> `_Unit`, of those with a bias."""
    users, outputs = graph.users(), set(map(node_of, graph.outputs))
    taken, units = set(), {}

    def following(name):
        """What alone reads a node."""
        return users[name][0] if len(users[name]) == 1 and name not in outputs else None

    for name in _convolutions(graph):
        node = following(name)
        bias = graph.constant_value(node.input[1]) if node is not None and node.op == "BiasAdd" else None
        if bias is None:
            continue
        nodes, residual, activation = [name, node.name], None, None
        node = following(node.name)
        if node is not None and node.op == "AddN" and len(node.input) == 2 and node.name not in taken:
            others = [source for source in node.input if node_of(source) != nodes[-1]]
            if len(others) == 1:
                residual = others[0]
                nodes.append(node.name)
                taken.add(node.name)
                node = following(node.name)
        if node is not None and node.op in _RELUS:
            activation = node.op
            nodes.append(node.name)
        units[name] = _Unit(nodes, bias, residual, activation)
    return units


class _Quantizer:
    """Writes a graph anew, in its order, with what can be in 8 bits."""

    def __init__(self, graph: Graph, observed: Observed):
        self.graph, self.users = graph, graph.users()
        self.outputs = set(map(node_of, graph.outputs))
        self.units = _units(graph)
        self.ends = {unit.nodes[-1]: name for name, unit in self.units.items()}
        self.within = {node for unit in self.units.values() for node in unit.nodes}
        names = _convolutions(graph)
        self.means = dict(zip(names, observed.means, strict=True))
        self.given = dict(zip(names, observed.given, strict=True))
        self.ranges = {graph.nodes[name].input[0]: pair for name, pair in zip(names, observed.read, strict=True)}
        self.nodes: dict[str, Any] = {}
        self.maps: dict[str, _Map] = {}
        self.done = set()

    def quantized(self) -> Graph:
        """The new graph."""
        for node in self.graph.definition().node:
            if node.name in self.ends:
                unit = self.units[self.ends[node.name]]
                if not self._emit(unit):
                    for name in unit.nodes:
                        self._copy(name)
                self.done.update(unit.nodes)
            elif node.name not in self.within:
                self._copy(node.name)
                self.done.add(node.name)
        for output in self.graph.outputs:
            self._floating(output.removesuffix(":0"))
        definition = tf.compat.v1.GraphDef(node=self.nodes.values(), versions=self.graph.versions)
        return Graph(definition, self.graph.outputs)

    def _copy(self, name):
        """A node as it is, in float32."""
        node = tf.compat.v1.NodeDef()
        node.CopyFrom(self.graph.nodes[name])
        for source in node.input:
            self._floating(source)
        for source in node.input:
            given = self.graph.nodes[node_of(source)]
            if given.op == "Const":
                self.nodes.setdefault(given.name, given)
        self.nodes[name] = node

    def _add(self, node):
        self.nodes[node.name] = node
        return node.name

    def _constant(self, name, value):
        return self._add(constant(name, np.asarray(value, np.float32)))

    def _floats(self, operation, name, *sources):
        """Adds an operation of float32 numbers."""
        node = tf.compat.v1.NodeDef(name=name, op=operation, input=sources)
        node.attr["T"].type = tf.float32.as_datatype_enum
        return self._add(node)

    def _floating(self, source):
        """Has what a source gives in float32 under the name that it had."""
        if source in self.nodes or source not in self.maps:
            return
        map_ = self.maps[source]
        lowest, highest = (map_.step * (level - map_.zero) for level in (0, _LEVELS))
        ranges = [self._constant(f"{source}/lowest", lowest), self._constant(f"{source}/highest", highest)]
        node = tf.compat.v1.NodeDef(name=source, op="Dequantize", input=[map_.source, *ranges])
        node.attr["T"].type, node.attr["dtype"].type = map_.dtype.as_datatype_enum, tf.float32.as_datatype_enum
        node.attr["mode"].s = b"MIN_FIRST"
        self._add(node)

    def _map(self, source):
        """A source's map in 8 bits: of what a unit gave; or else rounded from float32, of the sign that it needs."""
        if source not in self.maps:
            lowest, highest = self.ranges[source]
            dtype, levels = (tf.qint8, _SIGNED_LEVELS) if lowest < 0 else (tf.quint8, _LEVELS)
            step = max(-lowest, highest, 1e-6) / levels
            name = f"{source.replace(':', '_')}/rounded"
            # oneDNN's QuantizeV2 rounds to halves of a step first: what is rounded before, it leaves as it is
            scaled = self._floats("Mul", f"{name}/steps", source, self._constant(f"{name}/scale", 1 / step))
            whole = self._floats("Round", f"{name}/whole", scaled)
            ranges = [
                self._constant(f"{name}/lowest", -levels if lowest < 0 else 0.0),
                self._constant(f"{name}/highest", levels),
            ]
            node = tf.compat.v1.NodeDef(name=name, op="QuantizeV2", input=[whole, *ranges])
            node.attr["T"].type = dtype.as_datatype_enum
            node.attr["mode"].s, node.attr["round_mode"].s = b"SCALED", b"HALF_TO_EVEN"
            self.maps[source] = _Map(self._add(node), step, 0, dtype)
        return self.maps[source]

    def _emit(self, unit):
        """Adds a unit in 8 bits and says so; or does nothing, where it can't be."""
        name, end = unit.nodes[0], unit.nodes[-1]
        convolution = self.graph.nodes[name]
        kernel = self.graph.constant_value(convolution.input[1]).astype(np.float64)
        source, depthwise = convolution.input[0], convolution.op != "Conv2D"
        plain = set(convolution.attr["dilations"].list.i) <= {1} and convolution.attr["data_format"].s == b"NHWC"
        whole = kernel.shape[3] == 1 if depthwise else len(self.means[name]) == kernel.shape[2]
        known = source in self.maps or source in self.ranges
        if not (plain and whole and known):
            return False
        if source in self.maps and self.maps[source].zero and kernel.shape[:2] != (1, 1):
            # padding is with the number 0, which here stands for another value
            return False
        residual = unit.residual
        if residual is not None and (residual == source or not self._may_be_overwritten(residual)):
            return False
        read = self._map(source)
        axes = (0, 1, 3) if depthwise else (0, 1, 2)
        steps = np.maximum(np.abs(kernel).max(axes), 1e-12) / _SIGNED_LEVELS
        by_channel = steps[:, None] if depthwise else steps
        rounded = np.round(kernel / by_channel)
        lost = kernel - rounded * by_channel
        # what each output loses on the mean of its inputs, and what it has too much by the zero of what it reads
        mean = self.means[name].astype(np.float64)[:, None]
        bias = unit.bias + (lost * mean).sum(axes)
        if read.zero:
            bias = bias - read.step * read.zero * (rounded * by_channel).sum(axes)
        lowest, highest = self.given[name]
        lowest = 0.0 if unit.activation else min(lowest, 0.0)
        highest = max(min(highest, 6.0) if unit.activation == "Relu6" else highest, lowest + 1e-6, 1e-6)
        step = float((highest - lowest) / _LEVELS)
        zero = round(-lowest / step)
        bias = bias + step * zero
        summand, before = None, []
        if residual is not None:
            summand = self._map(residual)
            bias = bias - summand.step * summand.zero
            before = self._readers(summand.source)
        nodes, output = _convolution(
            f"{end}/in_8_bits",
            read,
            rounded.astype(np.int8),
            steps,
            bias,
            summand,
            step,
            convolution.attr,
            before,
            depthwise,
        )
        for node in nodes:
            self._add(node)
        if residual is not None:
            # its memory is the sum's now
            del self.maps[residual]
        self.maps[end] = _Map(output, step, zero, tf.quint8)
        return True

    def _may_be_overwritten(self, residual):
        """Whether a unit can add to a residual where it lies; who needs it later is given it in float32."""
        if residual not in self.maps and residual not in self.ranges:
            return False
        if self._map(residual).dtype != tf.quint8:
            return False
        later = [user for user in self.users[node_of(residual)] if user.name not in self.done]
        # itself is one of them
        if len(later) > 1 or node_of(residual) in self.outputs:
            self._floating(residual)
        # who would round it anew must know its range
        return len(later) == 1 or residual in self.ranges

    def _readers(self, source):
        """What must have run before a map is overwritten, as control inputs."""
        return [f"^{name}" for name, node in self.nodes.items() if source in map(node_of, node.input)]


def _convolution(name, read, kernel, steps, bias, summand, step, attributes, before=(), depthwise=False):
    """([NodeDef], the name) of a convolution in 8 bits: bias, residual, ReLU and rounding included."""
    inputs, types = [read.source], [read.dtype, tf.qint8, tf.float32]
    nodes = [_int8_constant(f"{name}/kernel", kernel)]

    def given(part, value):
        nodes.append(constant(f"{name}/{part}", np.asarray(value, np.float32)))
        return nodes[-1].name

    inputs += [nodes[0].name, given("bias", bias)]
    if summand:
        inputs.append(summand.source)
        types.append(summand.dtype)
    signed = read.dtype == tf.qint8
    largest = read.step * (_SIGNED_LEVELS if signed else _LEVELS)
    ranges = [
        given("read_lowest", -largest if signed else 0.0),
        given("read_highest", largest),
        given("kernel_lowest", -steps * _SIGNED_LEVELS),
        given("kernel_highest", steps * _SIGNED_LEVELS),
    ]
    if summand:
        ranges += [given("summand_lowest", 0.0), given("summand_highest", summand.step * _LEVELS)]
    ranges += [given("lowest", 0.0), given("highest", step * _LEVELS)]
    types += [tf.float32] * len(ranges)
    operation = "_FusedQuantizedDepthwiseConv2D" if depthwise else "_FusedQuantizedConv2D"
    node = tf.compat.v1.NodeDef(name=name, op=operation, input=[*inputs, *ranges, *before])
    for key in ("strides", "padding", "explicit_paddings"):
        if key in attributes:
            node.attr[key].CopyFrom(attributes[key])
    if not attributes:
        node.attr["strides"].list.i[:], node.attr["padding"].s = [1, 1, 1, 1], b"VALID"
    explicit = node.attr["explicit_paddings"].list.i
    if node.attr["padding"].s == b"EXPLICIT" and not any(explicit):
        node.attr["padding"].s = b"VALID"
        del explicit[:]
    node.attr["data_format"].s = b"NHWC"
    node.attr["is_filter_const"].b = node.attr["is_bias_const"].b = True
    fused = [b"BiasAdd", *([b"Sum"] if summand else []), b"Relu", b"Requantize"]
    node.attr["fused_ops"].list.s[:] = fused
    for key, dtype in (
        ("Tinput", read.dtype),
        ("Tfilter", tf.qint8),
        ("Tbias", tf.float32),
        ("Tsummand", tf.quint8),
        ("out_type", tf.quint8),
    ):
        node.attr[key].type = dtype.as_datatype_enum
    node.attr["Thost_inputs"].list.type[:] = [dtype.as_datatype_enum for dtype in types]
    outputs = [tf.quint8, tf.float32, tf.float32]
    node.attr["Thost_outputs"].list.type[:] = [dtype.as_datatype_enum for dtype in outputs]
    for key in ("Tdevice_inputs", "Tdevice_outputs"):
        node.attr[key].list.SetInParent()
    return [*nodes, node], name


def _int8_constant(name, values):
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.qint8.as_datatype_enum
    tensor = node.attr["value"].tensor
    tensor.dtype = tf.qint8.as_datatype_enum
    tensor.tensor_shape.CopyFrom(tf.TensorShape(values.shape).as_proto())
    tensor.tensor_content = np.ascontiguousarray(values).tobytes()
    return node
