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
import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

PARAGRAPHS = {"p", "h1", "h2", "h3", "h4", "h5", "h6"}


class Page(HTMLParser):
    """paragraphs: the text of each paragraph and heading."""

    def __init__(self, html):
        super().__init__()
        self.paragraphs, self.inside = [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag in PARAGRAPHS:
            self.inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in PARAGRAPHS

    def handle_data(self, data):
        if self.inside:
            self.paragraphs[-1] += data


def clean(paragraphs, seen, counts):
    """The paragraphs that say something new. seen: hashes of runs of five words, to which theirs are added."""
    kept = []
    for text in paragraphs:
        text = " ".join(text.split())
        words = re.sub(r"\d+", "0", text.lower()).split()
        runs = {hash(tuple(words[i:i + 5])) for i in range(len(words) - 4)}
        kind = "kept" if len(runs - seen) * 2 > len(runs) else "near copies" if runs else "too short"
        counts[kind] += 1
        seen |= runs
        if kind == "kept":
            kept.append(text)
    return kept


def main(source, out):
    seen = set()
    out.mkdir(parents=True, exist_ok=True)
    for name, folder in (("en", "en-US"), ("eu", "eu")):
        pages = sorted(source.rglob(f"help/{folder}/text/**/*.html"))
        if not pages:
            sys.exit(f"error: no help/{folder}/text with pages below {source}")
        counts, documents = Counter(), []
        for page in pages:
            documents.append("\n".join(clean(Page(page.read_text("utf-8")).paragraphs, seen, counts)))
        documents = [text for text in documents if text]
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{name}: {len(pages)} pages; paragraphs {dict(counts)}; {len(documents)} documents with "
              f"{sum(map(len, documents)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
