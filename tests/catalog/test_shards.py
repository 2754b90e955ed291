"""Tar shards: whatever members are called, our samples are those of the `webdataset` library, byte for byte."""

import io
import tarfile
from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from k25_pipelines.catalog.kinds.webdataset import chosen_members
from k25_pipelines.catalog.shard import shard_samples
from k25_pipelines.storage.memory import MemoryStore
from k25_pipelines.storage.ranged import RangedFile
from tests.catalog.conftest import film, picture, tar
from tests.catalog.test_media_kinds import indexed, lines

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
EXTENSIONS = ["jpg", "left.jpg", "seg.PNG", "JPG", "json", "cls", "txt", "", "a..b", "__bad__", "__key__", "c/d.jpg"]
STEMS = ["a", "b", "./a", "f/a", "f.g/a", "f/b", ".a", "f/.a", "/a", "__meta__", "__x__/a", "é 1", "a\n", "n" * 120]
NAMES = st.one_of(
    st.tuples(st.sampled_from(STEMS), st.sampled_from(EXTENSIONS)).map(".".join),
    st.text(st.sampled_from("ab.A/_é"), min_size=1, max_size=9),
)
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from([b"", b"x", b"y" * 600]), st.sampled_from("fffffds")), max_size=9)


def archive(members, form: int) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as written:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "s": tarfile.SYMTYPE}[kind]
            info.size = len(content) if kind == "f" else 0
            info.linkname = "a.jpg" if kind == "s" else ""
            written.addfile(info, io.BytesIO(content))
    return data.getvalue()


def library_samples(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    files = tar_file_expander([{"url": "0.tar", "stream": io.BytesIO(data)}])
    return [
        (sample["__key__"], {name: value for name, value in sample.items() if name not in ("__key__", "__url__")})
        for sample in group_by_keys(files)
    ]


def our_samples(data: bytes) -> list:
    store = MemoryStore(url=f"memory://{uuid4().hex}")
    store.put("0.tar", data)
    (info,) = store.list()
    return list(shard_samples(RangedFile(store, info, block_bytes=512), info, where="0.tar"))


def bytes_by_extension(sample, data: bytes) -> dict[str, bytes]:
    return {m.extension: data[m.offset : m.offset + m.num_bytes] for m in sample.members}


@given(MEMBERS, st.sampled_from(sorted(FORMATS)))
@example([("a.jpg", b"x", "f"), ("a.JPG", b"y", "f")], "gnu")
@example([("a.jpg", b"x", "f"), ("__meta__.json", b"{}", "f"), ("a.txt", b"y", "f")], "pax")
@example([("a.jpg", b"x", "f"), ("b.jpg", b"x", "f"), ("a.txt", b"y", "f")], "pax")
@example([("a.__bad__", b"x", "f"), ("a.__bad__", b"", "f")], "gnu")
@settings(max_examples=200, deadline=None)
def test_our_samples_are_those_of_the_webdataset_library(members, form):
    try:
        data = archive(members, FORMATS[form])
    except ValueError:  # the old format has no room for the name
        return
    ours = our_samples(data)
    try:
        expected = library_samples(data)
    except ValueError:  # a second member of one extension, at which the library stops
        assert any(sample.fault for sample in ours)
        return
    assert [(sample.key, bytes_by_extension(sample, data)) for sample in ours] == expected
    assert [sample.fault for sample in ours] == [""] * len(expected)


def test_several_images_of_a_sample_are_parts_in_the_order_of_the_members(lake):
    members = {
        "a/b/0001.right.jpg": picture(5, 4),
        "a/b/0001.txt": b"two views",
        "a/b/0001.left.jpg": picture(6, 4),
        "a/b/0001.seg.png": picture(7, 4, "PNG"),
        "a/b/0001.other.txt": b"ignored",
        "a/b/0001.json": b'{"licence": "MIT"}',
        "a/b/0001.meta.json": b"no JSON, and ignored",
    }
    (line,) = lines(indexed(lake, "webdataset", {"0.tar": tar(members)}))
    assert (line.key, line.licence, line.quarantine, line.text_length) == ("a/b/0001", "MIT", "", 9)
    assert [(part.kind, part.width) for part in line.parts] == [
        ("image", 5),
        ("image", 6),
        ("image", 7),
        ("text", 0),
        ("json", 0),
    ]


def test_films_of_a_shard_are_videos_beside_their_images(lake, tmp_path):
    movie = film(tmp_path)
    (line,) = lines(indexed(lake, "webdataset", {"0.tar": tar({"a.MP4": movie, "a.jpg": picture(), "a.txt": b"both"})}))
    assert [(part.kind, part.width, part.frames, part.fps) for part in line.parts] == [
        ("video", 32, 5, 10.0),
        ("image", 8, 1, 0.0),
        ("text", 0, 0, 0.0),
    ]


def test_of_several_words_the_plainest_extension_counts():
    data = tar({"a.b.txt": b"1", "a.txt": b"2", "a.c.txt": b"3"})
    (sample,) = our_samples(data)
    assert [(kind, member.extension) for kind, member in chosen_members(sample)] == [("text", "txt")]


def test_two_members_of_one_extension_quarantine_their_sample_alone(lake):
    data = archive([("a.jpg", picture(), "f"), ("a.JPG", picture(), "f"), ("b.jpg", picture(), "f")], FORMATS["pax"])
    assert [(line.key, line.quarantine) for line in lines(indexed(lake, "webdataset", {"0.tar": data}))] == [
        ("a", "a.JPG: a second member with the extension 'jpg'"),
        ("b", ""),
    ]


def sparse_tar() -> bytes:
    """A GNU sparse member of 1,024 bytes, of which the last 512 are written; then a plain one."""
    info = tarfile.TarInfo("a.txt")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"00000001000\x0000000001000\x00"  # where it starts and how long it is, in octal
    header[483:495] = b"00000002000\x00"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + b"s" * 512 + tar({"b.txt": b"plain"})


def test_a_sparse_member_quarantines_its_sample_and_says_how_to_write_it(lake):
    found = lines(indexed(lake, "webdataset", {"0.tar": sparse_tar()}))
    said = "a.txt: a sparse file, whose bytes are no range; write the tar without --sparse"
    assert [(line.key, line.quarantine) for line in found] == [("a", said), ("b", "")]


def test_a_dataset_prepared_for_energon_is_read_as_it_is(lake):
    objects = {
        "train/0.tar": tar({"a.jpg": picture(), "a.txt": b"a"}),
        "train/0.tar.idx": b"index",
        ".nv-meta/dataset.yaml": b"__module__: megatron.energon",
        ".nv-meta/leftover.tar": b"no tar",
        ".nv-meta/index.sqlite": b"SQLite",
    }
    assert [line.key for line in lines(indexed(lake, "webdataset", objects))] == ["a"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst"])
def test_a_compressed_shard_beside_plain_ones_is_refused_with_the_way_out(lake, suffix):
    with pytest.raises(Exception, match="is compressed: its samples have no byte ranges; upload it as a plain tar"):
        indexed(lake, "webdataset", {"0.tar": tar({"a.txt": b"a"}), f"1{suffix}": b""})
