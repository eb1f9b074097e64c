import numpy as np
import pytest

from mg_keras.data.photo_lists import Photo
from mg_keras.embedding import work
from mg_keras.embedding.work import Work
from mg_keras.errors import UserError

PHOTOS = [Photo(f"{n}.tar#{n}", f"{n}.tar", n, 7) if n % 3 else Photo(f"/{n}.jpg", f"/{n}.jpg") for n in range(20)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(work, "_ROWS_A_BATCH", 6)


def test_pieces_are_what_is_left_of_fixed_stretches(tmp_path):
    def listed():
        for photo in PHOTOS:
            # nor while the list is read, which may take minutes: nothing stays after kill -9
            assert list(tmp_path.iterdir()) == []
            yield photo

    with Work(listed(), tmp_path) as found:
        assert len(found) == 20
        assert list(found.uris()) == [photo.uri for photo in PHOTOS]
        done = np.isin(np.arange(20), [0, 8, 9, 10, 11, 12, 13, 14, 15, 17])
        pieces = list(found.pieces(done, 8))
        assert [piece.ids.tolist() for piece in pieces] == [[1, 2, 3, 4, 5, 6, 7], [16, 18, 19]]
        assert [piece.photos for piece in pieces] == [[PHOTOS[place] for place in piece.ids] for piece in pieces]
        # the file is gone already, for those who look
        assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_text_is_kept(tmp_path):
    photo = Photo("a\\xe9.jpg", "a\udce9.jpg")
    with Work([photo], tmp_path) as found:
        assert [piece.photos for piece in found.pieces(np.zeros(1, bool), 4)] == [[photo]]


def test_equal_lists_have_equal_digests(tmp_path):
    lists = [PHOTOS, PHOTOS[:-1], PHOTOS[::-1], [PHOTOS[0]._replace(stamp="new"), *PHOTOS[1:]], PHOTOS]
    digests = [Work(each, tmp_path).digest for each in lists]
    assert digests[0] == digests[-1]
    assert len(set(digests)) == 4


def test_a_photo_is_named_once(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--photos names /9\.jpg twice"):
        Work([*PHOTOS, PHOTOS[9]], tmp_path)
    with pytest.raises(UserError, match="--photos names no photo"):
        Work([], tmp_path)
    # two names may have one hash
    monkeypatch.setattr(work, "_short_hash", lambda uri: 1)
    assert len(Work(PHOTOS, tmp_path)) == 20
