"""Makes text of LibreOffice's help, in English and in Basque, for the study `basque`.

    apt-get download libreoffice-help-en-us libreoffice-help-eu      # Debian's packages
    for package in libreoffice-help-*.deb; do dpkg -x $package help; done
    python tests/basque.py help text                                 # writes text/en.jsonl and text/eu.jsonl
    python data.py prepare --name help-en text/en.jsonl --tokenizer bpe --vocab_size 2048 --val 0.03
    python data.py prepare --name help-eu text/eu.jsonl --tokenizer data/help-en --val 0.03
    python train.py --preset basque --seeds 5

A page is a document. Help repeats itself, so a paragraph is left out if at least half of its runs of five
words have occurred before, on any page of either language. So validation text holds no near copy of training
text, and Basque text no English. Paragraphs of fewer than five words, such as menus, are left out, too.
"""
import html
import json
import re
import sys
from collections import Counter
from pathlib import Path

PARAGRAPH = r"<(?:p|h[1-6])\b[^>]*>(.*?)(?=</?(?:p|h[1-6])\b)"  # or a heading; it ends where the next begins


def paragraphs(page):
    """The text of each paragraph and heading of a page."""
    texts = [re.sub("<[^>]*>", "", found) for found in re.findall(PARAGRAPH, page, re.DOTALL)]
    return [" ".join(html.unescape(text).split()) for text in texts]


def kind(text, seen):
    """What to do with a paragraph. seen: the runs of five words before it, to which this adds its own."""
    words = re.sub(r"\d+", "0", text.lower()).split()
    runs = {hash(tuple(words[i:i + 5])) for i in range(len(words) - 4)}
    new = runs - seen
    seen.update(runs)
    if not runs:
        return "too short"
    return "kept" if len(new) > len(runs) / 2 else "near copies"


def main(source, out):
    seen = set()
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in (("en", "en-US"), ("eu", "eu")):
        pages = sorted(source.rglob(f"help/{folder}/text/**/*.html"))
        if not pages:
            sys.exit(f"error: no help/{folder}/text with pages below {source}")
        counts, documents = Counter(), []
        for page in pages:
            found = [(kind(text, seen), text) for text in paragraphs(page.read_text("utf-8"))]
            counts.update(what for what, _ in found)
            documents.append("\n".join(text for what, text in found if what == "kept"))
        documents = [text for text in documents if text]
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{name}: {len(pages)} pages; paragraphs {dict(counts)}; {len(documents)} documents with "
              f"{sum(map(len, documents)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
