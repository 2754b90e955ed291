"""Material in, the corpus's objects out: (key below the lake's root, bytes), dataset after dataset."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from infra.demo_corpus import captions, clips, code_files, grounding, wiki
from infra.demo_corpus.material import Material, Progress

Objects = Iterator[tuple[str, bytes]]


def corpus_objects(material: Material, progress: Progress) -> Objects:
    """Yield every object of the corpus; the same material gives the same keys and bytes.

    Args:
        material: what to make it of.
        progress: told of each dataset's work.
    """
    for held_out, name in ((False, "captions"), (True, "captions_heldout")):
        samples = _caption_samples(material, held_out=held_out, name=name, progress=progress)
        yield from _below(name, captions.shards(samples, name=name))
    yield from _below("grounding", _grounding_files(material, progress))
    yield from _below("wiki", wiki.shards(material.documents))
    yield from _below("code", code_files.shards(material.code))
    yield from _below("long_documents", code_files.shards(material.long_documents))
    yield from _below("clips", ((clip.file, clip.data) for clip in material.clips))
    yield "raw/clips/captions.jsonl", clips.captions_file(material.clips)


def counts(material: Material) -> dict[str, int]:
    """Return the number of samples of each dataset."""
    held_out = sum(drawing.is_held_out for drawing in material.drawings)
    held_out += sum(photograph.is_held_out for photograph, _ in material.photographs)
    return {
        "captions": len(material.drawings) + len(material.photographs) - held_out,
        "captions_heldout": held_out,
        "grounding": material.num_grounding_images,
        "wiki": len(material.documents),
        "code": len(material.code),
        "clips": len(material.clips),
        "long_documents": len(material.long_documents),
    }


def _caption_samples(material: Material, *, held_out: bool, name: str, progress: Progress) -> list[dict]:
    shown = [drawing for drawing in material.drawings if drawing.is_held_out == held_out]
    pictures = [picture for picture in material.photographs if picture[0].is_held_out == held_out]
    total, samples = len(shown) + len(pictures), []
    with ThreadPoolExecutor() as pool:
        for sample in pool.map(captions.drawing_sample, shown):
            samples.append(sample)
            progress(len(samples), total, name)
        for sample in pool.map(lambda picture: captions.photograph_sample(*picture), pictures):
            samples.append(sample)
            progress(len(samples), total, name)
    return samples


def _grounding_files(material: Material, progress: Progress) -> Objects:
    labels, backdrops = grounding.label_drawings(material.drawings), material.backdrops
    total, images = material.num_grounding_images, []
    with ThreadPoolExecutor() as pool:
        for image in pool.map(lambda number: grounding.compose(number, labels, backdrops), range(total)):
            images.append(image)
            progress(len(images), total, "grounding")
            yield image.file, image.data
    yield "annotations.json", grounding.coco(images)


def _below(dataset: str, files: Objects) -> Objects:
    for file, data in files:
        yield f"raw/{dataset}/{file}", data
