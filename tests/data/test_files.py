"""Files of every format: what a row becomes, what is wrong with a broken one, and which files are read."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sources.base import BadRecord, Columns, Record, open_source
from harness.data.sources.csv import Csv, CsvParameters
from harness.errors import ArgumentError, MachineError

SECRET = "my heart is a SECRET"
ROWS = [{"user": "ann", "text": "hello"}, {"user": "bob", "text": "hi\nthere"}]
GOOD = [Record("ann", "hello", {}, "line 2"), Record("bob", "hi\nthere", {}, "line 3")]


@pytest.fixture
def read(make_data, tmp_path):
    """Everything that a source yields; `door` is how it is asked."""

    def run(type_, path, door="records", attributes=(), **parameters):
        data = make_data("x", source={"type": type_, "path": path, **parameters}, attributes=attributes)
        return list(getattr(open_source(data, tmp_path), door)(Columns.of(data)))

    return run


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def refusals(found):
    return [(bad.where, bad.reason, bad.user) for bad in found if isinstance(bad, BadRecord)]


# --- csv ----------------------------------------------------------------------------------------------------


def test_csv_reads_quotes_line_breaks_and_numbers_as_text(tmp_path, read):
    content = 'user,text,plan\r\n007,"say ""hi"",\r\nnow",free\r\n\r\n1.5,x,\r\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read("csv", "a.csv", attributes=["plan"]) == [
        Record("007", 'say "hi",\r\nnow', {"plan": "free"}, "line 2"),
        Record("1.5", "x", {"plan": None}, "line 5"),
    ]
    assert read("csv", "a.csv", "public", attributes=["plan"]) == [("007", {"plan": "free"}), ("1.5", {"plan": None})]


def test_a_broken_row_is_located_and_the_next_one_read(tmp_path, read):
    content = f'user,text\nann,a\nann,{SECRET},x\n,b\nbob,\n"ann"x,{SECRET}\nann\nann,caf\xe9\nbob,z\n'
    (tmp_path / "a.csv").write_bytes(content.encode("latin-1"))
    found = read("csv", "a.csv")
    assert [r.text for r in found if isinstance(r, Record)] == ["a", "z"]
    assert refusals(found) == [
        ("line 3", "the row has 3 values, the header 2", None),
        ("line 4", "the user is missing", None),
        ("line 5", "the text is missing", "bob"),
        ("line 6", "not CSV (its quotes, or a value that is far too long)", None),
        ("line 7", "the row has 1 values, the header 2", None),
        ("line 8", "the text is not utf-8 (data.source.encoding)", "ann"),
    ]
    assert "SECRET" not in repr(refusals(found))


def test_csv_in_another_encoding_with_another_delimiter(tmp_path, read):
    for encoding in ("utf-16", "cp1252"):
        (tmp_path / "a.csv").write_bytes("user;text\nann;caf\xe9, \u20ac\n".encode(encoding))
        assert read("csv", "a.csv", delimiter=";", encoding=encoding)[0].text == "caf\xe9, \u20ac"
    (tmp_path / "a.csv").write_bytes("user,text\nann,x\n".encode("utf-16"))
    with pytest.raises(ArgumentError, match=r"^data\.source\.encoding: the header of .*a\.csv is not utf-8; give the"):
        read("csv", "a.csv")


@pytest.mark.parametrize("door", ["records", "public"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no records"),
        ("user,text\n", "has no records"),
        (
            "usr,text\nann,x\n",
            r'data\.user: no record of .* the column "user" \(there are: text, usr\); did you mean "usr"',
        ),
        ("user,text,user\na,b,c\n", 'has several columns "user"'),
    ],
)
def test_a_csv_that_can_not_be_used_is_one_line(content, message, door, tmp_path, read):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ArgumentError, match=message):
        read("csv", "a.csv", door)


def test_a_quote_that_is_never_closed_costs_a_bounded_memory(tmp_path, read, monkeypatch):
    monkeypatch.setattr("harness.data.sources.csv._LONGEST", 200_000)
    (tmp_path / "a.csv").write_text('user,text\nann,"' + "x\n" * 150_000 + "bob,fine\n")
    found = read("csv", "a.csv")
    assert refusals(found)[0][0] == "line 2"
    assert found[-1].user == "bob"


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, pairs):
    import csv

    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("user", "text"), *pairs])
    found = list(Csv(CsvParameters(path=str(path))).records(Columns("user", "text")))
    assert [(r.user, r.text) for r in found if isinstance(r, Record)] == [
        (u, t) for u, t in pairs if u.strip() and t.strip()
    ]


# --- parquet ------------------------------------------------------------------------------------------------


def test_parquet_takes_whole_numbers_as_users_and_refuses_others(tmp_path, read):
    pq.write_table(
        pa.table({"user": [7, None, 8], "text": ["a", "b", None], "plan": ["x", "y", "z"]}), tmp_path / "a.parquet"
    )
    found = read("parquet", "a.parquet", attributes=["plan"])
    assert found[0] == Record("7", "a", {"plan": "x"}, "row 1")
    assert refusals(found) == [("row 2", "the user is missing", None), ("row 3", "the text is missing", "8")]
    assert read("parquet", "a.parquet", "public", attributes=["plan"]) == [("7", {"plan": "x"}), ("8", {"plan": "z"})]
    pq.write_table(pa.table({"user": [7.5], "text": ["a"]}), tmp_path / "a.parquet")
    assert refusals(read("parquet", "a.parquet")) == [
        ("row 1", "the user is neither a string nor a whole number", None)
    ]


def test_a_number_is_one_user_in_every_format(tmp_path, read):
    """12 with gaps becomes 12.0 in pandas. Break: take the float's own text for the name, or a CSV's as it is."""
    users = [12, 12.0, None, float("nan"), -3.0, 2.0**53]
    (tmp_path / "a.jsonl").write_bytes(lines([{"user": user, "text": "x"} for user in users]))
    (tmp_path / "a.csv").write_text("user,text\n" + "".join(f"{u},x\n" for u in ("12", "12.0", "", "", "-3.0")))
    values = {"f.parquet": [12.0, None, -3.0], "d.parquet": [Decimal("12.00"), None, Decimal(-3)]}
    for name, column in values.items():
        pq.write_table(pa.table({"user": column, "text": ["x"] * 3}), tmp_path / name)
    names = {name: [r.user for r in read(name.split(".")[1], name)] for name in ("a.jsonl", "a.csv", *values)}
    assert names["a.jsonl"] == ["12", "12", None, None, "-3", str(2**53)]
    assert names["a.csv"] == ["12", "12", None, None, "-3"]
    assert names["f.parquet"] == names["d.parquet"] == ["12", None, "-3"]
    (tmp_path / "b.csv").write_text("user,text\n007,x\n1.50,x\n.0,x\n00.0,x\n")
    assert [r.user for r in read("csv", "b.csv")] == ["007", "1.50", ".0", "00.0"]  # other text stays as it is


def test_mixed_types_and_missing_columns_are_told_row_by_row(tmp_path, read):
    rows = [
        {"user": "ann", "text": 5, "plan": 2.5},
        {"user": ["ann"], "text": "x"},
        {"text": "x", "plan": float("nan")},
        {"user": 1e300, "text": "x"},
        {"user": "bob", "text": "x", "plan": float("nan")},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    found = read("jsonl", "a.jsonl", attributes=["plan"])
    no_user = "the user is neither a string nor a whole number"
    assert refusals(found) == [
        ("line 1", "the text is not a string", "ann"),
        ("line 2", no_user, None),
        ("line 3", "the user is missing", None),
        ("line 4", no_user, None),
    ]
    assert found[-1] == Record("bob", "x", {"plan": None}, "line 5")


def test_parquet_holds_messages(tmp_path, make_data):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pq.write_table(pa.table({"user": ["ann"], "chat": [chat]}), tmp_path / "a.parquet")
    data = make_data("x", source={"type": "parquet", "path": "a.parquet"}, messages="chat", text=None)
    (record,) = open_source(data, tmp_path).records(Columns.of(data))
    assert [(t.role, t.content) for t in record.turns] == [("user", "q"), ("assistant", "a")]


def test_a_missing_column_or_another_format_is_one_line(tmp_path, read):
    pq.write_table(pa.table({"usr": ["ann"], "text": [SECRET]}), tmp_path / "a.parquet")
    with pytest.raises(ArgumentError, match=r'the column "user" \(there are: text, usr\); did you mean "usr"'):
        read("parquet", "a.parquet")
    (tmp_path / "b.parquet").write_text(SECRET)
    with pytest.raises(ArgumentError, match=r"b\.parquet is not a Parquet file, or is damaged$"):
        read("parquet", "b.parquet")


# --- what can't be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["records", "public"])
@pytest.mark.parametrize(
    ("written", "declared"),
    [("utf-16", "utf-8"), ("utf-16-le", "utf-8"), ("utf-16-le", "cp1252"), ("ascii", "utf-16"), ("ascii", "idna")],
)
def test_a_wrong_encoding_is_one_line_with_its_key(written, declared, door, tmp_path, read, make_data):
    """Break: leave UnicodeError to the guard, which knows neither the file nor the key."""
    content = f"user,text\nann,{SECRET}\n".encode(written)
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(
        ArgumentError, match=rf"^data\.source\.encoding: .*a\.csv is not {declared}; give the"
    ) as caught:
        read("csv", "a.csv", door, encoding=declared)
    assert "SECRET" not in repr(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_truncated_character_costs_its_row_alone(tmp_path, read):
    (tmp_path / "a.csv").write_bytes("user,text\nann,fine\nbob,cut\n".encode("utf-16")[:-1])
    found = read("csv", "a.csv", encoding="utf-16")
    assert found[0].text == "fine"
    assert refusals(found) == [("line 3", "the text is not utf-16 (data.source.encoding)", "bob")]


def test_a_first_line_that_is_no_header_is_not_quoted(tmp_path, read):
    (tmp_path / "a.csv").write_text(f"ann,{SECRET}\nann,{SECRET} too\n")
    with pytest.raises(
        ArgumentError, match=r"the first line of .*a\.csv names none of the columns user, text; it"
    ) as got:
        read("csv", "a.csv")
    assert "SECRET" not in str(got.value)


@pytest.mark.parametrize("type_", ["jsonl", "csv", "parquet", "huggingface"])
def test_odd_paths_are_one_line(type_, tmp_path, read, monkeypatch):
    """Break: `Path.exists` raises for a name that is too long; a FIFO is waited for, for ever."""
    ending = type_.replace("huggingface", "jsonl")
    os.mkfifo(tmp_path / f"fifo.{ending}")
    (tmp_path / f"gone.{ending}").symlink_to(tmp_path / "nothing")
    (tmp_path / f"empty.{ending}").touch()
    (tmp_path / f"loop.{ending}").symlink_to(tmp_path / f"loop.{ending}")
    for path, message in (
        (f"fifo.{ending}", r"fifo\.\w+ is a pipe, a socket or a device"),
        (f"gone.{ending}", r"gone\.\w+ is a link to what is not there"),
        (f"loop.{ending}", r"loop\.\w+ can't be looked at \(Too many levels"),
        (f"{'x' * 5000}.{ending}", r"x…x\S* can't be looked at \(File name too long\)"),
        (f"{'x' * 5000}*.{ending}", r"no file matches x"),
        (f"a\0b.{ending}", r"a\\x00b\.\w+ holds a character that no path can have"),
        (f"a\nb.{ending}", r"there is no file a\\nb"),
        (f"~nobody-is-called-so/a.{ending}", "begins with the home folder of nobody here"),
        (f"empty.{ending}", r"empty\.\w+ (has no records|is not a Parquet file, or is damaged)"),
    ):
        with pytest.raises(ArgumentError, match=rf"^data\.source\.path: .*{message}") as caught:
            read(type_, path)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400


def test_what_may_not_be_read_is_named(tmp_path, read, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("harness.data.sources.jsonl.open_binary", refused)
    with pytest.raises(ArgumentError, match=r"a\.jsonl can't be read \(Permission denied\)$"):
        read("jsonl", "a.jsonl")
    monkeypatch.setattr("pathlib.Path.stat", refused)
    with pytest.raises(ArgumentError, match=r"a\.jsonl can't be looked at \(Permission denied\)$"):
        read("jsonl", "a.jsonl")


def test_a_json_array_is_told_and_a_line_without_end_costs_a_bounded_memory(tmp_path, read, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS))
    with pytest.raises(ArgumentError, match="is a JSON object in UTF-8; where it is one JSON array, put each of its"):
        read("jsonl", "a.jsonl")
    monkeypatch.setattr("harness.data.sources.jsonl._LONGEST", 1000)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:1]) + b"x" * 5000 + b"\n" + lines(ROWS[1:]))
    found = read("jsonl", "a.jsonl")
    assert refusals(found) == [("line 2", "a line that is far too long", None)]
    assert [item.user for item in found] == ["ann", None, "bob"]


@pytest.mark.parametrize("type_", ["parquet", "huggingface"])
def test_parquet_compressed_once_more_is_refused(type_, tmp_path, read):
    pq.write_table(pa.table({"user": ["ann"], "text": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    with pytest.raises(ArgumentError, match=r"a\.parquet\.gz is a Parquet file compressed once more, which can't be"):
        read(type_, "a.parquet.gz")


# --- several, and compressed ones ---------------------------------------------------------------------------


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zst)]
)
def test_a_compressed_file_is_read_and_a_damaged_one_named(suffix, pack, tmp_path, read):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(lines(ROWS)))
    assert [r.text for r in read("jsonl", path.name)] == ["hello", "hi\nthere"]
    for damaged in (path.read_bytes()[:-9], lines(ROWS)):
        path.write_bytes(damaged)
        with pytest.raises(ArgumentError, match="it is damaged, or not compressed as its name says") as caught:
            read("jsonl", path.name)
        assert "hello" not in str(caught.value)


def test_globs_and_lists_are_read_in_order_and_places_name_the_file(tmp_path, read):
    (tmp_path / "data").mkdir()
    for name in ("b", "a"):
        (tmp_path / "data" / f"{name}.jsonl").write_bytes(lines([{"user": name, "text": "x"}, {"user": name}]))
    found = read("jsonl", "data/*.jsonl")
    assert [item.where for item in found] == ["a.jsonl line 1", "a.jsonl line 2", "b.jsonl line 1", "b.jsonl line 2"]
    assert refusals(found)[0] == ("a.jsonl line 2", "the text is missing", "a")
    listed = read("jsonl", ["data/b.jsonl", "data/*.jsonl"])
    assert [item.user for item in listed] == ["b", "b", "a", "a"]
    with pytest.raises(ArgumentError, match=r"^data\.source\.path: no file matches data/\*\.csv$"):
        read("jsonl", "data/*.csv")
    with pytest.raises(ArgumentError, match=r"no record of the 2 files of data\.source has the column"):
        read("jsonl", "data/*.jsonl", attributes=["plan"])


def test_what_decides_the_content_is_in_the_fingerprint(tmp_path, make_data, build):
    (tmp_path / "a.csv").write_text("user,text;x\nann,b;c\n")
    prints = [
        build(make_data("x", source={"type": "csv", "path": "a.csv", **more}, text="text;x")).fingerprint
        for more in ({}, {"encoding": "latin-1"})
    ]
    assert prints[0] != prints[1]


# --- huggingface --------------------------------------------------------------------------------------------


def place(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"user": [name], "text": ["x"]})
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        elif path.suffix == ".csv":
            path.write_text(f"user,text\n{name},x\n")
        else:
            path.write_bytes(lines([{"user": name, "text": "x"}]))


@pytest.mark.parametrize(
    ("names", "parameters", "found"),
    [
        (["a.jsonl", "b.csv"], {}, ["a.jsonl", "b.csv"]),
        (["train.jsonl", "test.jsonl", "dataset_info.json"], {}, ["train.jsonl"]),
        (["train.jsonl", "dev.jsonl"], {"split": "validation"}, ["dev.jsonl"]),
        (["data/train-00001-of-2.parquet", "data/train-00000-of-2.parquet", "data/test-0.parquet"], {}, None),
        (["en/train.csv", "de/train.csv"], {"name": "de"}, ["de/train.csv"]),
        (["a/x.jsonl"], {"path": "set/a/x.jsonl"}, ["a/x.jsonl"]),
    ],
)
def test_local_layouts(names, parameters, found, tmp_path, read):
    place(tmp_path / "set", *names)
    found = found or ["data/train-00000-of-2.parquet", "data/train-00001-of-2.parquet"]
    assert [r.user for r in read("huggingface", **{"path": "set", **parameters})] == found
    assert "datasets" not in sys.modules


def test_a_readme_may_name_the_files(tmp_path, read):
    place(tmp_path / "set", "one.jsonl", "two.jsonl")
    head = {"configs": [{"config_name": "c", "data_files": [{"split": "train", "path": "two*"}]}]}
    (tmp_path / "set" / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n# A set\n")
    assert [r.user for r in read("huggingface", "set")] == ["two.jsonl"]


def test_what_save_to_disk_wrote_is_read(tmp_path, read):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    table = pa.table({"user": ["ann"], "text": ["x"]})
    with pa.ipc.new_stream(folder / "data-0.arrow", table.schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}], "_split": None}))
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    assert read("huggingface", "set") == [Record("ann", "x", {}, "row 1")]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"path": "set", "split": "tran"}, r'data\.source\.split: there is no split "tran" .*did you mean "train"\?'),
        ({"path": "set", "name": "fr"}, r'data\.source\.name: there is no configuration "fr"'),
        ({"path": "empty"}, "holds no data files"),
        ({"path": "odd.bin"}, "is in no known format"),
        ({"path": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
    ],
)
def test_a_local_set_that_is_not_there_is_one_line(parameters, message, tmp_path, read):
    place(tmp_path / "set", "a.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.bin").touch()
    with pytest.raises(ArgumentError, match=message):
        read("huggingface", **parameters)


def test_without_a_network_a_hub_id_is_one_line(read):
    pytest.importorskip("datasets")
    with pytest.raises(
        MachineError, match=r'^data\.source\.path: there is no local file or folder "some/set", and the'
    ):
        read("huggingface", "some/set")


def test_without_the_package_the_way_to_install_it_is_told(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match=r'pip install "uudp\[hub\]"'):
        read("huggingface", "some/set")
