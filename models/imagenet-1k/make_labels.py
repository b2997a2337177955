"""Writes labels.txt: ImageNet-1k's classes in their standard order, `wnid<TAB>label` a line.

Run it where timm is installed (only its data files are read): python make_labels.py
A label is the first of the synset's lemmas. Where two classes share that, the whole list is taken; where the lists are
equal too, a word of ours tells them apart: labels are unique.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

CLASSES = 1000
# Same word, two things, and WordNet lists no other lemma for either.
QUALIFIERS = {"n02012849": "bird", "n03126707": "machine"}


def labels(info: Path) -> list[tuple[str, str]]:
    """The classes as (wnid, label), in order, from the folder with timm's tables."""
    wnids = (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    lines = (info / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t") for line in lines)
    first = {wnid: lemmas[wnid].split(", ")[0] for wnid in wnids}
    shared = Counter(first.values())
    result = []
    for wnid in wnids:
        label = first[wnid] if shared[first[wnid]] == 1 else lemmas[wnid]
        if wnid in QUALIFIERS:
            label = f"{label} ({QUALIFIERS[wnid]})"
        result.append((wnid, label))
    if len(result) != CLASSES or len({label for _, label in result}) != CLASSES:
        raise SystemExit(f"expected {CLASSES} classes with labels of their own, found {len(result)}")
    return result


def main() -> None:
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        raise SystemExit("timm is not installed: pip install --no-deps timm==1.0.31")
    info = Path(spec.origin).parent / "data" / "_info"
    text = "".join(f"{wnid}\t{label}\n" for wnid, label in labels(info))
    Path(__file__).with_name("labels.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
