"""Real text becomes sources: the text that goes in comes out again, and what is no text stays out."""
import gzip
import json
import re
from functools import partial

import numpy as np
import pytest

import basque
import data
from data import load_manifest, load_tokenizer, prepare, read_documents, read_json_lines

SCRIPTS = ["Txakurrak etxean daude. Ünïcode: ñ, ç.", "اللغة العربية لغة جميلة", "बिल्ली घर में है"]
DOCUMENTS = [f"{script} {i}\n{script[:20]}" for i in range(40) for script in SCRIPTS]
small = partial(prepare, tokenizer="bpe", vocab_size=400, val=.2)
EOT, LFS = data.EOT, "version https://git-lfs.github.com/spec/v1\noid"
PRINTABLE = [chr(b) for b in range(256) if chr(b).isprintable() and chr(b) != " "]
OTHERS = [chr(256 + i) for i in range(256 - len(PRINTABLE))]  # how GPT-2's files spell the other bytes
IDS = {token: i for i, token in enumerate([*PRINTABLE, *OTHERS, "et", "Ġet", "xe"])}


def write(path, documents=DOCUMENTS):
    content = "\n\n".join(documents).encode()
    if "json" in path.name.lower():
        content = "\n".join(json.dumps({"text": d}) for d in documents).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def documents_of(folder, *sides):
    tok = load_tokenizer(folder)
    ids = np.concatenate([np.fromfile(folder / f"{side}.bin", dtype=tok.dtype) for side in sides])
    return sorted(tok.decode(part[1:]) for part in np.split(ids, np.flatnonzero(ids == tok.eot))[1:])


def read(path, content, **kwargs):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_documents(path, **kwargs))


@pytest.mark.parametrize("kind", ["a.txt", "a.txt.gz", "a.jsonl", "a.JSONL.gz", "a.json.gz", "a.ndjson"])
def test_every_document_of_three_scripts_comes_back_from_every_kind_of_file(tmp_path, kind):
    folder = small("x", [write(tmp_path / kind)], tmp_path / "data")
    assert documents_of(folder, "train", "val") == sorted(DOCUMENTS)
    assert load_manifest(folder, 8)["sha256"] == data.sha256(folder / "train.bin")


def test_a_smaller_share_is_held_out_of_a_larger_equal_documents_share_a_side_and_files_are_mixed(tmp_path):
    files = [write(tmp_path / f"{x}.jsonl", [f"{x} {d}" for d in DOCUMENTS * 2]) for x in "KYZ"]
    a, b = small("a", files, tmp_path, val=.4), small("b", files, tmp_path, val=.1)
    larger, smaller = set(documents_of(a, "val")), set(documents_of(b, "val"))
    assert smaller < larger and not larger & set(documents_of(a, "train"))
    first = np.fromfile(a / "val.bin", np.uint16)[:300]
    assert {"K", "Y", "Z"} <= set(load_tokenizer(a).decode(first))  # a perplexity takes the first blocks


def test_an_interrupted_run_leaves_nothing_to_be_used_and_starts_again(tmp_path, monkeypatch):
    file, left = write(tmp_path / "a.txt"), tmp_path / "x.part/train.bin"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(data, "load_manifest", lambda *_: 1 / 0)
        small("x", [file], tmp_path)
    assert not (tmp_path / "x").exists()
    left.write_bytes(left.read_bytes() * 9)  # of a longer run
    assert documents_of(small("x", [file], tmp_path), "train", "val") == sorted(DOCUMENTS)


def test_a_source_that_has_changed_or_is_shorter_than_a_block_is_refused(tmp_path):
    folder = small("x", [write(tmp_path / "a.txt")], tmp_path)
    for wanted, words in (((5000,), "needs 5001"), ((8, 999), r"val.bin has \d+ tokens, needs 7993: .* --val")):
        with pytest.raises(ValueError, match=words):
            load_manifest(folder, *wanted)
    for file, content in (("train.bin", "x"), ("tokenizer.json", "{}"), ("manifest.json", '{"tokens": 1}')):
        (folder / file).write_text(content)
        with pytest.raises(ValueError, match="x is not as data.py prepare makes it.*: prepare it again"):
            load_manifest(folder, 8)


@pytest.mark.parametrize("content", [
    "a\nb\n\nc", "\ufeffa\nb\n\nc", "a\r\nb\r\n\r\nc\r\n", "a\rb\r\rc", "\ufeff\na\nb\n \t\n\n\ufeffc\n",
    '{"text": "a\\r\\nb"}\r\n\n{"text": null}\n{"text": "\ufeffc"}', '\ufeff{"text": "a\\rb"}\n{"text":"c"}'])
def test_byte_order_marks_line_ends_and_json_syntax_are_no_part_of_documents(tmp_path, content):
    for file in (content.encode(), gzip.compress(content.encode())):
        assert read(tmp_path / "a.txt", file) == ["a\nb", "c"]


def test_lines_end_at_newlines_alone_and_a_line_that_is_not_utf8_is_counted(tmp_path):
    path, texts = tmp_path / "a.jsonl", ["a\u2028b", "c\u0085d", "e\u2029f", "g\x1ch"]
    path.write_text("\r\n".join(json.dumps({"": t}, ensure_ascii=False) for t in texts), newline="")
    assert list(read_json_lines(path)) == [(f"{path}, line {n}", {"": t}) for n, t in enumerate(texts, 1)]
    for n in (1, 700, 5000):
        path.write_bytes(b'{"a": "\xc3\xb1"}\r\n' * (n - 1) + b"bad \xff\n" + b"{}\n" * 3000)
        with pytest.raises(ValueError, match=f"a.jsonl, line {n}: byte 0xff is not UTF-8$"):  # no --errors
            list(read_json_lines(path))


@pytest.mark.parametrize("content, kind", [
    (b"a" * 257 + b"ustar", "a tar archive"), (b"PK\x03\x04", "a zip archive"), (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PAR1\x15\x04", "parquet"),
    (LFS.encode(), "LFS.*git lfs pull"), (gzip.compress(gzip.compress(b"text")), "gzip in gzip"),
    *((SCRIPTS[1].encode(code), "UTF-16") for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")),
    (b"a line\n" * 9999 + b"\0", "line 10000: a NUL byte")])
def test_what_is_no_text_is_refused_by_its_name_whatever_the_flags(tmp_path, content, kind):
    for file in (content, gzip.compress(content)):
        with pytest.raises(ValueError, match=kind) as e:
            read(tmp_path / "a.txt", file, errors="replace")
        assert "--errors" not in str(e.value)


def test_damaged_characters_are_replaced_and_a_long_document_is_cut_without_a_loss(tmp_path):
    assert read(tmp_path / "a.txt", b"a\n\nbad \xff byte", errors="replace") == ["a", "bad \ufffd byte"]
    assert read(tmp_path / "a.json", r'{"text": "half \ud800, whole \ud83d\ude00"}') == ["half ?, whole 😀"]
    text = "".join(f"line {i}\n" for i in range(12_000))  # over 10,000 lines
    assert "\n".join([*read(tmp_path / "a.txt", text), ""]) == text
    long = "x" + " " * 1_100_000 + "y"
    folder = small("x", [write(tmp_path / "b.jsonl", [long, f"a {EOT} b", *DOCUMENTS])], tmp_path)
    pieces = [long[k:k + data.LONGEST_DOCUMENT] for k in range(0, len(long), data.LONGEST_DOCUMENT)]
    assert documents_of(folder, "train", "val") == sorted([*pieces, "a ", " b", *DOCUMENTS])


def test_a_folder_gives_each_of_its_texts_once_and_tells_what_it_passed_over(tmp_path, capsys):
    texts = tmp_path / "texts"
    for name in ("texts/A.TXT", "texts/b.Json", "texts/sub/c.txt", "texts/.cache/A.txt", "texts/._A.txt",
                 "elsewhere/d.txt.gz", "texts/image.png", "texts/tokenizer.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [f"{name} {i}" for i in range(9)])
    for link, target in (("link", tmp_path / "elsewhere"), ("sub/loop", texts), ("e.txt", texts / "A.TXT")):
        (texts / link).symlink_to(target)
    manifest = load_manifest(small("x", [texts, texts / "A.TXT", texts / "../texts/b.Json"], tmp_path), 0)
    assert manifest["files"] == [f"{texts}/{x}" for x in ("A.TXT", "b.Json", "link/d.txt.gz", "sub/c.txt")]
    assert "4 files taken; passed over: 2 hidden, 4 met before, 2 of another" in capsys.readouterr().out
    assert load_manifest(small("y", [texts / "image.png"], tmp_path), 0)["documents"] == 9  # named, so taken
    (texts / "gone.txt").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match="texts/gone.txt does not exist, or is a broken link"):
        small("z", [texts], tmp_path)


def test_help_pages_become_documents_without_copies_untranslated_paragraphs_and_menus(tmp_path):
    english = "Nobody has translated this one."
    pages = {"en-US/text/a": "<h1>Main menu</h1><p class='x'>It has   <b>12 words</b> &amp; a sign.</p>",
             "en-US/text/b/c": "<p>It has 13 words &amp; a sign.</p>It is outside of all paragraphs."
                               f"<p>{english}</p><h2>A heading of five words</h2>",
             "eu/text/a": f"<p>{english}</p><p>Lehen orriak ez du ñabardurarik.</p>"}
    for name, page in pages.items():
        path = tmp_path / f"usr/help/{name}.html"
        path.parent.mkdir(parents=True)
        path.write_text(page, "utf-8")
    basque.main(tmp_path / "usr", tmp_path / "text")
    assert [*read_documents(tmp_path / "text/en.jsonl")] == [
        "It has 12 words & a sign.", f"{english}\nA heading of five words"]
    assert [*read_documents(tmp_path / "text/eu.jsonl")] == ["Lehen orriak ez du ñabardurarik."]


@pytest.mark.parametrize("file, content, eot", [
    ("vocab.json", IDS | {EOT: 259}, 259), ("vocab.json", {EOT: 0} | {t: i + 1 for t, i in IDS.items()}, 0),
    ("added_tokens.json", {EOT: 400}, 400), ("config.json", {"eos_token_id": 70000}, 70000),
    ("config.json", {"eos_token_id": 7}, "two ids are equal"), ("config.json", {}, "endoftext.* has no id"),
    ("vocab.json", IDS | {EOT: 259} | {f"x{i}": 300 + i for i in range(99)}, "merges.txt is cut"),
    ("vocab.json", LFS, "json is a Git LFS"), ("vocab.json", IDS | {EOT: 500, "et": 300}, "do not rise")])
def test_a_published_vocabulary_keeps_its_ids_and_its_end_of_text_is_no_guess(tmp_path, file, content, eot):
    (tmp_path / "merges.txt").write_text("#version: 0.2\ne t\nĠ et\nx e\n", encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(IDS))
    (tmp_path / file).write_text(content if content == LFS else json.dumps(content, indent=1))
    if isinstance(eot, str):
        with pytest.raises(ValueError, match=eot):
            load_tokenizer(tmp_path)
    else:
        tok, shift = load_tokenizer(tmp_path), int(eot == 0)
        assert tok.decode(tok.encode(SCRIPTS[1])) == SCRIPTS[1] and tok.encode("\xad")[1] == 255 + shift
        assert tok.encode_documents([" etxe"]).tolist() == [eot, 257 + shift, 258 + shift]


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", b"a\n\nbad \xff byte", "a.txt, line 3: byte 0xff is not UTF-8.*--errors replace"),
    ("a.txt", b" \n\t\n  ", "no text in a.txt"), ("--fields", b"", "--fields"), ("b", b"", "a.txt does not"),
    ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}', "a.jsonl, line 3: no field 'text', but txt; .*--field"),
    ("a.jsonl", b'{"text": 5}', "line 1: 'text' holds 5, expected a text"), ("--val=2", b"", "val is 2"),
    ("a", b'[\n{"text": "x"}]', "line 1: not JSON"), ("a.json", b"[1]", "line 1: .* is not an object"),
    ("a", gzip.compress(b"a line\n" * 500)[:-20], "after line.*whole"), ("a", b"a", "val.bin has 0 tokens")])
def test_a_mistake_is_named_in_one_line_with_code_2(tmp_path, call, name, content, words):
    (tmp_path / name).write_bytes(content)
    paths = [name, name if name[0] == "a" else "a.txt"]
    code, _, err = call(tmp_path, "data.py", "prepare", "--name", "x", "--tokenizer", "bpe", *paths)
    assert code == 2 and re.search(words, err.splitlines()[-1]) and not (tmp_path / "data/x").exists()
