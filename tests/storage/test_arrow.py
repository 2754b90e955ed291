"""Parquet objects of any store as one table, and as files for SQL."""

import io
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k25_pipelines.errors import ObjectNotFoundError, StoreError
from k25_pipelines.storage.arrow import filesystem, parquet_tables


def parquet(table: pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


TABLES = {
    f"tables/{number}.parquet": pa.table({"step": [number * 2, number * 2 + 1], "key": [f"é{number}", None]})
    for number in range(3)
}
WHOLE = pa.concat_tables(TABLES.values())


@pytest.fixture
def filled(store):
    for key, table in TABLES.items():
        store.put(key, parquet(table))
    return store


def test_tables_are_one_in_the_order_of_the_keys(filled):
    assert parquet_tables(filled, TABLES) == WHOLE
    assert parquet_tables(filled, list(TABLES)[::-1], columns=["step"]).to_pydict() == {"step": [4, 5, 2, 3, 0, 1]}


def test_a_column_that_an_object_lacks_is_null_there(filled):
    filled.put("late.parquet", parquet(pa.table({"step": [9], "run": ["r"]})))
    found = parquet_tables(filled, ["tables/0.parquet", "late.parquet"]).to_pydict()
    assert found == {"step": [0, 1, 9], "key": ["é0", None, None], "run": [None, None, "r"]}


def test_what_cannot_be_one_table_is_named(filled):
    filled.put("text.parquet", b"words")
    filled.put("other.parquet", parquet(pa.table({"step": ["one"]})))
    with pytest.raises(StoreError, match=r"text.parquet: no Parquet table"):
        parquet_tables(filled, ["text.parquet"])
    with pytest.raises(StoreError, match=r"tables of tables/0.parquet to other.parquet differ in their columns"):
        parquet_tables(filled, ["tables/0.parquet", "other.parquet"])
    with pytest.raises(ObjectNotFoundError, match=r"none.parquet.*: no such object"):
        parquet_tables(filled, ["none.parquet"])
    with pytest.raises(ValueError, match="no key is given"):
        parquet_tables(filled, [])


def test_sql_reads_the_objects_of_a_store(filled):
    with duckdb.connect() as database:
        database.register_filesystem(filesystem(filled))
        query = "SELECT step, key FROM read_parquet('k25://tables/*.parquet') ORDER BY step"
        assert database.sql(query).fetchall() == list(zip(*WHOLE.to_pydict().values(), strict=True))
        assert database.sql("SELECT max(step) FROM 'k25://tables/1.parquet'").fetchall() == [(3,)]
        with pytest.raises(duckdb.IOException, match="none"):
            database.sql("SELECT * FROM 'k25://tables/none.parquet'")


def test_a_large_table_is_read_by_ranges_through_sql(filled):
    numbers = list(range(300_000))
    filled.put("large.parquet", parquet(pa.table({"n": numbers}), row_group_size=50_000, compression="none"))
    with duckdb.connect() as database:
        database.register_filesystem(filesystem(filled))
        found = database.sql("SELECT sum(n), count(*) FROM 'k25://large.parquet'").fetchall()
    assert found == [(sum(numbers), 300_000)]


def test_arrow_reads_through_the_same_filesystem(filled):
    found = pq.read_table("tables/2.parquet", filesystem=filesystem(filled))
    assert found == TABLES["tables/2.parquet"]


def test_a_path_is_a_file_a_folder_or_nothing(filled):
    files = filesystem(filled)
    assert files.ls("k25://", detail=False) == ["tables"]
    assert [PurePosixPath(name).name for name in files.ls("tables", detail=False)] == [
        "0.parquet",
        "1.parquet",
        "2.parquet",
    ]
    assert (files.isdir("tables"), files.isfile("tables/0.parquet"), files.exists("none")) == (True, True, False)
    assert files.size("tables/0.parquet") == len(parquet(TABLES["tables/0.parquet"]))
    with pytest.raises(StoreError, match="only read"):
        files.open("tables/0.parquet", "wb")
