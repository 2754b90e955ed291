"""A sync between two real servers: priced, within its budget, resumed, compared, recorded."""

import json
import os
from dataclasses import replace

import pytest

from k25_pipelines.errors import ObjectChangedError, StoreError
from k25_pipelines.sync import Budget, Prices, Settings, SyncError, copies_of, estimate, open_target, run, sync_targets
from k25_pipelines.sync.digests import compared
from k25_pipelines.sync.rclone import MIB, copy_objects, pending_uploads
from tests.storage.conftest import SECRET_KEY

IN_PARTS = Settings(multipart_bytes=6 * MIB, part_bytes=5 * MIB)


def test_every_copy_holds_the_bytes_of_its_source_whether_sent_at_once_or_in_parts(two, fill):
    made = fill(small=1000, empty=0, large=11 * MIB)
    report = run(two.job(settings=IN_PARTS))
    assert (report["copied"], report["left"], two.copies()) == (3, 0, made)
    assert two.there.head("large.bin").etag.endswith("-3")  # no MD5: it was read to be compared
    assert report["moved_bytes"] == sum(map(len, made.values())) + 11 * MIB


def test_keys_of_any_sign_are_copied(two):
    keys = ["a b.txt", " leading", "ünï/日本.txt", "quote'\".txt", "#hash;.txt", "[a]*{b}?.txt", "-dash", "back\\slash"]
    for key in keys:
        two.lake.put(f"raw/{key}", key.encode())
    run(two.job())
    assert two.copies() == {key: key.encode() for key in keys}


def test_a_second_run_moves_nothing(two, fill):
    fill(a=1000, b=7 * MIB)
    run(two.job(settings=IN_PARTS))
    again = two.job(settings=IN_PARTS)
    assert (again.num_done, again.to_copy, again.to_compare) == (2, (), ())
    assert run(again)["moved_bytes"] == 0


def test_looking_moves_nothing_and_says_what_the_run_then_takes(two, fill):
    fill(a=1_000_000, b=2_000_000)
    job = two.job(prices=Prices(usd_per_gb=0.1, usd_per_1000_gets=1.0, usd_per_1000_puts=2.0))
    told = estimate(job)
    assert two.copies() == {}
    assert {name: told[name] for name in ("objects", "bytes", "to_copy", "moved_bytes", "gets", "puts")} == {
        "objects": 2,
        "bytes": 3_000_000,
        "to_copy": 2,
        "moved_bytes": 3_000_000,
        "gets": 6,
        "puts": 4,
    }
    assert told["usd"] == pytest.approx(0.0003 + 0.006 + 0.008)
    report = run(job)
    assert (report["moved_bytes"], report["usd"]) == (told["moved_bytes"], pytest.approx(told["usd"]))


def test_a_budget_of_bytes_is_never_passed_and_the_next_run_sends_the_rest_alone(two, fill):
    made = fill(a=400, b=400, c=400)
    first = run(two.job(), budget=Budget(num_bytes=1000))
    assert (first["copied"], first["left"], first["left_bytes"], first["moved_bytes"]) == (2, 1, 400, 800)
    second = run(two.job(), budget=Budget(num_bytes=400))
    assert (second["there"], second["copied"], second["left"], second["moved_bytes"]) == (2, 1, 0, 400)
    assert two.copies() == made


def test_a_budget_of_money_is_never_passed(two, fill):
    fill(a=400, b=400, c=400)
    prices = Prices(usd_per_gb=1e6, usd_per_1000_gets=0.0, usd_per_1000_puts=0.0)
    report = run(two.job(prices=prices), budget=Budget(usd=0.9))
    assert (report["copied"], report["usd"], report["left"]) == (2, 0.8, 1)


def test_the_engine_itself_stops_at_a_limit_of_bytes(two, fill):
    fill(a=3 * MIB, b=3 * MIB)
    job = two.job()
    copy_objects(*job.places, ["a.bin", "b.bin"], settings=replace(job.settings, transfers=1), max_bytes=4 * MIB)
    assert list(two.copies()) == ["a.bin"]


def test_where_copies_are_is_recorded_without_any_secret(two, fill):
    fill(a=10)
    run(two.job())
    [target] = sync_targets(two.lake)
    assert (target.source, target.destination, target.dataset) == (f"{two.lake.url}/raw", two.there.url, None)
    assert copies_of(two.lake, f"{two.lake.url}/raw/a.bin") == [(target, "a.bin")]
    assert copies_of(two.lake, f"{two.lake.url}/rawer/a.bin") == []
    assert open_target(target).get("a.bin") == two.lake.get("raw/a.bin")
    recorded = b"".join(two.lake.get(info.key) for info in two.lake.list("k25/syncs/"))
    assert SECRET_KEY.encode() not in recorded


def test_a_target_is_recorded_before_the_first_byte_is_copied(two, fill, monkeypatch):
    fill(a=10)

    def dies(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("k25_pipelines.sync.transfer.copy_objects", dies)
    with pytest.raises(KeyboardInterrupt):
        run(two.job())
    assert [target.destination for target in sync_targets(two.lake)] == [two.there.url]


def test_copies_behind_another_s3_than_the_one_at_hand_are_not_taken_for_ours(two, fill):
    fill(a=10)
    run(two.job())
    [target] = sync_targets(two.lake)
    with pytest.raises(StoreError, match="sync once with --dst-access"):
        open_target(replace(target, destination_access=None), os.environ)


def test_another_object_under_the_same_key_is_kept_unless_it_is_to_be_replaced(two, fill):
    made = fill(a=10, b=20)
    two.there.put("a.bin", b"somebody else's")
    with pytest.raises(SyncError, match=r"other objects under 1 keys, such as a\.bin"):
        two.job()
    assert two.copies() == {"a.bin": b"somebody else's"}
    run(two.job(overwrite=True))
    assert two.copies() == made


def test_a_copy_that_rotted_is_found_and_named_and_sent_anew_when_told(two, fill):
    made = fill(a=10)
    run(two.job())
    two.there.put("a.bin", bytes(10))
    with pytest.raises(StoreError, match=r"a\.bin is no copy: it has MD5"):
        run(two.job())
    assert run(two.job(overwrite=True))["copied"] == 1
    assert two.copies() == made


def test_an_object_that_changed_at_its_source_is_sent_again_where_we_wrote_the_copy(two, fill):
    fill(pointer=10)
    run(two.job())
    two.lake.put("raw/pointer.bin", b"points elsewhere")
    assert run(two.job())["copied"] == 1
    assert two.copies() == {"pointer.bin": b"points elsewhere"}


def test_copies_that_arrived_before_a_kill_are_compared_and_not_sent_again(two, fill):
    made = fill(a=400, b=400)
    for key, data in made.items():
        two.there.put(key, data)
    report = run(two.job())
    assert (report["compared"], report["copied"], report["moved_bytes"]) == (2, 0, 0)


def test_an_object_that_is_overwritten_while_it_is_copied_is_named(two, fill, monkeypatch):
    fill(a=10)
    job = two.job()
    two.lake.put("raw/a.bin", b"0123456789")
    with pytest.raises(ObjectChangedError, match=r"raw/a\.bin was overwritten while it was copied"):
        run(job)


def test_an_object_that_cannot_be_read_is_named_and_the_others_arrive(two, fill):
    fill(a=10, b=10)
    job = two.job()
    two.lake.delete("raw/a.bin")
    with pytest.raises(SyncError, match=r"goes on where this one stopped|though it was sent"):
        run(job)
    assert list(two.copies()) == ["b.bin"]
    assert two.job().num_done == 1


def test_two_runs_of_one_sync_do_not_go_on_together(two, fill, monkeypatch):
    fill(a=10)

    def meets_another(*_: object, **__: object) -> int:
        with pytest.raises(SyncError, match="another process of this machine does this sync now"):
            run(two.job())
        raise KeyboardInterrupt

    monkeypatch.setattr("k25_pipelines.sync.transfer.copy_objects", meets_another)
    with pytest.raises(KeyboardInterrupt):
        run(two.job())


def test_what_names_other_objects_is_copied_after_them(two):
    keys = ["k25/plans/p/plan.json", "k25/plans/p/index.json", "k25/plans/p/segments/0.parquet", "raw/z.tar"]
    keys += ["k25/datasets/d/versions/000001.json", "k25/datasets/d/manifests/m.parquet"]
    keys += ["k25/checkpoints/r/00000001/record.json", "k25/checkpoints/r/00000001/weights.npz"]
    for key in keys:
        two.lake.put(f"raw/{key}", b"{}")
    order = [info.key for info in two.job().selection.objects]
    assert order == [
        "k25/checkpoints/r/00000001/weights.npz",
        "k25/datasets/d/manifests/m.parquet",
        "k25/plans/p/segments/0.parquet",
        "raw/z.tar",
        "k25/checkpoints/r/00000001/record.json",
        "k25/datasets/d/versions/000001.json",
        "k25/plans/p/index.json",
        "k25/plans/p/plan.json",
    ]


def test_a_place_inside_the_source_is_refused(two, fill):
    fill(a=10)
    inside = f"{two.lake.url}/raw/copy"
    from k25_pipelines.sync import look, read_access

    ours = read_access(None, os.environ)
    with pytest.raises(SyncError, match="would grow for ever"):
        look(two.lake, f"{two.lake.url}/raw", inside, access=(ours, ours))


def test_a_folder_takes_copies_too_and_half_written_files_are_removed(two, fill, tmp_path):
    made = fill(a=10, b=7 * MIB)
    from k25_pipelines.sync import look, read_access

    ours, folder = read_access(None, os.environ), tmp_path / "mirror"
    folder.mkdir()
    (folder / "b.bin.12345678.k25-part").write_bytes(b"half")
    report = run(look(two.lake, f"{two.lake.url}/raw", str(folder), access=(ours, ours)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    assert report["aborted_uploads"] == 1


def test_an_etag_that_is_no_md5_of_the_bytes_is_not_believed(two, fill):
    made = fill(a=100)
    info = replace(two.lake.head("raw/a.bin"), etag="0" * 32)  # as a server that encrypts may tell

    class Encrypting:
        url = "s3://encrypting"

        def get_range(self, key: str, offset: int, num_bytes: int, *, etag: str | None = None) -> bytes:
            return made["a.bin"][offset : offset + num_bytes]

    two.there.put("a.bin", made["a.bin"])
    found = compared(Encrypting(), info, two.there, two.there.head("a.bin"))
    assert (found.md5, found.bytes_read) == (two.there.head("a.bin").etag, 200)


def test_runs_leave_what_they_moved_in_the_lake(two, fill):
    fill(a=10)
    run(two.job(), budget=Budget(num_bytes=5))
    run(two.job())
    told = [json.loads(two.lake.get(info.key)) for info in two.lake.list("k25/syncs/") if "/runs/" in info.key]
    assert [(each["copied"], each["left"], each["budget"]["bytes"]) for each in told] == [(0, 1, 5), (1, 0, None)]
    assert pending_uploads(two.job().places[1]) == []
