"""scGPT's vocabulary: tokens and their ids, and which token each gene and target of a data set has."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...data_specs.errors import ModelError
from ...data_specs.labels import targets_of

PAD, CLS, EOC = "<pad>", "<cls>", "<eoc>"
SPECIAL = (PAD, CLS, EOC)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order; `pad` is the id of `<pad>`."""

    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.tokens):
            repeated = next(token for i, token in enumerate(self.tokens) if self.ids[token] != i)
            raise ModelError(f"the vocabulary has the token {repeated!r} twice.")
        if PAD not in self.ids:
            raise ModelError(f"the vocabulary has no {PAD}.")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def pad(self) -> int:
        return self.ids[PAD]

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of_genes(cls, genes: Sequence[str]) -> Vocabulary:
        """Upstream's rule without a checkpoint: genes in column order, then the special tokens."""
        return cls((*genes, *(token for token in SPECIAL if token not in set(genes))))

    @classmethod
    def from_ids(cls, ids: Mapping[str, int], where: object = "vocabulary") -> Vocabulary:
        """A vocabulary from token to id; missing special tokens are appended.

        Raises
        ------
        ModelError
            The ids are not a permutation of 0 ... V-1.
        """
        by_id = sorted(ids.items(), key=lambda item: item[1])
        wrong = [(token, i) for place, (token, i) in enumerate(by_id) if place != i]
        if wrong:
            token, i = wrong[0]
            raise ModelError(
                f"{where}: ids must be 0 to {len(ids) - 1:,}, each once; {token!r} has {i} (id repeated or left out)."
            )
        tokens = [token for token, _ in by_id]
        return cls((*tokens, *(token for token in SPECIAL if token not in ids)))

    def extended(self, tokens: Iterable[str]) -> Vocabulary:
        """This vocabulary with new tokens at its end."""
        return Vocabulary((*self.tokens, *tokens))

    def only(self, tokens: Iterable[str]) -> Vocabulary:
        """The special tokens and some of the others, in the order of this vocabulary."""
        kept = {*tokens, *SPECIAL}
        return Vocabulary(tuple(token for token in self.tokens if token in kept))


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a `vocab.json`: one object, token to id. Raises `ModelError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path}: not a vocabulary ({error}).") from error
    if not isinstance(found, dict) or not all(type(i) is int for i in found.values()):
        raise ModelError(f"{path}: not a vocabulary (expected one object of tokens and whole numbers).")
    return Vocabulary.from_ids(found, path)


def read_aliases(path: Path) -> dict[str, str]:
    """Previous symbol to current symbol, from a two-column table (.tsv or .csv). Raises `ModelError`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = list(csv.reader(handle, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ModelError(f"{path}: not a table of aliases ({error}).") from error
    wrong = [i for i, row in enumerate(rows, start=1) if row and len(row) != 2]
    if wrong:
        raise ModelError(f"{path}:{wrong[0]}: expected two columns, previous and current symbol.")
    return {row[0]: row[1] for row in rows if row}


@dataclass(frozen=True)
class GeneTokens:
    """The token of every gene and target of a data set.

    Attributes
    ----------
    vocabulary
        All tokens, those that were appended included.
    ids
        Token of each gene, int64, shape (G,).
    modelled
        Genes that the network sees and predicts, bool, shape (G,).
    targets
        Token of each target that is not a gene.
    n_slots
        Input tokens that every sequence has for such targets.
    known
        Bool, shape (V,): tokens whose vectors mean something without training on the data (from a checkpoint).
    renamed
        Gene or target, and the vocabulary name that an alias or a version-free Ensembl id led to.
    """

    vocabulary: Vocabulary
    ids: np.ndarray
    modelled: np.ndarray
    targets: Mapping[str, int]
    n_slots: int
    known: np.ndarray
    columns: Mapping[str, int]
    renamed: Mapping[str, str]

    def place(self, label: str) -> Place:
        """Where a label's targets are."""
        columns, extra, missing = [], [], []
        for target in targets_of(label):
            if target in self.columns:
                columns.append(self.columns[target])
            elif target in self.targets:
                extra.append(self.targets[target])
            else:
                missing.append(target)
        return Place(tuple(columns), tuple(extra), tuple(missing))


@dataclass(frozen=True)
class Place:
    """Gene columns of a label's targets, token ids of its unmeasured targets, and targets that have neither."""

    columns: tuple[int, ...]
    extra: tuple[int, ...]
    missing: tuple[str, ...] = ()


def map_genes(
    genes: Sequence[str],
    labels: Iterable[str],
    base: Vocabulary | None,
    *,
    oov: str = "extend",
    unmeasured: str = "error",
    aliases: Mapping[str, str] | None = None,
    whole: bool = True,
) -> GeneTokens:
    """Tokens of genes and of the targets of labels.

    Parameters
    ----------
    genes
        Gene symbols in column order, without repeats.
    labels
        Every label that may be asked for; names alone.
    base
        The checkpoint's vocabulary; None builds one from the genes.
    oov, unmeasured
        See `ScGPTConfig.oov` and `unmeasured_target`.
    aliases
        Previous to current symbols.
    whole
        Keep every token of `base`, or those that genes and targets use.

    Raises
    ------
    ModelError
        A gene occurs twice.
    """
    names = [str(gene) for gene in genes]
    columns = {name: i for i, name in enumerate(names)}
    if len(columns) != len(names):
        repeated = next(name for i, name in enumerate(names) if columns[name] != i)
        raise ModelError(f"gene {repeated!r} occurs twice; upstream would give both the same token.")
    listed = sorted({target for label in labels for target in targets_of(label)})
    unmeasured_targets = [t for t in listed if t not in columns] if unmeasured == "token" else []
    start = Vocabulary.of_genes(names) if base is None else base
    renamed: dict[str, str] = {}
    own_names = (*names, *unmeasured_targets)
    taken = set(own_names)
    found = {name: _lookup(name, start, aliases or {}, taken, renamed) for name in own_names}
    if base is not None and not whole:
        start = start.only(name for name in found.values() if name is not None)
    perturbed = set(listed)
    keeps_own = {
        name
        for name, token in found.items()
        if token is None and (oov == "extend" or (oov == "drop" and name in perturbed))
    }
    new = [n for n in own_names if n in keeps_own or (base is None and found[n] is None)]
    vocabulary = start.extended(new)
    ids = np.array([vocabulary.ids.get(found[n] or n, vocabulary.pad) for n in names], dtype=np.int64)
    modelled = np.array([oov != "drop" or found[n] is not None or n in keeps_own for n in names], dtype=bool)
    targets = {t: vocabulary.ids.get(found[t] or t, vocabulary.pad) for t in unmeasured_targets}
    slots = [sum(t in targets for t in targets_of(label)) for label in labels]
    known = np.zeros(len(vocabulary), dtype=bool)
    known[: len(start) if base is not None else 0] = True
    return GeneTokens(vocabulary, ids, modelled, targets, max(slots, default=0), known, columns, renamed)


def _lookup(
    name: str, base: Vocabulary, aliases: Mapping[str, str], taken: set[str], renamed: dict[str, str]
) -> str | None:
    """The vocabulary's name of a gene: exact, by alias, or its Ensembl id without version; None without one.

    A name that another gene has or got is not given a second time: their tokens would be one.
    """
    if name in base.ids:
        return name
    other = aliases.get(name, "")
    if other not in base.ids and re.fullmatch(r"ENS[A-Z]*G\d+\.\d+", name):
        other = name.split(".")[0]
    if other and other in base.ids and other not in taken:
        taken.add(other)
        renamed[name] = other
        return other
    return None
