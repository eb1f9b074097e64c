import pytest

from mg_keras.errors import UserError
from mg_keras.programs import index
from tests.search.neighbors_test import clustered
from tests.search.sharded_test import here
from tests.search.shards_of_parquet import write_folder


def test_an_index_is_made_from_parquet(tmp_path, capsys, monkeypatch):
    here(monkeypatch)
    features = write_folder(tmp_path / "features", clustered(1500, 32), 400)
    arguments = ["--from", str(features), "--out", str(tmp_path / "index"), "--shards", "2", "--bytes", "8"]
    index.main(arguments)
    shown = capsys.readouterr().out
    assert "1,500 descriptors of 32 values in 2 shards" in shown
    assert "codes of 8 bytes" in shown
    # what is there is taken as it is
    index.main(arguments)


def test_a_plan_has_three_choices(capsys):
    index.main(["--plan", "50e6", "--dimensions", "256", "--cores", "16"])
    shown = capsys.readouterr().out
    assert shown.startswith("50,000,000 descriptors of 256 values, 16 shards, built by 16 cores\n")
    assert shown.count("IVF-PQ, re-ranked") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from PARQUET and --out INDEX are needed, or --plan N"),
        (["--from", "x"], "--from PARQUET and --out INDEX are needed"),
        (["--plan", "5e6", "--out", "x"], "it takes no --out"),
        (["--plan", "5e6", "--bytes", "64"], "--plan builds nothing, and shows choices of bytes and cells"),
        (["--from", "x", "--out", "y", "--cores", "2"], "--dimensions and --cores are for --plan"),
        (["--plan", "many"], "received 'many'"),
        (["--from", "nowhere", "--out", "y"], "received nowhere"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        index.main(arguments)
    assert message in str(refused.value)
