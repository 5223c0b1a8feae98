"""Prompt lists from caption files of every kind."""

import csv
import json

import pytest

from training.gather_prompts import gather, main
from training.prompts import read_prompts

CAPTIONS = ["A red fox in snow", "a Red  fox, in snow!", "Two birds", "A boat\non a lake at dawn", "word " * 200]
KEPT = ["A red fox in snow", "A boat on a lake at dawn"]


def write(folder, kind):
    """A caption file of a kind with CAPTIONS in it, but for line breaks where there can be none."""
    path = folder / f"captions{kind}"
    rows = [{"id": str(number), "Caption": text} for number, text in enumerate(CAPTIONS)]
    if kind == ".txt":
        path.write_text("\n".join(text.replace("\n", " ") for text in CAPTIONS), encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, [*rows, {"id": "9"}])) + "\n", encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps(CAPTIONS), encoding="utf-8")
    elif kind == ".parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "Caption"], delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_list(tmp_path, kind, capsys):
    path, out = write(tmp_path, kind), tmp_path / "prompts.txt"
    assert main([str(path), "--out", str(out)]) == 0
    assert list(read_prompts(out)) == KEPT
    assert "2 prompts of 5; left out: 1 repeated, 1 too short, 1 too long" in capsys.readouterr().out


def test_a_folder_is_several_files_and_repeats_count_over_all(tmp_path):
    for kind in (".txt", ".csv"):
        write(tmp_path, kind)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "more.TXT").write_text("A third prompt here\n", encoding="utf-8")
    assert gather([tmp_path])[0] == [*KEPT, "A third prompt here"]
    assert gather([tmp_path], files="other/*")[0] == ["A third prompt here"]
    assert gather([tmp_path], words=(1, 500), files="*.csv")[0][1] == "Two birds"
    one, same = (gather([tmp_path], count=2, seed=1)[0] for _ in range(2))
    assert one == same and len(one) == 2


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("id,name\n1,a red fox in snow\n", (), "--column, there are id, name"),
        ("id,name\n1,a red fox in snow\n", ("--column", "x"), "no column 'x'"),
        ("caption\nfox\n", (), "none of 1 prompts is left"),
        ("caption\na red fox in snow\n", ("--count", "-1"), "--count must be at least 1"),
        ("caption\na red fox in snow\n", ("--words", "9", "3"), "which MAX must not be below"),
        ('{"annotations": [{"caption": "a red fox in snow"}]}', (), "must be a list"),
        ('"a red fox in snow"', ("--words", "1", "9"), "must be a list"),
        ("5", (), "must be a list"),
        ('[{"caption": "a red fox in snow"}', (), "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, content, options, words):
    path = tmp_path / ("a.csv" if content[0].isalpha() else "a.json")
    path.write_text(content, encoding="utf-8")
    assert main([str(path), "--out", str(tmp_path / "p.txt"), *options]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1 and line.count(str(path)) <= 1
    (tmp_path / "b.jsonl").write_text('{"caption": "a red fox in snow"}\n\n{"caption"\n', encoding="utf-8")
    assert main([str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "p.txt")]) == 2
    assert "b.jsonl, line 3: it is not JSON" in capsys.readouterr().err
    assert main([str(tmp_path / "none.csv"), "--out", str(tmp_path / "p.txt")]) == 2
    assert not (tmp_path / "p.txt").exists()
