import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mg_keras.data import sources
from mg_keras.embedding.photos import Embeddings
from mg_keras.errors import UserError
from mg_keras.evaluation import evaluators, pictures, tables
from mg_keras.evaluation.pictures import Photo, copies, drawing
from mg_keras.evaluation.pictures.activations import contributions
from mg_keras.objectives.grafit import GrafitFC
from mg_keras.objectives.multigrain import MultiGrainObjective

BLUE, GREEN, RED = (0, 0x72, 0xB2), (0, 0x9E, 0x73), (0xD5, 0x5E, 0)

SCORES = {
    "resolutions": {
        "96": {"p_star": 4.5, "top1": 0.632, "top5": 0.951, "instance": 4.6, "copies": None},
        "64": {"p_star": 3.0, "top1": 0.61, "top5": 0.93, "instance": 4.414, "copies": 0.711},
    },
    "chance": {"top1": 0.0625, "top5": 0.3125, "instance": 1.02, "copies": 0.005},
}


@pytest.fixture
def figures(monkeypatch):
    """The figures as drawn, so that what they show can be asked."""
    drawn, save = [], drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    return drawn


def grey_photo(width=40, height=30):
    return np.full((height, width, 3), 128, np.uint8)


def count_colour(path, colour):
    with Image.open(path) as picture:
        return np.sum(np.all(np.asarray(picture.convert("RGB")) == colour, axis=-1))


def frame_pixels(tmp_path, neighbour):
    """How many pixels a neighbour's frame adds of each colour, the legend's own taken off."""
    query = Photo(grey_photo(), "cup", "cup-1")
    pictures.retrieval_picture(tmp_path / "a.png", [query], [[(neighbour, 0.5)]])
    pictures.retrieval_picture(tmp_path / "b.png", [query], [[]])
    return [count_colour(tmp_path / "a.png", c) - count_colour(tmp_path / "b.png", c) for c in (BLUE, GREEN, RED)]


@pytest.mark.parametrize(
    ("neighbour", "expected"),
    [
        (Photo(grey_photo(), "cup", "cup-1"), 0),
        (Photo(grey_photo(), "cup", "cup-2"), 1),
        (Photo(grey_photo(), "cup"), 1),
        (Photo(grey_photo(), "key", "key-1"), 2),
    ],
)
def test_frames_tell_instance_class_and_the_rest(tmp_path, neighbour, expected):
    added = frame_pixels(tmp_path, neighbour)
    assert added[expected] > 500
    assert all(abs(count) < 100 for colour, count in enumerate(added) if colour != expected)


def test_unknown_instances_are_not_the_same():
    assert Photo(grey_photo(), "cup").kinship(Photo(grey_photo(), "cup")) == "same class"
    assert Photo(grey_photo(), None).kinship(Photo(grey_photo(), None)) == "another class"
    assert Photo(grey_photo(), None, "7").kinship(Photo(grey_photo(), None, "7")) == "same instance"


def test_captions_give_class_and_similarity_as_they_are(tmp_path, figures):
    Image.fromarray(grey_photo(700, 300)).save(tmp_path / "photo.jpg")
    query = Photo(tmp_path / "photo.jpg", "price $x$")
    pictures.retrieval_picture(tmp_path / "a.png", [query], [[(Photo(grey_photo(9, 50), "x" * 30), 0.876)]])
    captions = [axes.get_xlabel() for axes in figures[0].axes]
    assert captions == ["price $x$\nquery", "x" * 17 + "…\n0.88"]


def test_rows_may_be_of_different_length_and_photos_are_shrunk(tmp_path, figures):
    big = Photo(grey_photo(2000, 1000), "cup")
    pictures.retrieval_picture(tmp_path / "a.png", [big, big], [[(big, 1.0)] * 3, [(big, 1.0)]])
    assert len(figures[0].axes) == 6
    assert figures[0].axes[0].images[0].get_array().shape == (120, 240, 3)


def test_turned_photos_are_shown_upright(tmp_path, figures):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey_photo(40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    pictures.retrieval_picture(tmp_path / "a.png", [Photo(tmp_path / "turned.jpg", "cup")], [[]])
    assert figures[0].axes[0].images[0].get_array().shape[:2] == (40, 20)


def test_photos_equal_to_a_query_are_not_among_its_answers(tmp_path, monkeypatch):
    for folder, shade in (("once", 40), ("again", 40), ("other", 200)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(tmp_path / folder / "a.png")
    photos = sources.photos(tmp_path)
    benchmark = evaluators.copies(photos)
    drawn = []
    monkeypatch.setattr(copies, "retrieval_picture", lambda path, queries, neighbors: drawn.extend(neighbors))
    rows = np.arange(len(benchmark.photos))
    found = Embeddings(rows, np.ones([1, len(rows), 4], np.float32), np.zeros(0, np.int64))
    copies.copies_picture(tmp_path / "picture.png", benchmark, photos, [], found)
    # both copies and the other photo, of the one that is there twice without its equal
    assert sorted(map(len, drawn)) == [3, 4]


@pytest.mark.parametrize(("queries", "neighbours"), [([], []), ([Photo(grey_photo(), "cup")], [[], []])])
def test_retrieval_picture_names_bad_arguments(tmp_path, queries, neighbours):
    with pytest.raises(ValueError, match="one list a query"):
        pictures.retrieval_picture(tmp_path / "a.png", queries, neighbours)
    assert list(tmp_path.iterdir()) == []


def test_scores_picture_draws_each_score_by_resolution(tmp_path, figures):
    pictures.scores_picture(tmp_path / "a.png", SCORES)
    heights = [[bar.get_height() for bar in axes.patches] for axes in figures[0].axes]
    np.testing.assert_allclose(heights, [[61, 63.2], [4.414, 4.6], [71.1, 0]])
    chance = [axes.lines[0].get_ydata()[0] for axes in figures[0].axes]
    np.testing.assert_allclose(chance, [6.25, 1.02, 0.5])
    texts = [[text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert texts == [["61.0", "63.2"], ["4.41", "4.60"], ["71.1", "not\nmeasured"]]
    assert [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()] == ["64 px\np* = 3", "96 px\np* = 4.5"]


def test_descriptors_as_pooled_stand_beside_whitened_ones(tmp_path, figures, capsys):
    rows = {
        "64": {"p_star": 3.0, "top1": 0.6, "instance": 4.1, "instance_whitened": 4.4, "copies": 0.8},
        "96": {"p_star": 3.0, "top1": 0.6, "instance": 4.2, "copies": 0.9, "copies_unwhitened": 0.7},
    }
    pictures.scores_picture(tmp_path / "a.png", {"resolutions": rows})
    heights = [[bar.get_height() for bar in axes.patches] for axes in figures[0].axes]
    assert heights == [pytest.approx(some) for some in ([60, 60], [4.1, 4.2, 4.4, 0], [0, 70, 80, 90])]
    first, *others = (axes.get_legend() for axes in figures[0].axes)
    assert first is None
    assert [[text.get_text() for text in legend.get_texts()] for legend in others] == [["as pooled", "whitened"]] * 2
    # without a whitening there is one descriptor
    same = {"64": {"top1": 0.6, "copies": 0.8, "copies_unwhitened": 0.8}}
    pictures.scores_picture(tmp_path / "b.png", {"resolutions": same})
    assert len(figures[1].axes[2].patches) == 1
    Console(width=100).print(tables.scores_table({"resolutions": rows}))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["64", "px", "3", "60.0", "–", "4.10", "4.40", "80.0"] in lines
    assert ["96", "px", "3", "60.0", "–", "4.20", "–", "90.0"] in lines


def test_scores_table_says_the_same(capsys):
    Console(width=100).print(tables.scores_table(SCORES))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["64", "px", "3", "61.0", "93.0", "4.41", "71.1"] in lines
    assert ["96", "px", "4.5", "63.2", "95.1", "4.60", "–"] in lines
    assert ["chance", "6.2", "31.2", "1.02", "0.5"] in lines


@pytest.mark.parametrize("show", [tables.scores_table, lambda scores: pictures.scores_picture("unused.png", scores)])
def test_scores_without_a_resolution_are_refused(show):
    with pytest.raises(ValueError, match="received the keys \\['top1'\\]"):
        show({"top1": 0.5})


def test_exponent_picture_draws_a_line_a_resolution_and_marks_the_choice(tmp_path, figures):
    table = {96: {1: 3.0, 4: 4.5, 2.5: 4.0}, 64: {1: 3.5, 2.5: 4.2, 4: 4.1}}
    pictures.exponent_picture(tmp_path / "a.png", table, {64: 2.5, 96: 4})
    (axes,) = figures[0].axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [
        ([1, 2.5, 4], [3.5, 4.2, 4.1]),
        ([2.5], [4.2]),
        ([1, 2.5, 4], [3.0, 4.0, 4.5]),
        ([4], [4.5]),
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["64 px, p* = 2.5", "96 px, p* = 4"]
    assert not axes.collections


def test_exponent_picture_draws_errors_where_they_are_known(tmp_path, figures):
    table = {64: {1: 3.5, 2.5: 4.2}, 96: {1: 3.0, 2.5: 4.0}}
    pictures.exponent_picture(tmp_path / "a.png", table, {64: 2.5, 96: 2.5}, errors={64: {1: 0.25, 2.5: 0.0}})
    (bars,) = figures[0].axes[0].collections
    np.testing.assert_allclose(bars.get_segments(), [[(1, 3.25), (1, 3.75)], [(2.5, 4.2), (2.5, 4.2)]])


@pytest.mark.parametrize(
    ("table", "p_star", "message"),
    [
        ({}, {}, "at least one exponent"),
        ({64: {}}, {64: 3}, "at least one exponent"),
        ({64: {1: 2.0}}, {64: 3}, r"\[1\] for 64 px, received 3"),
        ({64: {1: 2.0}}, {}, "received None"),
    ],
)
def test_exponent_picture_names_bad_arguments(tmp_path, table, p_star, message):
    with pytest.raises(ValueError, match=message):
        pictures.exponent_picture(tmp_path / "a.png", table, p_star)


def test_training_curves_draw_what_was_measured(tmp_path, figures):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,loss,top1,val_top1,beta,note\n1,10,2.5,0.1,,1.2,\n2,20,nan,0.3,0.25,1.1,\n3,30,1.5,0.4\n"
    )
    pictures.training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", MultiGrainObjective.metrics)
    lines = {line.get_label(): line for axes in figures[0].axes for line in axes.lines}
    assert set(lines) == {"joint", "top-1, training", "top-1, test", "beta"}
    assert list(lines["joint"].get_xdata()) == [10, 30]
    assert list(lines["joint"].get_ydata()) == [2.5, 1.5]
    assert list(lines["top-1, test"].get_xdata()) == [20]
    np.testing.assert_allclose(lines["top-1, training"].get_ydata(), [10, 30, 40])
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 500
    assert all(axes.get_ylim()[0] == 0 for axes in figures[0].axes)
    (tmp_path / "metrics.csv").write_text("step,loss,instance_loss\n10,0.5,-0.2\n20,0.1,-0.9\n")
    pictures.training_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", GrafitFC.metrics)
    assert figures[1].axes[0].get_ylim()[0] < -0.9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", r"columns found: \[\]"),
        (b"epoch,loss\n1,2\n", "must hold a column 'step'"),
        (b"step,loss\n", "at least one row"),
        (b"step,loss\n1,much\n", "numbers only"),
        (b"step,loss\n1,\xff\xfe\n", "cannot be read"),
    ],
)
def test_metrics_that_cannot_be_drawn_are_the_users_to_mend(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        pictures.training_curves(path, tmp_path / "curves.png", MultiGrainObjective.metrics)
    assert str(path) in str(error.value)
    assert not (tmp_path / "curves.png").exists()


def test_exponent_picture_marks_fine_tuned_exponents_on_the_axis(tmp_path, figures):
    table = {64: {1: 3.5, 4: 4.1}}
    pictures.exponent_picture(tmp_path / "a.png", table, {64: 4}, {64: 2.913, 96: 5.5})
    (axes,) = figures[0].axes
    diamonds = [(line.get_xdata()[0], line.get_color()) for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [(2.913, "#0072B2"), (5.5, "#D55E00")]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["64 px, p* = 4, fine-tuned p = 2.91", "96 px, fine-tuned p = 5.50"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]


SWEEP = {
    96: {p: {"top1": 0.6, "top5": 0.9, "instance": 4.0 + p / 100} for p in (1, 4)},
    64: {p: {"top1": p / 10, "top5": 0.95, "instance": 4.5 - p / 10} for p in (4, 1, 2.913)},
}


def test_sweep_picture_draws_both_scores_with_the_choices(tmp_path, figures):
    pictures.sweep_picture(tmp_path / "a.png", SWEEP, {64: 1, 96: 4}, {64: 2.913, 96: 7.5})
    classes, instances = figures[0].axes
    for axes, expected in ((classes, [[10, 29.13, 40], [60, 60]]), (instances, [[4.4, 4.2087, 4.1], [4.01, 4.04]])):
        curves = [line for line in axes.lines if line.get_marker() == "o"]
        assert [list(line.get_xdata()) for line in curves] == [[1, 2.913, 4], [1, 4]]
        for line, values in zip(curves, expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), values)
        # what was not measured has no mark
        marks = [
            (line.get_marker(), line.get_xdata()[0], line.get_color()) for line in axes.lines if line not in curves
        ]
        assert marks == [("*", 1, "#0072B2"), ("D", 2.913, "#0072B2"), ("*", 4, "#D55E00")]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "4"]
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["64 px", "96 px", "p* by cross-validation on IN-aug", "p fine-tuned"]


@pytest.mark.parametrize("sweep", [{}, {64: {}}])
def test_sweep_picture_names_an_empty_sweep(tmp_path, sweep):
    with pytest.raises(ValueError, match="at least one exponent"):
        pictures.sweep_picture(tmp_path / "a.png", sweep, {})


def test_sweep_table_says_the_same(capsys):
    Console(width=100).print(tables.sweep_table(SWEEP, {64: 1, 96: 4}, {64: 2.913}))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[1:2] == ["px"]]
    assert rows == [
        ["64", "px", "1", "10.0", "95.0", "4.40", "cross-validation"],
        ["64", "px", "2.913", "29.1", "95.0", "4.21", "fine-tuning"],
        ["64", "px", "4", "40.0", "95.0", "4.10"],
        ["96", "px", "1", "60.0", "90.0", "4.01"],
        ["96", "px", "4", "60.0", "90.0", "4.04", "cross-validation"],
    ]


def test_places_add_what_their_powers_are_of_the_sum(tmp_path, figures):
    activations = np.float32([[0, 1, 2], [4, 1, -3]])
    for exponent in (1.0, 3.0, 7.5):
        shares, pooled = contributions(activations, exponent)
        powers = np.maximum(activations, 1e-6).astype(float) ** exponent
        np.testing.assert_allclose(shares, powers / powers.sum())
        assert pooled == pytest.approx(np.mean(powers) ** (1 / exponent) / 4)
    # powers of large activations that float64 has no room for
    assert contributions(1e4 * activations, 200.0)[1] == pytest.approx((1 / 6) ** (1 / 200))
    pictures.activation_picture(tmp_path / "a.png", grey_photo(), {64: activations, 32: activations[:1]}, [1, 3], "c")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["", "activations", "p = 1: 0.50", "p = 3: 0.72", "", "activations", "p = 1: 0.33", "p = 3: 0.58"]
    assert [axes.get_ylabel() for axes in figures[0].axes[::4]] == ["32 px", "64 px"]
    with pytest.raises(ValueError, match="must not be empty"):
        pictures.activation_picture(tmp_path / "a.png", grey_photo(), {}, [1], "c")
