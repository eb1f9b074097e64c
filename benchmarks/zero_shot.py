"""Recognises Caltech-101's photos with EfficientNet-Lite0 as it was trained on ImageNet, learning from none of them.

    python -m benchmarks.zero_shot --data PATH --run runs/zero_shot

`--data` is the folder of Caltech-101's classes (a class in each subfolder). Those that ImageNet has too, by name, are
measured: top-1 among these classes, and among all 1000. The folder that `--run` names becomes a run on these photos,
for mg-keras choose-p-star, mg-keras evaluate and mg-keras export. Needs the extra `offline`.
"""

from pathlib import Path

import numpy as np

from benchmarks.arguments import benchmark_parser
from benchmarks.timing import print_table
from mg_keras.errors import UserError
from mg_keras.programs.common import list_of, run_program
from mg_keras.quiet import import_tensorflow

# Caltech-101's name -> the WordNet id of the one class of ImageNet's that has this name among its words
SHARED = {
    "Leopards": "n02128385",
    "accordion": "n02672831",
    "ant": "n02219486",
    "barrel": "n02795169",
    "beaver": "n02363005",
    "binocular": "n02841315",
    "cannon": "n02950826",
    "cellphone": "n02992529",
    "cougar_body": "n02125311",
    "crayfish": "n01985128",
    "cup": "n07930864",
    "dalmatian": "n02110341",
    "dragonfly": "n02268443",
    "electric_guitar": "n03272010",
    "flamingo": "n02007558",
    "grand_piano": "n03452741",
    "hedgehog": "n02346627",
    "laptop": "n03642806",
    "llama": "n02437616",
    "nautilus": "n01968897",
    "panda": "n02510455",
    "pizza": "n07873807",
    "platypus": "n01873310",
    "revolver": "n04086273",
    "saxophone": "n04141076",
    "schooner": "n04147183",
    "scorpion": "n01770393",
    "soccer_ball": "n04254680",
    "starfish": "n02317335",
    "strawberry": "n07745940",
    "tick": "n01776313",
    "trilobite": "n01768244",
    "umbrella": "n04507155",
}


def main():
    """Arguments, the measure, and the run."""
    parser = benchmark_parser("zero_shot", __doc__)
    parser.add_argument(
        "--data",
        required=True,
        type=lambda path: Path(path).expanduser(),
        help="the folder with a subfolder for each of Caltech-101's classes",
    )
    parser.add_argument("--resolutions", type=list_of(int), default=[224], help="pixels (224)")
    parser.add_argument("--per-class", type=int, help="photos of each class at most; default: all")
    parser.add_argument("--run", help="a new folder, to make a run of the network on these photos in")
    options = parser.parse_args()
    import_tensorflow()
    from mg_keras.programs.imagenet import save_imagenet_run

    names = shared_classes(options.data)
    for size in options.resolutions:
        among, of_all = recognised(options.data, names, size, options.per_class)
        rows = [[name, f"{among[name].mean():.1%}", f"{of_all[name].mean():.1%}"] for name in names]
        among, of_all = (np.concatenate(list(found.values())) for found in (among, of_all))
        rows.append(["all photos", f"{among.mean():.1%}", f"{of_all.mean():.1%}"])
        title = f"top-1 on {len(among):,} photos at {size} px"
        print_table(title, ["class", f"among these {len(names)}", "among ImageNet's 1000"], rows)
    if options.run:
        folder = link_by_id(options.data, names, Path(f"{options.run}-photos"))
        run, _ = save_imagenet_run(options.run, f"folder:{folder}")
        print(f"written: {run.path}, for mg-keras choose-p-star --run {run.path} and what else takes a run")


def shared_classes(folder):
    """The classes in a folder that ImageNet has too.

    Raises:
        UserError: there are none.
    """
    names = [name for name in SHARED if (Path(folder) / name).is_dir()]
    if not names:
        raise UserError(f"{folder} has no subfolder named as one of {', '.join(SHARED)}")
    return names


def recognised(folder, names, size, per_class=None):
    """Which photos ImageNet's network tells the class of.

    Args:
        folder: with a subfolder for each of `names`.
        names: list of keys of `SHARED`.
        size: pixels of the square that a photo is brought to.
        per_class: photos of each class at most, spread over its folder; None: all.

    Returns:
        (among, of_all): dicts of name -> bool [photos], whether the class is the likeliest of `names`, and of
        ImageNet's 1000. A photo that can't be used is not recognised.
    """
    from mg_keras.data import sources
    from mg_keras.embedding.photos import embed
    from mg_keras.pretrained.lite0 import imagenet_network

    photos = sources.photos(folder)
    classes = np.array([Path(name).relative_to(folder).parts[0] for name in photos.names])
    rows = [np.flatnonzero(classes == name) for name in names]
    if per_class:
        rows = [of_class[np.unique(np.linspace(0, len(of_class) - 1, per_class).astype(int))] for of_class in rows]
    network = imagenet_network()
    photos = photos.subset(np.concatenate(rows))
    found = embed(network.model, photos, size, size, label=f"describing at {size} px")
    logits = found.logits(network.model)
    columns = np.array([network.class_names.index(SHARED[name]) for name in names])
    labels = np.repeat(np.arange(len(names)), [len(of_class) for of_class in rows])
    answers = []
    for likeliest in (columns[logits[:, columns].argmax(1)], logits.argmax(1)):
        right = np.zeros(len(labels), bool)
        right[found.rows] = likeliest == columns[labels[found.rows]]
        answers.append({name: right[labels == number] for number, name in enumerate(names)})
    return answers


def link_by_id(folder, names, target):
    """A folder with a link to each class's photos under its WordNet id, by which the network knows it.

    Raises:
        UserError: there is something already.
    """
    try:
        target.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{target} exists already: give another --run") from error
    for name in names:
        (target / SHARED[name]).symlink_to((Path(folder) / name).resolve(), target_is_directory=True)
    return target


if __name__ == "__main__":
    run_program(main)
