"""Export a run as a SavedModel: python export/run.py --run runs/x --out models/multigrain."""

import sys

from jsonargparse import ArgumentParser

from mg_keras.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Export the run and say how to use it; returns the exit status."""
    parser = ArgumentParser(description="Export a run's model and whitening as a SavedModel.")
    parser.add_argument("--run", type=str, required=True, help="the run's folder, such as runs/demo")
    parser.add_argument("--out", type=str, required=True, help="the model's folder; versions are numbered inside")
    parser.add_argument("--version", type=int, help="the number to write; left out: the next free one")
    options = parser.parse_args(arguments)
    try:
        export(options.run, options.out, options.version)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def export(run_folder: str, out: str, version: int | None) -> None:
    """Load the run, write the SavedModel and print what it offers."""
    # TensorFlow takes seconds to import: after the arguments, so that --help and a typo are answered at once.
    import tensorflow as tf
    from mg_keras.training.runs import load_run

    from export.saved_model import export_saved_model

    run = load_run(run_folder)
    metadata = {
        "trunk": run.config["trunk"],
        "class_names": run.class_names,
        "p_star": run.p_star,
        "training": run.config,
    }
    path = export_saved_model(run.model, run.whitening, out, version, metadata)
    print(f"{path}{'' if run.whitening else ' (not whitened: the run has no whitening yet)'}")
    for name, signature in tf.saved_model.load(path).signatures.items():
        inputs = ", ".join(_shown(spec) for spec in signature.structured_input_signature[1].values())
        print(f"  {name}({inputs}) -> {', '.join(signature.structured_outputs)}")
    exponent = run.p_star.get(run.config["resolution"], run.config["pooling_exponent"])
    print(
        "Load it with TensorFlow alone:\n"
        "  import tensorflow as tf\n"
        f"  served = tf.saved_model.load({str(path)!r}).signatures['serving_default']\n"
        "  images = tf.cast(tf.io.decode_image(tf.io.read_file('photo.jpg'), 3)[None], tf.float32)\n"
        f"  print(served(images=images, p_star=tf.constant([{float(exponent)}])))"
    )


def _shown(spec) -> str:
    """A tensor's name, type and shape as documentation writes them."""
    sizes = ", ".join("?" if size is None else str(size) for size in spec.shape)
    return f"{spec.name}: {spec.dtype.name} [{sizes}]"


if __name__ == "__main__":
    sys.exit(main())
