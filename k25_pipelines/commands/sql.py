"""`k25 sql`: one's own questions to all that the lake knows."""

import argparse
import csv
import json
import sys

from k25_pipelines.commands.parts import command, count
from k25_pipelines.commands.tables import aligned
from k25_pipelines.environment import open_lake

EXAMPLE = """k25 sql                                                what tables there are
  k25 sql "DESCRIBE samples"                             the columns of one
  k25 sql "SELECT licence, count(*) FROM samples GROUP BY ALL"
  k25 sql "SELECT run, sum(num_tokens) FROM plan_rows JOIN consumed USING (plan) GROUP BY ALL" --csv"""


def add_commands(commands) -> None:
    """Add it to the parser."""
    sql = command(
        commands,
        "sql",
        _sql,
        purpose="ask your own question, in SQL (DuckDB), of manifests, plans, runs, checkpoints and evaluations",
        example=EXAMPLE,
    )
    sql.add_argument("question", nargs="?", help="SELECT ...; - reads it from standard input; none lists the tables")
    sql.add_argument("--rows", type=count, default=50, help="rows printed as a page; --json and --csv print all")
    how = sql.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="a JSON object a row")
    how.add_argument("--csv", action="store_true")


def _sql(options: argparse.Namespace) -> None:
    from k25_pipelines import lake_tables

    lake = open_lake()
    if not options.question:
        from k25_pipelines.catalog.registry import dataset_names

        print(aligned(list(lake_tables.TABLES.items()), header=["table", "holds"]))
        print("\neach dataset is a table of its own name too: " + ", ".join(dataset_names(lake)))
        return
    question = sys.stdin.read() if options.question == "-" else options.question
    found = lake_tables.ask(lake, question)
    if options.json:
        for row in found.to_pylist():
            print(json.dumps(row, default=str, ensure_ascii=False))
    elif options.csv:
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow(found.column_names)
        out.writerows(row.values() for row in found.to_pylist())
    else:
        rows = [list(row.values()) for row in found.slice(0, options.rows).to_pylist()]
        print(aligned([[_plain(cell) for cell in row] for row in rows], header=found.column_names))
        if found.num_rows > options.rows:
            print(
                f"... {found.num_rows - options.rows:,} more rows; --rows, --json or --csv show them", file=sys.stderr
            )


def _plain(cell: object) -> object:
    """Return a cell in one line."""
    return cell if cell is None or isinstance(cell, int | float) else " ".join(str(cell).split())
