"""Chat and interleaved documents: the JSON line, then its media in the order in which the content names them."""

import json

import pytest

from k25_pipelines.catalog.registry import index_dataset
from tests.catalog.conftest import json_lines, picture
from tests.catalog.test_media_kinds import bytes_of, indexed, lines

A, B = picture(5, 4), picture(6, 4, "PNG")


def image(key: str) -> dict:
    return {"type": "image", "image": key}


def words(text: str) -> dict:
    return {"type": "text", "text": text}


def said(role: str, content) -> dict:
    return {"role": role, "content": content}


def test_a_conversation_is_its_line_and_its_images_in_order(lake):
    whole = {
        "messages": [
            said("system", "Be kind."),
            said("user", [image("b.png"), words("and"), image(f"{lake.url}/raw/x/f/a.jpg"), words("which?")]),
            said("assistant", [words("both, and "), image("b.png")]),
        ],
        "licence": "MIT",
        "id": "talk",
    }
    plain = {"messages": [said("user", "Hi"), said("assistant", "Hello")]}
    manifest = indexed(lake, "chat", {"0.jsonl": json_lines(whole, plain), "f/a.jpg": A, "b.png": B})
    first, second = lines(manifest)
    assert [(line.key, line.licence, line.quarantine) for line in (first, second)] == [
        ("talk", "MIT", ""),
        ("0.jsonl:2", "CC0-1.0", ""),
    ]
    assert (first.text_length, second.text_length) == (len("Be kind.andwhich?both, and "), 7)
    assert [part.kind for part in first.parts] == ["json", "image", "image", "image"]
    assert json.loads(bytes_of(lake, first.parts[0])) == whole
    assert [bytes_of(lake, part) for part in first.parts[1:]] == [B, A, B]
    assert [part.width for part in first.parts] == [0, 6, 5, 6]


def test_an_interleaved_document_is_its_line_and_its_images_in_order(lake):
    document = {"content": [words("before"), image("./a.jpg"), words("between"), image("b.png")], "source": "a book"}
    manifest = indexed(lake, "interleaved", {"0.jsonl": json_lines(document), "a.jpg": A, "b.png": B})
    (line,) = lines(manifest)
    assert (line.source, line.text_length, line.quarantine) == ("a book", 13, "")
    assert [bytes_of(lake, part) for part in line.parts[1:]] == [A, B]


CHAT_FAULTS = {
    "line 1: 'messages' is no list of messages; the line's fields: text": {"text": "a"},
    "line 1: messages[0].role is 'robot', expected one of system, user, assistant, tool": {
        "messages": [said("robot", "a")]
    },
    "line 1: messages[0].content is NoneType, expected a string or a list of items": {"messages": [{"role": "user"}]},
    "line 1: messages[0].content[0].type is 'sound', expected one of text, image, video": {
        "messages": [said("user", [{"type": "sound"}])]
    },
    "line 1: messages[0].content[0].image is None, expected a string": {
        "messages": [said("user", [{"type": "image"}])]
    },
    "line 1: no message is the assistant's, so there is nothing to learn; register it as another kind": {
        "messages": [said("user", "a")]
    },
    "line 1: image a.b: there is no object 'a.b' below the dataset's URI; put it there, or name it by its key": {
        "messages": [said("user", [image("a.b")]), said("assistant", "a")]
    },
    "line 1: image cut.jpg: broken header": {"messages": [said("assistant", [image("cut.jpg")])]},
    "line 1: 'content' is no list of items; the line's fields: content": {"content": "words"},
}


@pytest.mark.parametrize("fault", CHAT_FAULTS)
def test_a_wrong_line_is_quarantined_with_field_value_and_the_way_out(lake, fault):
    record = CHAT_FAULTS[fault]
    kind = "interleaved" if "content" in record else "chat"
    fine = {"messages": [said("assistant", "a")], "content": [words("a")]}
    found = lines(indexed(lake, kind, {"0.jsonl": json_lines(record, fine), "cut.jpg": A[:30]}))
    assert [line.quarantine for line in found] == [fault, ""]


def test_json_lines_registered_as_text_say_which_kind_they_are(lake):
    found = lines(indexed(lake, "jsonl", {"0.jsonl": json_lines({"messages": []}, {"content": []})}))
    assert [line.quarantine.rpartition("; ")[2] for line in found] == [
        "register it as kind chat",
        "register it as kind interleaved",
    ]


def test_an_image_that_many_lines_show_is_probed_once(lake, monkeypatch):
    from k25_pipelines.catalog import conversation

    probed = []
    monkeypatch.setattr(
        conversation,
        "probed_object",
        lambda store, info, kind, real=conversation.probed_object: probed.append(info.key) or real(store, info, kind),
    )
    records = [{"content": [image("a.jpg"), words(str(number))]} for number in range(5)]
    manifest = indexed(lake, "interleaved", {"0.jsonl": json_lines(*records), "a.jpg": A})
    assert (probed, manifest.num_lines) == (["a.jpg"], 5)


def test_new_conversations_are_new_lines_and_new_images_alone_are_none(lake):
    first = indexed(lake, "interleaved", {"0.jsonl": json_lines({"content": [image("a.jpg")]}), "a.jpg": A})
    lake.put("raw/x/b.png", B)
    assert index_dataset(lake, "x").digest == first.digest
    lake.put("raw/x/1.jsonl", json_lines({"content": [image("b.png")]}))
    second = index_dataset(lake, "x")
    assert [line.parts[1].shard for line in lines(second)] == ["a.jpg", "b.png"]
