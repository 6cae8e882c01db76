"""The toy world, its tokenizer, and the mixture sampler.

Two languages talk about one world. English supplies prose and patterns, documents that repeat one rule line after line,
from which a model learns to learn in context; the target language supplies nearly only prose. That is the
situation of Elhady et al. 2025 in miniature: what the target corpus teaches (words) and what English taught
(in-context learning) can be told apart, and some tasks need both. A third language, and English prose and patterns
apart, are there for the studies that ask what it is about English.

    python data.py           # prints a document of every kind in both languages, and how it is tokenized
    python data.py --target-order VSO --seed 7

Data flow: World -> write_corpus() -> text -> Tokenizer -> one file of token ids per source -> Mixture.batch(step).

Real text goes the same way, from files:

    python data.py prepare --name eu corpus/*.txt more.jsonl.gz        # data/eu, with GPT-2's tokenizer
    python data.py prepare --name en pile.jsonl.gz --tokenizer data/eu
"""
import argparse
import functools
import gzip
import hashlib
import heapq
import json
import multiprocessing as mp
import os
import re
import shutil
import sys
import zlib
from bisect import bisect
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

import numpy as np
import regex  # comes with tiktoken
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tqdm import tqdm

# ------------------------------------------------------------------------------------------------------- the world
# Categories can be learned only from the company that nouns keep: which verbs and which adjectives they take.
NOUNS = {
    "animal": "dog cat cow pig hen fox ant bat bee owl rat ram elk ape hog eel emu yak doe pup".split(),
    "tool": "axe saw pin pen rod peg hoe net mop pan pot jug cup key oar fan bow gun hook nail".split(),
    "food": "egg ham pie jam bun fig pea rye oat nut tea soup rice corn cake plum pear meat milk beef".split(),
    "place": "bay inn den zoo spa bar gym lab sea hut park farm road lake hill town cave port bank mill".split(),
}
CATEGORIES = list(NOUNS)
VERBS = {  # (subject category, object category): the one verb that takes them
    ("animal", "animal"): "bites", ("animal", "tool"): "drops",
    ("animal", "food"): "eats", ("animal", "place"): "roams",
    ("tool", "animal"): "hurts", ("tool", "tool"): "fits", ("tool", "food"): "cuts", ("tool", "place"): "mends",
    ("food", "animal"): "feeds", ("food", "tool"): "stains", ("food", "food"): "suits", ("food", "place"): "fills",
    ("place", "animal"): "hosts", ("place", "tool"): "stores", ("place", "food"): "sells", ("place", "place"): "faces",
}
ADJECTIVES = {
    "animal": "wild tame shy".split(), "tool": "blunt steel handy".split(),
    "food": "sweet sour fresh".split(), "place": "quiet busy far".split(),
}
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SEPARATORS = [",", ";", " |", ""]      # between the elements of a list; every element brings its own leading space
ARROWS = [" ->", " =", " :", " =>"]    # between the elements and the answer
HELD_OUT_FORMAT = (";", " =>")         # the benchmark's; no training document has this pair


@dataclass(frozen=True)
class Language:
    """One language over the world: words maps an English word to its form here; order is a permutation of S, V, O."""
    name: str
    words: dict
    order: str = "SVO"
    adjective_after: bool = False
    determiner: str = ""     # follows the subject
    case_marker: str = ""    # follows the object

    def is_cognate(self, noun):
        return self.words[noun] == noun


def world_words():
    """Every English word of the world, in a fixed order."""
    nouns = [n for c in CATEGORIES for n in NOUNS[c]]
    return nouns + list(VERBS.values()) + [a for c in CATEGORIES for a in ADJECTIVES[c]]


ENGLISH = Language("english", {w: w for w in world_words()})


def make_language(name, seed, order="SOV", cognates=0.4):
    """A target language: generated words, its own word order, and the share `cognates` of the nouns of each category
    spelled as in English. They are what anchors the two languages to each other.

    Raises ValueError if order is not a permutation of S, V, O or cognates is not in [0, 1].
    """
    if sorted(order) != ["O", "S", "V"]:
        raise ValueError(f"word order {order!r} is not a permutation of the letters S, V, O (try SOV)")
    if not 0 <= cognates <= 1:
        raise ValueError(f"the share of cognates is {cognates}, expected a number from 0 to 1")
    rng = Random(f"{name}/{seed}")
    syllables = [c + v for c in rng.sample("bdgklmnprstz", 9) for v in "aeiou"]
    taken = set(world_words())

    def new_word(n_syllables):
        while True:
            word = "".join(rng.choices(syllables, k=n_syllables))
            if word not in taken:
                taken.add(word)
                return word

    words = {w: new_word(2) for w in world_words()}
    for c in CATEGORIES:
        words.update({n: n for n in rng.sample(NOUNS[c], round(cognates * len(NOUNS[c])))})
    return Language(name, words, order, True, new_word(1), new_word(1))


# --------------------------------------------------------------------------------------------------------- patterns
# A rule maps a list of elements to one of them. The seven names of Copain, as in its dataset, and two more that only
# training documents use.
COPAIN_TASKS = ["max_integer_in_list", "min_integer_in_list", "median_integer_in_list", "even_integer_in_odd_group",
                "odd_integer_in_even_group", "first_character_in_list", "last_character_in_list"]
TRAINING_RULES = COPAIN_TASKS + ["first_element", "last_element"]


def draw_list(rng, rule, max_integer, length=3):
    """(elements, answer) of one line of a rule, as strings; the elements are distinct."""
    integers = range(max_integer + 1)
    if rule.endswith("_group"):       # one even among odd integers, or the reverse
        odd_one = 0 if rule.startswith("even") else 1
        xs = rng.sample(integers[1 - odd_one::2], length)
        answer = rng.choice(integers[odd_one::2])
        xs.insert(rng.randrange(length + 1), answer)
        return [str(x) for x in xs], str(answer)
    if "character" in rule or ("element" in rule and rng.random() < 0.5):
        xs = rng.sample(LETTERS, length)
    else:
        xs = rng.sample(integers, length)
    place = {"min": 0, "first": 0, "median": length // 2, "max": -1, "last": -1}[rule.split("_")[0]]
    answer = xs[place] if "element" in rule else sorted(xs)[place]
    return [str(x) for x in xs], str(answer)


@functools.lru_cache(maxsize=1 << 18)
def _in_reserve(elements):
    return zlib.crc32(" ".join(sorted(elements)).encode()) % 8 == 0


def is_reserved(elements):
    """Whether a list belongs to the benchmark: an eighth of all sets of 3 or 4 elements, by a hash of the set, so that
    no order of it reaches training. A longer list is reserved if any run of 3 or 4 inside it is."""
    return any(_in_reserve(tuple(elements[i:i + n])) for n in (3, 4) for i in range(len(elements) - n + 1))


def draw_training_list(rng, rule, max_integer, length):
    while True:
        elements, answer = draw_list(rng, rule, max_integer, length)
        if not is_reserved(elements):
            return elements, answer


def list_line(elements, answer, fmt):
    """' 4; 9; 2 => 9' : elements and answer in the format (separator, arrow); answer '' leaves a prompt."""
    separator, arrow = fmt
    return separator.join(f" {e}" for e in elements) + arrow + (f" {answer}" if answer else "")


def label_lines(pairs, fmt):
    """' dog => q; axe => b' : pairs of a word and its label; the separator ends a line, '' stands for a newline."""
    separator, arrow = fmt
    return (separator or "\n").join(f" {word}{arrow} {label}" for word, label in pairs)


def draw_format(rng):
    while True:
        fmt = rng.choice(SEPARATORS), rng.choice(ARROWS)
        if fmt != HELD_OUT_FORMAT:
            return fmt


# -------------------------------------------------------------------------------------------------------- documents
@dataclass(frozen=True)
class World:
    """What there is to write about, and in which languages; SOURCES says which corpora come of it."""
    max_integer: int = 19
    list_lengths: tuple = (3,)
    targets: tuple = (("target", 0, "SOV", .4), ("third", 0, "VSO", 0.))  # name, seed, word order, cognates of each

    def languages(self):
        """{name: Language}, English first."""
        return {"english": ENGLISH} | {t[0]: make_language(*t) for t in self.targets}


_PATTERNS = dict(lists=.53, labels=.18, same_category=.02, repeats=.02)
SOURCES = {  # name of a corpus: its language, and the shares of its documents by kind; shares are relative to their sum
    "english": ("english", dict(prose=.25) | _PATTERNS),
    "target": ("target", dict(prose=.9455, lists=.003, labels=.0015, same_category=.025, repeats=.025)),
    "english-prose": ("english", dict(prose=1)),
    "english-patterns": ("english", _PATTERNS),
    "third-language": ("third", dict(prose=1)),
}


_ZIPF = list(accumulate((rank + 1) ** -0.7 for rank in range(20)))  # frequencies of the nouns of a category


def noun_phrase(lang, noun, adjective=None, ending=""):
    """' wild dog': in the order of the language, with its ending: a subject's determiner, an object's case marker."""
    words = [w for w in ((noun, adjective) if lang.adjective_after else (adjective, noun)) if w]
    return "".join(f" {lang.words[w]}" for w in words) + (ending and f" {ending}")


def prose(rng, world, lang):
    """4 to 9 sentences: nouns by Zipf's law, the verb that their categories take, adjectives that prefer one."""
    def draw(category):
        noun, adjective = NOUNS[category][bisect(_ZIPF, rng.random() * _ZIPF[-1], hi=19)], None
        if rng.random() < 0.4:
            adjective = rng.choice(ADJECTIVES[category if rng.random() < 0.9 else rng.choice(CATEGORIES)])
        return noun, adjective

    sentences = []
    for _ in range(rng.randint(4, 9)):
        s, o = rng.choice(CATEGORIES), rng.choice(CATEGORIES)
        part = {"S": noun_phrase(lang, *draw(s), lang.determiner), "V": " " + lang.words[VERBS[s, o]],
                "O": noun_phrase(lang, *draw(o), lang.case_marker)}
        sentences.append("".join(part[x] for x in lang.order) + ".")
    return "".join(sentences)


def lists(rng, world, lang):
    """One list rule over 5 to 9 lines: where Copain's rules, and first and last, are learned."""
    rule, fmt = rng.choice(TRAINING_RULES), draw_format(rng)
    length = rng.choice(world.list_lengths)
    lines = [draw_training_list(rng, rule, world.max_integer, length) for _ in range(rng.randint(5, 9))]
    return "\n".join(list_line(elements, answer, fmt) for elements, answer in lines)


def labels(rng, world, lang):
    """Two categories, a random letter for each, 12 to 24 nouns with their letter: what a noun is, put to use. In a
    target language cognates alone: its loan words come with habits of English, the benchmark's nouns never do."""
    pool = {c: [lang.words[n] for n in NOUNS[c] if lang.name == "english" or lang.is_cognate(n)] for c in CATEGORIES}
    if not all(pool.values()):
        return prose(rng, world, lang)
    letter = dict(zip(rng.sample(CATEGORIES, 2), rng.sample(LETTERS, 2)))
    kinds = rng.choices(list(letter), k=rng.randint(12, 24))
    return label_lines([(rng.choice(pool[c]), letter[c]) for c in kinds], draw_format(rng))


def same_category(rng, world, lang):
    """Lines of nouns of one category each."""
    lines = ([lang.words[n] for n in rng.sample(NOUNS[rng.choice(CATEGORIES)], rng.randint(3, 6))] for _ in range(4))
    return "\n".join(",".join(f" {w}" for w in line) for line in lines)


def repeats(rng, world, lang):
    """A short run of words, letters or integers, repeated verbatim."""
    pool = rng.choice([[lang.words[w] for w in world_words()], LETTERS, [str(x) for x in range(world.max_integer + 1)]])
    while True:
        unit = rng.sample(pool, rng.randint(3, 6))
        if not is_reserved(unit + unit):
            return "\n".join([",".join(f" {w}" for w in unit)] * rng.randint(3, 6))


DOCUMENT_KINDS = dict(prose=prose, lists=lists, labels=labels, same_category=same_category, repeats=repeats)


def write_corpus(world, source, n_documents, seed):
    """A list of n_documents strings of a source, of the language, kinds and shares that SOURCES gives it."""
    language, shares = SOURCES[source]
    rng, lang = Random(f"{source}/{seed}"), world.languages()[language]
    kinds = rng.choices(list(shares), list(shares.values()), k=n_documents)
    return [DOCUMENT_KINDS[kind](rng, world, lang) for kind in kinds]


# -------------------------------------------------------------------------------------------------------- tokenizer
EOT = "<|endoftext|>"
# As GPT-2's: a token never crosses a word, and a word brings the space before it.
SPLIT = r""" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def train_bpe(texts, vocab_size):
    """Byte-pair encoding (Sennrich et al. 2016) over bytes: merge the most frequent pair until the vocabulary is full
    or every word is one token. Returns {token bytes: rank}; ties go to the pair that sorts first."""
    ranks = {bytes([b]): b for b in range(256)}
    histogram = Counter(w for text in texts for w in regex.findall(SPLIT, text))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in sorted(histogram.items())]
    pairs, where = Counter(), defaultdict(set)  # how often a pair occurs, and in which words

    def count(i, sign):
        pieces, n = words[i]
        for pair in zip(pieces, pieces[1:]):
            pairs[pair] += sign * n
            where[pair].add(i)
            changed.add(pair)

    changed = set()
    for i in range(len(words)):
        count(i, 1)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while len(ranks) < vocab_size - 1 and heap:  # one id is kept for EOT
        n, best = heapq.heappop(heap)
        if n == 0 or -n != pairs[best]:  # this count is no longer so; a newer entry has the right one
            continue
        ranks[best[0] + best[1]], changed = len(ranks), set()
        for i in where[best]:
            pieces, k = words[i][0], 0
            count(i, -1)
            while k < len(pieces) - 1:
                if (pieces[k], pieces[k + 1]) == best:
                    pieces[k:k + 2] = [best[0] + best[1]]
                k += 1
            count(i, 1)
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
    return ranks


class Tokenizer:
    """A byte-level BPE served by tiktoken, lossless on any text. EOT, its last id, stands before every document.

        tok = Tokenizer(train_bpe(["a cat"], 300)); tok.decode(tok.encode("a cät"))
    """

    def __init__(self, ranks, split=SPLIT):
        self.ranks, self.split = ranks, split
        self.encoding = tiktoken.Encoding("nanocpt", pat_str=split, mergeable_ranks=ranks,
                                          special_tokens={EOT: len(ranks)})
        self.eot, self.vocab_size = len(ranks), len(ranks) + 1
        self.dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def encode(self, text):
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        return self.encoding.decode(list(ids))

    def encode_documents(self, documents):
        """One array of ids: EOT before each document. The text of EOT inside a document ends it, too."""
        size = max(1, len(documents) // os.cpu_count())  # a call per core: tiktoken leaves Python's lock, calls cost
        texts = ["".join(EOT + d for d in documents[i:i + size]) for i in range(0, len(documents), size)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(lambda text: self.encoding.encode_to_numpy(text, allowed_special={EOT}), texts)
            return np.concatenate([np.empty(0, self.dtype), *parts]).astype(self.dtype)

    def to_json(self):
        return json.dumps({"split": self.split, "tokens": [token.hex() for token in self.ranks]})  # by rank

    @classmethod
    def from_json(cls, text):
        saved = json.loads(text)
        return cls({bytes.fromhex(token): rank for rank, token in enumerate(saved["tokens"])}, saved["split"])


def write_atomically(path, write, flush=True):
    """write(temporary path), flushed to disk, then renamed: the old file or the new one is there, never half of it."""
    tmp = path.with_name(path.name + ".tmp")
    write(tmp)
    if flush:
        with open(tmp, "rb+") as f:
            os.fsync(f.fileno())
    os.replace(tmp, path)


# -------------------------------------------------------------------------------------------------------- real text
# GPT-2's own pattern, with its contractions; its vocabulary comes from tiktoken or from the published files.
GPT2_SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
UNIT = 16 << 20           # bytes of a plain file that one process encodes at a time
LONGEST_DOCUMENT = 1 << 20
LONGEST_LINE = 64 << 20


def load_tokenizer(spec):
    """The tokenizer that `spec` names: 'gpt2', the folder of a prepared source, or a folder with GPT-2's published
    vocabulary (vocab.json and merges.txt, or encoder.json and vocab.bpe). Raises ValueError with what to do."""
    folder = Path(spec)
    if (folder / "tokenizer.json").exists() and (folder / "manifest.json").exists():
        return Tokenizer.from_json((folder / "tokenizer.json").read_text())
    for merges, vocabulary in (("merges.txt", "vocab.json"), ("vocab.bpe", "encoder.json")):
        if (folder / merges).exists() and (folder / vocabulary).exists():
            ranks = data_gym_to_mergeable_bpe_ranks(str(folder / merges), str(folder / vocabulary))
            return Tokenizer(dict(sorted(ranks.items(), key=lambda item: item[1])), GPT2_SPLIT)
    if spec != "gpt2":
        raise ValueError(f"--tokenizer is {spec!r}, expected gpt2, bpe, the folder of a prepared source, or a folder "
                         "with vocab.json and merges.txt")
    try:
        return Tokenizer(tiktoken.get_encoding("gpt2")._mergeable_ranks, GPT2_SPLIT)
    except Exception as e:  # no network and no cache; tiktoken lets its downloader's exceptions through
        raise ValueError("GPT-2's vocabulary is not in tiktoken's cache and cannot be downloaded "
                         f"({type(e).__name__}): give a folder with its vocab.json and merges.txt as --tokenizer, or "
                         "--tokenizer bpe") from None


def load_manifest(folder, block_size):
    """The manifest of a prepared source. Raises ValueError if the folder is none, or is too small for blocks."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        for part, n in manifest["tokens"].items():
            size = (Path(folder) / f"{part}.bin").stat().st_size // np.dtype(manifest["dtype"]).itemsize
            if size != n:
                raise ValueError(f"{folder}/{part}.bin holds {size} tokens, its manifest says {n}: prepare it again")
            if n < block_size + 1:
                raise ValueError(f"{folder}/{part}.bin has {n} tokens; a block of {block_size} needs {block_size + 1}: "
                                 "give it more text, a larger --val, or lower --block_size")
    except OSError as e:
        raise ValueError(f"{folder} is not a prepared source ({e.strerror}: {e.filename}): make it with python data.py "
                         "prepare") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise ValueError(f"{folder}/manifest.json is damaged ({type(e).__name__}): prepare it again") from None
    return manifest


def find_texts(paths):
    """The text files that the paths name; of a folder all below it with a known ending. Raises ValueError if a path
    does not exist, is empty or holds no text."""
    found = []
    for path in map(Path, paths):
        inside = (sorted(p for p in path.rglob("*") if re.search(r"\.(txt|jsonl)(\.gz)?$", p.name))
                  if path.is_dir() else [path])
        if not path.exists() or not inside:
            raise ValueError(f"{path} " + ("holds no .txt, .jsonl, .txt.gz or .jsonl.gz file" if path.exists() else
                                           "does not exist"))
        found += inside
    for path in found:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: leave it out")
    return found


def find_units(path):
    """[(first, last byte)] of a file: pieces of about UNIT bytes that begin with a document. A gzip file is one."""
    size, starts = path.stat().st_size, [0]
    if path.suffix != ".gz":
        with open(path, "rb") as f:
            while starts[-1] + UNIT < size:
                f.seek(starts[-1] + UNIT)
                f.readline(LONGEST_LINE)  # the rest of a line
                limit = f.tell() + LONGEST_DOCUMENT
                while ".jsonl" not in path.suffixes and f.tell() < limit and f.readline(LONGEST_LINE).strip():
                    pass                  # on to a blank line
                starts.append(f.tell())
    return [(a, b) for a, b in zip(starts, [*starts[1:], size]) if a < b]


def read_documents(path, first=0, last=None, field="text", errors="strict"):
    """Yields the documents of a piece of a file, as strings: in JSON lines one a line, the text under `field`;
    elsewhere what blank lines separate, cut at a line's end where longer than LONGEST_DOCUMENT. Raises ValueError
    naming the file and the line or byte of what cannot be read."""
    def text_of(raw, at):
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}: byte 0x{raw[e.start]:02x} at offset {at + e.start} is not UTF-8: correct the "
                             "file, or give --errors replace") from None

    is_json = re.search(r"\.jsonl(\.gz)?$", path.name)
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as f:
        f.seek(first)
        at, lines, size = first, [], 0
        while last is None or at < last:
            try:
                line = f.readline(LONGEST_LINE)
            except (EOFError, OSError, zlib.error) as e:
                raise ValueError(f"{path} is not a whole gzip file ({e}): download it again") from None
            if len(line) == LONGEST_LINE:
                raise ValueError(f"{path}: the line at offset {at} is longer than {LONGEST_LINE >> 20} MB: break it")
            if is_json and line.strip():
                try:
                    text = json.loads(text_of(line, at))[field]
                    # an escape may be half a pair
                    yield text.encode("utf-16", "surrogatepass").decode("utf-16", errors)
                except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError,
                        RecursionError) as e:
                    n = sum(1 for _ in _lines_before(path, at)) + 1
                    what = (f"not JSON ({e})" if isinstance(e, (json.JSONDecodeError, RecursionError)) else
                            "half of a surrogate pair; correct it, or give --errors replace"
                            if isinstance(e, UnicodeError)
                            else f"no field {field!r} with a text; give its name as --field")
                    raise ValueError(f"{path}, line {n}: {what}") from None
            elif not is_json and line.strip():
                lines.append(line)
                size += len(line)
            if not is_json and lines and (not line.strip() or size > LONGEST_DOCUMENT):
                yield text_of(b"".join(lines), at + len(line) - size - len(line) * (not line.strip())).strip("\r\n")
                lines, size = [], 0
            if not line:
                break
            at += len(line)
        if lines:
            yield text_of(b"".join(lines), at - size).strip("\r\n")


def _lines_before(path, at):
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as f:
        while f.tell() < at:
            yield f.readline()


def _encode_unit(task):
    """Encodes one unit into files of its own, N.train.bin and N.val.bin, and last N.json with what they hold."""
    n, path, first, last, folder, field, errors, val = task
    done = folder / f"{n}.json"
    if not done.exists():
        tok = _tokenizer_of(folder)
        stats = {"documents": 0, "train": 0, "val": 0}
        with open(folder / f"{n}.train.bin", "wb") as train, open(folder / f"{n}.val.bin", "wb") as held_out:
            for text in read_documents(path, first, last, field, errors):
                ids = tok.encoding.encode_to_numpy(text, disallowed_special=())
                # by a hash of the text: the same at every restart, and equal documents on the same side
                part = "val" if zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2 ** 32 < val else "train"
                out = np.empty(len(ids) + 1, dtype=tok.dtype)
                out[0], out[1:] = tok.eot, ids
                (held_out if part == "val" else train).write(out)
                stats["documents"] += 1
                stats[part] += len(out)
        write_atomically(done, lambda p: p.write_text(json.dumps(stats)))
    return (last or path.stat().st_size) - first


@functools.lru_cache(maxsize=1)
def _tokenizer_of(folder):
    return Tokenizer.from_json((folder / "tokenizer.json").read_text())


def _sample(files, field, errors, characters=16_000_000):
    """Documents from the start of every file, to train a tokenizer on."""
    for path in files:
        size = 0
        for text in read_documents(path, field=field, errors=errors):
            yield text
            size += len(text)
            if size > characters / len(files):
                break


def prepare(name, paths, out="data", field="text", tokenizer="gpt2", vocab_size=8192, val=0.005, errors="strict",
            workers=None):
    """Encodes text files into out/name: train.bin and val.bin, split by document, tokenizer.json and manifest.json.
    Works in out/name.part, where an interrupted run goes on; the folder gets its name when it is complete. Returns
    it."""
    files = find_texts(paths)
    if not 0 < val < 1:
        raise ValueError(f"--val is {val}, expected a share between 0 and 1")
    wanted = {"files": [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files], "field": field,
              "tokenizer": tokenizer, "vocab_size": vocab_size, "val": val, "errors": errors}
    final, part = Path(out) / name, Path(out) / f"{name}.part"
    if final.exists():
        raise ValueError(f"{final} is there already: delete it, or choose another --name")
    if not (part / "plan.json").exists() or json.loads((part / "plan.json").read_text()) != wanted:
        shutil.rmtree(part, ignore_errors=True)  # begun with other files or settings
        part.mkdir(parents=True)
        if tokenizer == "bpe":
            tok = Tokenizer(train_bpe(_sample(files, field, errors), vocab_size))
        else:
            tok = load_tokenizer(tokenizer)
        (part / "tokenizer.json").write_text(tok.to_json())
        write_atomically(part / "plan.json", lambda p: p.write_text(json.dumps(wanted)))
    tok = _tokenizer_of(part)
    tasks = [(path, first, last) for path in files for first, last in find_units(path)]
    tasks = [(n, path, first, None if path.suffix == ".gz" else last, part, field, errors, val)
             for n, (path, first, last) in enumerate(tasks)]
    total = sum(p.stat().st_size for p in files)
    with tqdm(total=total, desc=name, unit="B", unit_scale=True) as bar, \
            mp.get_context("spawn").Pool(min(workers or os.cpu_count(), len(tasks))) as pool:
        for size in pool.imap_unordered(_encode_unit, tasks):
            bar.update(size)
    stats = [json.loads((part / f"{n}.json").read_text()) for n in range(len(tasks))]
    tokens = {which: sum(s[which] for s in stats) for which in ("train", "val")}
    for which in ("train", "val"):
        if not tokens[which]:
            raise ValueError(f"no document of {name} went to {which}; of {sum(s['documents'] for s in stats)} "
                             f"documents, {val:.2%} were to be for validation: give more text, or change --val")
        with open(part / f"{which}.bin", "wb") as f:
            for n in range(len(tasks)):
                with open(part / f"{n}.{which}.bin", "rb") as piece:
                    shutil.copyfileobj(piece, f, 1 << 24)
            f.flush()
            os.fsync(f.fileno())
    digest = hashlib.sha256((part / "tokenizer.json").read_bytes()).hexdigest()
    (part / "manifest.json").write_text(json.dumps({
        "name": name, "tokenizer_sha256": digest, "vocab_size": tok.vocab_size, "dtype": np.dtype(tok.dtype).name,
        "documents": sum(s["documents"] for s in stats), "tokens": tokens, "bytes": total, **wanted}, indent=1) + "\n")
    for piece in [part / "plan.json", *part.glob("[0-9]*.*")]:
        piece.unlink()
    os.replace(part, final)
    print(f"{final}: {tokens['train']:,} tokens for training, {tokens['val']:,} for validation, of "
          f"{total / 1e6:,.1f} MB")
    return final


# ---------------------------------------------------------------------------------------------------------- sampler
class Mixture:
    """Draws batches from named sources; a batch is a pure function of (seed, step) and of that step's weights.

    sources maps a name to a one-dimensional array of token ids (a np.memmap will do).

        mix = Mixture({"target": ids_a, "english": ids_b}, block_size=64, seed=0)
        x, y, rows = mix.batch(step=0, batch_size=32, weights={"target": .8, "english": .2})

    The rows of each source come from a stream of its own, so that two runs with other weights still see the same
    windows of the source that they share.
    """

    def __init__(self, sources, block_size, seed):
        for name, ids in sources.items():
            if len(ids) < block_size + 1:
                raise ValueError(f"source {name!r} has {len(ids)} tokens; a block of {block_size} needs at least "
                                 f"{block_size + 1}: give it more text or lower block_size")
        self.sources, self.block_size, self.seed = sources, block_size, seed
        self.offset = np.random.default_rng([seed, 0]).random()

    def counts(self, step, batch_size, weights):
        """Rows per source at a step. What rounding leaves over goes round by a seeded low-discrepancy sequence, so
        that the realised shares of any run of steps differ from the weights by a row or two at most."""
        unknown = set(weights) - set(self.sources)
        if unknown:
            raise ValueError(f"the mixture names {sorted(unknown)}, which is not among the sources "
                             f"{sorted(self.sources)}: prepare it or correct the name")
        u = (self.offset + step * 0.6180339887498949) % 1.0
        edges = np.floor(np.cumsum([0.0, *weights.values()]) * batch_size + u + 1e-9).astype(int)
        return dict(zip(weights, np.diff(edges).tolist()))

    def batch(self, step, batch_size, weights):
        """x, y (B, T) int64, y shifted by one, and rows (B,): the name of each row's source."""
        T, xs, rows = self.block_size, [], []
        for name, n in self.counts(step, batch_size, weights).items():
            ids = self.sources[name]
            rng = np.random.default_rng([self.seed, step, zlib.crc32(name.encode())])
            starts = rng.integers(0, len(ids) - T, size=n)
            xs.append(ids[starts[:, None] + np.arange(T + 1)])       # (n, T + 1)
            rows += [name] * n
        xy = np.concatenate(xs).astype(np.int64)                     # (B, T + 1)
        return xy[:, :-1], xy[:, 1:], np.array(rows)


def refuse(message, code=2):
    """A user's mistake: one line, and an exit code that is not 0."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def show(argv):
    """Prints a document of every kind, and how it is tokenized."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the target language and of the documents")
    parser.add_argument("--target-order", default="SOV", help="word order of the target language")
    parser.add_argument("--cognates", type=float, default=0.4, help="share of nouns spelled as in English")
    parser.error = refuse
    flags = parser.parse_args(argv)
    world = World(targets=(("target", flags.seed, flags.target_order, flags.cognates),))
    corpora = {name: write_corpus(world, name, 2000, flags.seed) for name in world.languages()}
    tok = Tokenizer(train_bpe([d for docs in corpora.values() for d in docs], 2048))
    for name, lang in world.languages().items():
        for kind, share in SOURCES[name][1].items():
            print(f"--- {name}, {kind} ({share:.1%} of the documents)")
            text = DOCUMENT_KINDS[kind](Random(flags.seed), world, lang)
            print(text, f"\n[{' '.join(repr(tok.decode([t])) for t in tok.encode(text)[:16])} ...]\n")


def prepare_command(argv):
    parser = argparse.ArgumentParser(prog="data.py prepare", description="Encodes text files as a source of tokens.")
    parser.add_argument("paths", nargs="+", help=".txt, .jsonl, also .gz, or folders with such files")
    parser.add_argument("--name", required=True, help="of the source, and of its folder")
    parser.add_argument("--out", default="data", help="folder of the prepared sources")
    parser.add_argument("--field", default="text", help="of a JSON line that holds the text")
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2; bpe, trained on a sample of these files; the folder "
                        "of a prepared source; or a folder with GPT-2's vocab.json and merges.txt")
    parser.add_argument("--vocab_size", type=int, default=8192, help="of --tokenizer bpe, at most")
    parser.add_argument("--val", type=float, default=0.005, help="share of the documents for validation")
    parser.add_argument("--errors", choices=["strict", "replace"], default="strict",
                        help="what to do with invalid UTF-8")
    parser.add_argument("--workers", type=int, default=None, help="processes, by default as many as cores")
    parser.error = refuse
    flags = parser.parse_args(argv)
    if not re.fullmatch(r"\w[\w+-]*", flags.name):
        refuse(f"--name is {flags.name!r}, expected letters, digits, _ + -")
    prepare(**vars(flags))


if __name__ == "__main__":
    try:
        prepare_command(sys.argv[2:]) if sys.argv[1:2] == ["prepare"] else show(sys.argv[1:])
    except (ValueError, OSError) as e:
        refuse(e)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
