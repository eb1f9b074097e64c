"""Times a network that describes photos: the Keras model, its exports and other runtimes, in one run on one machine.

    python -m benchmarks.inference

ResNet-50 with GeM at 224, 500 and 800 px, one photo and eight at a time:

* `Keras`: the model under `tf.function`, the one that the others are compared with;
* `export float32`, `export bfloat16`: the SavedModels that `mg-keras export` writes, through `tf.saved_model.load`;
* `OpenVINO float32`, `OpenVINO bfloat16`, `ONNX Runtime`: the same network with its batch norms folded, given to them
  (`pip install openvino onnxruntime tf2onnx`, or this project's extra `benchmark`);
* `PyTorch`: its own ResNet-50 with GeM (`pip install torch`).

    python -m benchmarks.inference --files FOLDER

times the model in the package from the photos of a folder to descriptors instead (`mg_keras.load().embed`, each
precision), at `--resolutions` (224), beside the same network on batches of 8 from memory in Keras, OpenVINO and ONNX
Runtime. The processor's time a photo is that of all cores: on a machine that others use, it tells more.

What is not installed is said to be missing. Contestants take turns of half a second, call after call; the tables give
medians, and how much of the machine's peak each reaches: that of a product of float32 matrices, or of bfloat16 ones for
the bfloat16 contestants.
"""

import functools
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import interleaved_times, machine, print_table, ratio, timed_at_work
from mg_keras.errors import UserError
from mg_keras.programs.common import run_program
from mg_keras.quiet import import_tensorflow

EXPONENT = 3.0
NUM_CLASSES = 1000
MATRIX_SIDE = 2048
BATCH_FROM_MEMORY = 8


def draw_offsets(trunk):
    """Gives batch norms offsets, as a trained network has them: TensorFlow drops those that are exactly zero, and then
    does not run convolution and activation as one."""
    random = np.random.default_rng(0)
    for variable in trunk.variables:
        if variable.path.endswith("/beta"):
            variable.assign(random.normal(0, 0.1, variable.shape))


def keras_contestant(model):
    """Images to a call that runs the Keras model on them."""
    import tensorflow as tf

    spec = tf.TensorSpec([None, None, None, 3], tf.float32)
    predict = tf.function(lambda images: model(images, p_star=EXPONENT), input_signature=[spec])
    return lambda images: functools.partial(_tensorflow_call, predict, tf.constant(images))


def exported_contestant(model, precision, folder):
    """Images to a call that runs the exported model on them."""
    import tensorflow as tf

    from mg_keras.export.check import generated_photos
    from mg_keras.export.saved_model import export_saved_model

    # a low resolution, so that the check takes little time
    about = {"training": {"resolution": 64}}
    path = export_saved_model(model, None, folder / precision, None, about, precision, generated_photos(1))
    loaded = tf.saved_model.load(str(path))

    def predict(images):
        # a signature does not keep alive what it belongs to: `loaded` must be
        return loaded.signatures["serving_default"](images=images, p_star=tf.fill(tf.shape(images)[:1], EXPONENT))

    return lambda images: functools.partial(_tensorflow_call, predict, tf.constant(images))


def _tensorflow_call(predict, images):
    """The embeddings, once they are there."""
    return predict(images)["embedding"].numpy()


def embedding_function(model, trunk):
    """Images to embeddings through a rewritten trunk, as a `tf.function` for other runtimes to convert."""
    import tensorflow as tf

    from mg_keras.models.levels import as_list

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, "images")])
    def embed(images):
        return model.pooled(as_list(trunk(model.normalize(images))), EXPONENT)

    return embed


def openvino_contestant(embed, precision, folder):
    """Images to a call that runs OpenVINO on them, compiled for their shape."""
    import openvino
    import tensorflow as tf

    core = openvino.Core()
    path = folder / "plain"
    if not path.exists():
        module = tf.Module()
        module.embed = embed
        tf.saved_model.save(module, str(path), signatures=embed.get_concrete_function())

    def prepare(images):
        model = core.read_model(path)
        model.reshape(images.shape)
        settings = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
        compiled = core.compile_model(model, "CPU", settings)
        return lambda: compiled([images])[0]

    return prepare


def onnx_contestant(embed, folder):
    """Images to a call that runs ONNX Runtime on them."""
    import onnxruntime
    import tf2onnx

    path = folder / "plain.onnx"
    tf2onnx.convert.from_function(embed, embed.input_signature, opset=18, output_path=str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: lambda: session.run(None, {name: images})[0]


def torch_contestant():
    """Images to a call that runs PyTorch's ResNet-50 with GeM on them."""
    import torch
    from torch import nn

    def convolution(inputs, outputs, size, stride=1):
        layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Bottleneck(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.branch = nn.Sequential(
                convolution(inputs, width, 1),
                nn.ReLU(inplace=True),
                convolution(width, width, 3, stride),
                nn.ReLU(inplace=True),
                convolution(width, 4 * width, 1),
            )
            same = inputs == 4 * width and stride == 1
            self.shortcut = nn.Identity() if same else convolution(inputs, 4 * width, 1, stride)

        def forward(self, features):
            return torch.relu_(self.branch(features) + self.shortcut(features))

    layers, inputs = [convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)], 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    network = nn.Sequential(*layers).eval()

    def embed(images):
        with torch.inference_mode():
            features = network(images).clamp(min=1e-6)
            return features.pow(EXPONENT).mean((2, 3)).pow(1 / EXPONENT).numpy()

    return lambda images: functools.partial(embed, torch.from_numpy(images.transpose(0, 3, 1, 2).copy() / 255))


def contestants(model, trunk, name_of_trunk, folder):
    """({name: images -> call}, lines about what is missing)."""
    embed = embedding_function(model, trunk)
    makers = {
        "Keras": lambda: keras_contestant(model),
        "export float32": lambda: exported_contestant(model, "float32", folder),
        "export bfloat16": lambda: exported_contestant(model, "bfloat16", folder),
        "OpenVINO float32": lambda: openvino_contestant(embed, "float32", folder),
        "OpenVINO bfloat16": lambda: openvino_contestant(embed, "bfloat16", folder),
        "ONNX Runtime": lambda: onnx_contestant(embed, folder),
    }
    missing = []
    if name_of_trunk == "resnet50":
        makers["PyTorch"] = torch_contestant
    else:
        missing.append(f"PyTorch is missing: it is compared with resnet50 alone, not {name_of_trunk}")
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            missing.append(f"{name} is missing: {error}")
    return found, missing


def peak_contestant(dtype):
    """A call that multiplies two square matrices."""
    import tensorflow as tf

    values = np.random.default_rng(0).standard_normal((2, MATRIX_SIDE, MATRIX_SIDE), dtype=np.float32)
    left, right = (tf.cast(value, dtype) for value in values)

    def multiply():
        # one number back: the product itself needs not be copied
        return tf.matmul(left, right)[0, 0].numpy()

    return multiply


def operations_a_photo(trunk, resolution):
    """Floating-point operations of the network on one photo, two for each product that is added up."""
    import tensorflow as tf

    # it says at each convolution that the profiler is as old as TensorFlow 1; nothing newer counts operations
    tf.get_logger().setLevel("ERROR")
    with tf.Graph().as_default() as graph:
        trunk.python_function(tf.zeros([1, resolution, resolution, 3]))
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    ).with_empty_output()
    return tf.compat.v1.profiler.profile(graph, options=options.build()).total_float_ops


def compare(calls, resolution, batch_size, operations, repeats):
    """Times the calls and two matrix products in turns, prints a table and returns the times."""
    products = {f"peak {dtype}": peak_contestant(dtype) for dtype in ("float32", "bfloat16")}
    runs = {name: timed_at_work(call) for name, call in {**calls, **products}.items()}
    times = interleaved_times(runs, repeats, warm_up=1)
    peaks = {name: 2 * MATRIX_SIDE**3 / min(times[name]) for name in products}
    rows = []
    for name in calls:
        peak = peaks["peak bfloat16" if name.endswith("bfloat16") else "peak float32"]
        median, fastest = batch_size / np.median(times[name]), batch_size / min(times[name])
        cells = (
            f"{median:.2f} ({fastest:.2f})",
            f"{ratio(times, 'Keras', name):.2f}",
            f"{operations * median / peak:.0%}",
        )
        rows.append([name, *cells])
    print_table(
        f"{resolution} px, batch {batch_size}: photos a second, median (fastest) of {repeats}\n"
        f"peak of a matrix product: {peaks['peak float32'] / 1e9:.0f} GFLOP/s float32, "
        f"{peaks['peak bfloat16'] / 1e9:.0f} bfloat16; {operations / 1e9:.1f} GFLOP a photo",
        ("contestant", "photos a second", "ratio to Keras", "of the peak"),
        rows,
    )


def files_contestants(files, resolution, folder):
    """({name: (call, photos that it describes)}, lines about what is missing) of the model in the package."""
    import mg_keras
    from mg_keras.export.optimize import PRECISIONS, optimized_trunk
    from mg_keras.export.quantize import INT8, supported
    from mg_keras.pretrained.packed import PACKAGE, Packed
    from mg_keras.processor import computes_int8

    network = Packed(PACKAGE).network()
    embed = embedding_function(network, optimized_trunk(network.mapper))
    shape = (BATCH_FROM_MEMORY, resolution, resolution, 3)
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    makers = {
        "Keras, from memory": lambda: keras_contestant(network),
        "OpenVINO float32, from memory": lambda: openvino_contestant(embed, "float32", folder),
        "OpenVINO bfloat16, from memory": lambda: openvino_contestant(embed, "bfloat16", folder),
        "ONNX Runtime, from memory": lambda: onnx_contestant(embed, folder),
    }
    found, missing = {}, []
    for name, make in makers.items():
        try:
            found[name] = make()(images), BATCH_FROM_MEMORY
        except ImportError as error:
            missing.append(f"{name.split(',')[0]} is missing: {error}")
    for precision in (*PRECISIONS, INT8) if computes_int8() is not False and supported() else PRECISIONS:
        model = mg_keras.load(precision=precision)
        found[f"files, {precision}"] = functools.partial(model.embed, files, resolution), len(files)
    return found, missing


def compare_from_files(files, resolution, folder, repeats):
    """Times descriptors from files and from memory in turns, and prints a table."""
    found, missing = files_contestants(files, resolution, folder)
    print(*missing, sep="\n", end="\n" if missing else "")
    processor = {name: [] for name in found}

    def contestant(name):
        call, count = found[name]

        def run():
            start, spent, calls = time.perf_counter(), time.process_time(), max(1, 64 // count)
            for _ in range(calls):
                call()
            processor[name].append((time.process_time() - spent) / (calls * count))
            return (time.perf_counter() - start) / (calls * count)

        return run

    times = interleaved_times({name: contestant(name) for name in found}, repeats, warm_up=1)
    # the first is the warm-up
    spent = {name: values[1:] for name, values in processor.items()}
    reference = next(iter(found))
    rows = [
        [
            name,
            f"{1 / np.median(times[name]):.0f} ({1 / min(times[name]):.0f})",
            f"{1e3 * np.median(spent[name]):.2f} ({1e3 * min(spent[name]):.2f})",
            f"{ratio(spent, reference, name):.2f}",
        ]
        for name in found
    ]
    print_table(
        f"{resolution} px, {len(files)} photos, median (best) of {repeats}",
        ("contestant", "photos a second", "processor, ms a photo", f"as fast as {reference}, by the processor's time"),
        rows,
    )


def main():
    """Parses the arguments and prints a table for each resolution and batch."""
    parser = benchmark_parser("inference", __doc__)
    parser.add_argument("--trunk", default="resnet50", help="name of a trunk (resnet50)")
    parser.add_argument("--resolutions", type=int, nargs="+", help="pixels (224 500 800; of --files 224)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="photos in a call (1 8)")
    parser.add_argument("--repeats", type=int, default=10, help="turns of each contestant (10)")
    parser.add_argument("--files", help="folder of photos: times the model in the package from files")
    options = parser.parse_args()
    for name, values in (
        ("resolutions", options.resolutions or [1]),
        ("batch-sizes", options.batch_sizes),
        ("repeats", [options.repeats]),
    ):
        if min(values) < 1:
            raise UserError(f"--{name} must be at least 1, received {min(values)}")
    import_tensorflow()
    import keras

    from mg_keras import MultiGrain
    from mg_keras.data.sources import photos
    from mg_keras.export.optimize import optimized_trunk
    from mg_keras.processor import computes_bfloat16

    if options.files:
        files = photos(options.files).files
        print(machine())
        with tempfile.TemporaryDirectory() as folder:
            for resolution in options.resolutions or [224]:
                compare_from_files(files, resolution, Path(folder), options.repeats)
        return
    keras.utils.set_random_seed(0)
    model = MultiGrain(options.trunk, NUM_CLASSES)
    draw_offsets(model.trunk)
    print(machine())
    supported = computes_bfloat16()
    if not supported:
        print(
            "this machine does not say whether it computes in bfloat16"
            if supported is None
            else "this machine has no avx512_bf16 or AMX: bfloat16 is emulated, and slow"
        )
    with tempfile.TemporaryDirectory() as folder:
        trunk = optimized_trunk(model.trunk)
        found, missing = contestants(model, trunk, options.trunk, Path(folder))
        print(*missing, sep="\n", end="\n" if missing else "")
        random = np.random.default_rng(0)
        for resolution in options.resolutions or [224, 500, 800]:
            operations = operations_a_photo(trunk, resolution)
            for batch_size in options.batch_sizes:
                shape = (batch_size, resolution, resolution, 3)
                images = random.uniform(0, 255, shape).astype(np.float32)
                calls = {name: prepare(images) for name, prepare in found.items()}
                compare(calls, resolution, batch_size, operations, options.repeats)


if __name__ == "__main__":
    run_program(main)
