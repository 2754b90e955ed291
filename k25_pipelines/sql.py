"""The door to DuckDB: a question in SQL and named tables in, an Arrow table out. Nothing is written, no file read."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from k25_pipelines.errors import LineageError

Tables = Mapping[str, pa.Table | Callable[[], pa.Table]]
"""Tables by name, or what makes them: only those are made that a question names."""

CLOSED = (
    "SET enable_external_access = false",  # a question reads the tables it is given, no file and no address
    "SET python_enable_replacements = false",  # nor what happens to be in this process
    "SET lock_configuration = true",
)


def answer(tables: Tables, question: str, values: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the answer of one question over tables that are named as it names them.

    Args:
        tables: what it may name; names of other things are DuckDB's to refuse.
        question: SQL, `$name` for each value.
        values: by name.

    Raises:
        LineageError: DuckDB does not understand the question, or it would reach out of the tables.
    """
    with duckdb.connect() as connection:
        try:
            for setting in CLOSED:
                connection.execute(setting)
            for name, table in tables.items():
                if _is_named(name, question):
                    connection.register(name, table if isinstance(table, pa.Table) else table())
            relation = connection.sql(question, params=dict(values or {}))
            if relation is not None:
                return relation.to_arrow_table()
        except duckdb.Error as error:
            words = " ".join(str(error).split())
            raise LineageError(f"DuckDB does not understand the question: {words}") from error
    raise LineageError(f"{question!r} asks for nothing; a question begins with SELECT, such as SELECT * FROM datasets")


def _is_named(name: str, question: str) -> bool:
    """Return whether a name stands in a question, as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question, re.IGNORECASE) is not None
