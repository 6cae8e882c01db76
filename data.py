"""The toy world, its tokenizer, and the mixture sampler.

Two languages talk about one world. English supplies prose and patterns, documents that repeat one rule line after line,
from which a model learns to learn in context; the target language supplies nearly only prose. That is the
situation of Elhady et al. 2025 in miniature: what the target corpus teaches (words) and what English taught
(in-context learning) can be told apart, and some tasks need both. A third language, and English prose and patterns
apart, are there for the studies that ask what it is about English.

    python data.py           # prints a document of every kind in both languages, and how it is tokenized
    python data.py --target-order VSO --seed 7

Data flow: World -> write_corpus() -> text -> Tokenizer -> one uint16 file per source -> Mixture.batch(step).
"""
import argparse
import functools
import json
import os
import sys
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import numpy as np
import regex  # comes with tiktoken
import tiktoken

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
        noun, adjective = rng.choices(NOUNS[category], cum_weights=_ZIPF)[0], None
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
    while len(ranks) < vocab_size - 1:  # one id is kept for EOT
        pairs = Counter()
        for pieces, n in words:
            for pair in zip(pieces, pieces[1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks[best[0] + best[1]] = len(ranks)
        for pieces, _ in words:
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == best:
                    pieces[i:i + 2] = [best[0] + best[1]]
                i += 1
    return ranks


class Tokenizer:
    """A byte-level BPE served by tiktoken, lossless on any text. EOT, its last id, stands before every document.

        tok = Tokenizer(train_bpe(["a cat"], 300)); tok.decode(tok.encode("a cät"))
    """

    def __init__(self, ranks):
        self.ranks = ranks
        self.encoding = tiktoken.Encoding("nanocpt", pat_str=SPLIT, mergeable_ranks=ranks,
                                          special_tokens={EOT: len(ranks)})
        self.eot, self.vocab_size = len(ranks), len(ranks) + 1

    def encode(self, text):
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        return self.encoding.decode(list(ids))

    def encode_documents(self, documents):
        """One uint16 array: EOT before each document."""
        ids = self.encoding.encode_ordinary_batch(documents, num_threads=os.cpu_count())
        return np.array([t for doc in ids for t in [self.eot, *doc]], dtype=np.uint16)

    def to_json(self):
        return json.dumps([token.hex() for token in self.ranks])  # by rank

    @classmethod
    def from_json(cls, text):
        return cls({bytes.fromhex(token): rank for rank, token in enumerate(json.loads(text))})


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the target language and of the documents")
    parser.add_argument("--target-order", default="SOV", help="word order of the target language")
    parser.add_argument("--cognates", type=float, default=0.4, help="share of nouns spelled as in English")
    parser.error = refuse
    flags = parser.parse_args()
    try:
        world = World(targets=(("target", flags.seed, flags.target_order, flags.cognates),))
        languages = world.languages()
    except ValueError as e:
        refuse(e)
    corpora = {name: write_corpus(world, name, 2000, flags.seed) for name in languages}
    tok = Tokenizer(train_bpe([d for docs in corpora.values() for d in docs], 2048))
    for name, lang in languages.items():
        for kind, share in SOURCES[name][1].items():
            print(f"--- {name}, {kind} ({share:.1%} of the documents)")
            text = DOCUMENT_KINDS[kind](Random(flags.seed), world, lang)
            print(text, f"\n[{' '.join(repr(tok.decode([t])) for t in tok.encode(text)[:16])} ...]\n")
