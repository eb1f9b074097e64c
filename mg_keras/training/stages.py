"""What is done with a trained run, a function each; every one leaves its result in the run's folder.

`train/run.py` calls them one after the other, the programs beside it one at a time.
"""

import numpy as np
import tensorflow as tf

from mg_keras.data import resolutions, sources
from mg_keras.data.images import decode
from mg_keras.embedding import embed, embed_photos
from mg_keras.errors import UserError
from mg_keras.evaluation import copies, report
from mg_keras.evaluation.metrics import chance_average_precision, chance_group_score, group_score, top_k_accuracy
from mg_keras.evaluation.search import nearest
from mg_keras.pooling_exponent import EXPONENTS, VERSIONS, best_exponent, in_aug_photos, in_aug_scores
from mg_keras.whitening import Whitening

# Copydays has 157 originals
_ORIGINALS = 150
_QUERIES, _NEIGHBOURS = 6, 7


def open_source(config):
    """The photos of a run's configuration."""
    options = sources.SplitOptions(config.train_per_class, config.val_per_class, config.val_fraction, config.seed)
    # the demo set is drawn at the largest size that it will be seen at
    resolution = int(np.clip(max(config.resolutions), 32, 512))
    return sources.open_source(config.data, options, resolution=resolution, data_dir=config.data_dir)


def exponent_at(run, resolution):
    """The chosen p* of a resolution, or the training exponent where none was chosen."""
    return float(run.p_star.get(resolution, run.settings.pooling_exponent))


def choose_p_star(run, source):
    """Chooses p* for each of the run's resolutions by cross-validation on IN-aug (section 3.5).

    Writes p_star.json and p_star.png.

    Returns:
        dict resolution -> exponent.
    """
    config = run.settings
    photos = in_aug_photos(source.train, config.in_aug_per_class, config.seed)
    scores = {
        size: in_aug_scores(run.model, photos, size, EXPONENTS, config.seed, f"p* at {size} px")
        for size in config.resolutions
    }
    # the choices made before at other resolutions stay
    scores = {**run.p_star_scores, **scores}
    p_star = {size: best_exponent(found) for size, found in scores.items()}
    run.save_p_star(p_star, scores, method="cross-validation on IN-aug", photos=len(photos), versions=VERSIONS)
    report.exponent_picture(run.path / "p_star.png", scores, p_star)
    return p_star


def fit_whitening(run, source):
    """Fits the whitening (section 3.4), with the bias channel, at each of the run's resolutions with its p*.

    Writes whitening.npz (training resolution: the exported one) and whitening-SIZE.npz.

    Returns:
        str, what it was fitted on.

    Raises:
        UserError: there are fewer photos than dimensions.
    """
    config = run.settings
    photos, kind = source.train, "training photos, as there are no unlabelled ones (name a folder with --unlabelled)"
    if config.unlabelled:
        photos, kind = sources.photos(config.unlabelled), f"unlabelled photos of {config.unlabelled}"
    elif source.unlabelled:
        photos, kind = source.unlabelled, f"unlabelled photos of {source.description}"
    if len(photos) > config.max_whitening_photos:
        chosen = np.random.default_rng(config.seed).permutation(len(photos))[: config.max_whitening_photos]
        photos = photos.subset(np.sort(chosen))
    for size in config.resolutions:
        exponent = exponent_at(run, size)
        found = embed(run.model, photos, size, config.resolution, [exponent], f"whitening at {size} px")
        try:
            Whitening.fit(found.values[0], shrinkage=config.whitening_shrinkage).save(run.whitening_path(size))
        except ValueError as error:
            raise UserError(f"whitening on {len(found.rows)} {kind}: {error}") from error
    return f"{len(found.rows)} {kind}"


def evaluate(run, source):
    """Measures classes, instances and copies at each of the run's resolutions, with its p* and its whitening.

    Classes: top-1 and top-5 on the validation photos. Instances: the IN-aug score (section 7). Copies: mAP of finding
    the strongly edited copies of validation photos among the other validation photos. Views, where the source knows
    instances: the UKB score on the validation photos.

    Writes metrics.json, scores.png and retrieval.png.

    Returns:
        dict, what metrics.json holds.
    """
    config, model = run.settings, run.model
    photos = in_aug_photos(source.train, config.in_aug_per_class, config.seed)
    rows = {}
    for size in config.resolutions:
        exponent = exponent_at(run, size)
        val = embed(model, source.val, size, config.resolution, [exponent], f"test photos at {size} px")
        if not len(val.rows):
            raise UserError("none of the validation photos can be used: nothing to measure")
        edits = _Edits(run, source, val, size, exponent)
        logits, labels = val.logits(model), source.val.labels[val.rows]
        instance = run.p_star_scores.get(size) or in_aug_scores(model, photos, size, [exponent], config.seed)
        rows[size] = {
            "p_star": exponent,
            "top1": top_k_accuracy(logits, labels, 1),
            "top5": top_k_accuracy(logits, labels, min(5, len(run.class_names))),
            "instance": instance[exponent],
            "copies": edits.score(run.whitening_at(size)),
            "copies_unwhitened": edits.score(None),
        }
        if source.val.instances is not None:
            rows[size]["views"] = group_score(val.values[0], source.val.instances[val.rows], 4)
        if size == config.resolution:
            _picture(run, source, val, edits)
    classes, versions = len(run.class_names), VERSIONS * len(photos)
    metrics = {
        "resolutions": rows,
        "chance": {
            "top1": 1 / classes,
            "top5": min(5, classes) / classes,
            "instance": chance_group_score(VERSIONS, versions, VERSIONS),
            "copies": chance_average_precision(1, len(val.rows)),
        },
        "sizes": {
            "classes": classes,
            "train_photos": len(source.train),
            "test_photos": len(val.rows),
            "unusable_test_photos": [source.val.names[row] for row in val.unusable],
            "in_aug_photos": len(photos),
            "copy_originals": len(edits.originals),
        },
    }
    run.save_metrics(metrics)
    report.scores_picture(run.path / "scores.png", metrics)
    return metrics


class _Edits:
    """Strongly edited copies of some validation photos, and their embeddings at one resolution."""

    def __init__(self, run, source, val, size, exponent):
        config = run.settings
        places = np.random.default_rng(config.seed).permutation(len(val.rows))[:_ORIGINALS]
        self.originals = np.sort(places)  # places in val, not rows of the split
        self.val = val.values[0]

        def edit(place):
            row = val.rows[place]
            image = decode(source.val.read(tf.constant(row))).numpy()
            return copies.strong_edit(image, [config.seed, int(row)])[1]

        self.pictures = [edit(place) for place in self.originals]
        prepare = resolutions.for_resolution(size, config.resolution)
        images = [prepare(tf.constant(picture), size) for picture in self.pictures]
        self.embeddings = embed_photos(run.model, images, exponent)

    def score(self, whitening):
        others = np.delete(self.val, self.originals, axis=0)
        described = [
            whitening.transform(values) if whitening else values
            for values in (self.val[self.originals], self.embeddings, others)
        ]
        return copies.copy_detection_map(described[0], described[1], np.arange(len(self.originals)), described[2])


def _picture(run, source, val, edits):
    """Draws some validation photos with what they find among the others and the edited copies of themselves."""
    whitening = run.whitening
    describe = whitening.transform if whitening else (lambda values: values)
    labels, instances = source.val.labels[val.rows], source.val.instances
    queries = np.random.default_rng(run.settings.seed + 1).permutation(len(edits.originals))[:_QUERIES]

    places = edits.originals[queries]
    # the database is every validation photo, then one edited copy of each query
    sources_of = np.concatenate([np.arange(len(val.rows)), places])

    def photo(number):
        row = val.rows[sources_of[number]]
        if number < len(val.rows):
            picture = decode(source.val.read(tf.constant(row))).numpy()
        else:
            picture = edits.pictures[queries[number - len(val.rows)]]
        instance = row if instances is None else instances[row]
        return report.Photo(picture, run.class_names[labels[sources_of[number]]], str(instance))

    database = describe(np.concatenate([val.values[0], edits.embeddings[queries]]))
    similarities, indices = nearest(database[places], database, _NEIGHBOURS + 1)
    found = [
        [(photo(i), similarity) for i, similarity in zip(*pair, strict=True) if i != place][:_NEIGHBOURS]
        for place, *pair in zip(places, indices, similarities, strict=True)
    ]
    report.retrieval_picture(run.path / "retrieval.png", [photo(place) for place in places], found)
