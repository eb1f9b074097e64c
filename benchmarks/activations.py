"""Draws what a channel of the last map sees in a photo, at several resolutions and exponents (MultiGrain, Figure 3).

    python -m benchmarks.activations --photo PHOTO --out activations.png

Of the model in the package, or of a run or packed model that `--model` names. A larger photo lights a smaller part of
the map, so that its mean falls, and a larger exponent counts the places that are lit: this is why p* rises with the
resolution. The table has the pooled value of the channel by resolution and exponent, divided by the largest activation,
and the mean of that over the channels that see something. Without `--photo` it is a portrait that comes with
matplotlib, in the public domain; without `--channel` the one with the largest pooled value.
"""

from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.errors import UserError
from mg_keras.programs.common import list_of, run_program
from mg_keras.quiet import import_tensorflow

_DARK = 1e-3  # a channel whose activations are below this everywhere sees nothing in the photo


def main():
    """Arguments, the maps, the table and the picture."""
    parser = benchmark_parser("activations", __doc__)
    parser.add_argument("--model", help="a run or a packed model; the model in the package")
    parser.add_argument("--photo", type=Path, help="a portrait that comes with matplotlib")
    parser.add_argument("--resolutions", type=list_of(int, at_least=1), default=[160, 320], help="pixels ([160,320])")
    parser.add_argument("--exponents", type=list_of(float, at_least=0.1), default=[1.0, 3.0, 5.0], help="p ([1,3,5])")
    parser.add_argument("--channel", type=int, help="of the last map, from 0")
    parser.add_argument("--out", type=Path, default=Path("activations.png"), help="the picture (activations.png)")
    options = parser.parse_args()
    import_tensorflow()
    from mg_keras.data.images import load
    from mg_keras.evaluation.pictures import activation_picture

    photo, network = load(options.photo or sample_photo()), network_of(options.model)
    channels = network.map_channels[0]
    if options.channel is not None and not 0 <= options.channel < channels:
        raise UserError(f"--channel must be one of 0 to {channels - 1}, received {options.channel}")
    maps = {size: last_map(network, photo, size) for size in sorted(options.resolutions)}
    pooled = {
        size: [network.pool(features, p_star=p)[0].numpy() for p in options.exponents]
        for size, features in maps.items()
    }
    channel = int(np.argmax(pooled[min(maps)][0])) if options.channel is None else options.channel
    table = []
    for size, by_exponent in pooled.items():
        largest = np.max(maps[size], axis=(0, 1, 2))
        lit = largest > _DARK
        one = (f"{values[channel] / max(largest[channel], _DARK):.3f}" for values in by_exponent)
        mean = (f"{np.mean(values[lit] / largest[lit]):.3f}" for values in by_exponent)
        table += [[f"{size} px", f"channel {channel}", *one], ["", f"mean of {np.sum(lit)} that are lit", *mean]]
    print_table("Pooled value / largest activation", ["", "", *(f"p = {p:g}" for p in options.exponents)], table)
    chosen = {size: features[0, ..., channel] for size, features in maps.items()}
    activation_picture(options.out, photo, chosen, options.exponents, f"channel {channel}")
    print(f"drawn: {options.out}")


def sample_photo():
    """Path of a photo in the public domain."""
    from matplotlib import cbook

    return Path(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def network_of(model):
    """The `Network` of a run or a packed model."""
    import mg_keras
    from mg_keras.models import Network

    network = mg_keras.load(model).network
    # the model in the package runs an optimised graph of a network
    network = getattr(network, "network", network)
    if not isinstance(network, Network):
        raise UserError(f"{model} gives embeddings alone: name a run or a packed model, whose maps can be seen")
    return network


def last_map(network, photo, size):
    """[1, h, w, c] of a photo whose largest side is brought to so many pixels."""
    from mg_keras.data.resolutions import largest_side

    return network.feature_maps(largest_side(photo, size)[None])[0].numpy()


if __name__ == "__main__":
    run_program(main)
