"""`demo`: the set of `mg_keras.data.demo`, drawn on first use and a folder from there on."""

import os

from mg_keras.data import demo
from mg_keras.data.sources.contract import Source, SplitOptions, cache_folder
from mg_keras.data.sources.folder import open_folder


def open_demo(argument: str, options: SplitOptions, resolution: int, data_dir: str | os.PathLike | None) -> Source:
    """The drawn set as a `Source`, which knows the instances too."""
    del argument
    # the set of an earlier release may lie beside it
    name = f"demo-{demo.VERSION}-{resolution}-{options.seed}"
    folder = demo.write_demo(cache_folder(data_dir) / name, resolution=resolution, seed=options.seed)
    return open_folder(folder, options, resolution, data_dir, demo.instance_of, f"demo at {resolution} px")
