"""Checkpoint folders of scGPT (`best_model.pt`, `vocab.json`, `args.json`), read without running anything in them."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...data_specs.errors import ModelError
from ...data_specs.hashing import file_sha256
from ..features import FeatureTable
from .config import ScGPTConfig
from .model import TransformerGenerator
from .vocabulary import GeneTokens, Vocabulary, read_vocabulary

WEIGHTS, VOCAB, ARGS = "best_model.pt", "vocab.json", "args.json"
PRETRAINED = ("encoder.", "value_encoder.", "transformer_encoder.")
EMBEDDING = "encoder.embedding.weight"
Layout = Literal["native", "flash", "flash-wrapped"]
# Our name of each size and the name in args.json.
SIZES = {"d_model": "embsize", "nhead": "nheads", "d_hid": "d_hid", "nlayers": "nlayers"}
LAYERS = "transformer_encoder.layers."


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, names canonical.

    Attributes
    ----------
    state
        Tensor of each name, float32.
    vocabulary
        Its tokens.
    sizes
        `d_model`, `nhead`, `d_hid`, `nlayers`, `n_layers_cls`.
    variant
        Variant of a fine-tuned checkpoint; None for a pre-trained one, which has no perturbation encoder.
    """

    folder: Path
    state: Mapping[str, Tensor]
    vocabulary: Vocabulary
    sizes: Mapping[str, int]
    variant: Literal["affine", "legacy_bn"] | None
    sha256: str

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Names that loading takes: the pre-trained three, or all of a fine-tuned checkpoint."""
        return PRETRAINED if self.variant is None else ("",)

    def configured(self, config: ScGPTConfig) -> ScGPTConfig:
        """A config with the checkpoint's sizes, and a fine-tuned checkpoint's variant."""
        more: dict[str, Any] = {} if self.variant is None else {"variant": self.variant}
        if self.variant == "affine" and any("zero_logit" in name for name in self.state):
            more["explicit_zero_prob"] = True
        return replace(config, **self.sizes, **more)


@dataclass(frozen=True)
class LoadReport:
    """What matched: tensor names loaded, ignored in the file, and new in the network; rows of the gene table."""

    loaded: tuple[str, ...]
    ignored: tuple[str, ...]
    new: tuple[str, ...]
    rows_loaded: int
    rows_new: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def text(self) -> str:
        """One sentence."""
        ignored = f"{len(self.ignored)} ignored ({_some(self.ignored)})" if self.ignored else "none ignored"
        return (
            f"{len(self.loaded)} tensors loaded, {ignored}, {len(self.new)} of the network start new"
            f"{f' ({_some(self.new)})' if self.new else ''}; {self.rows_loaded:,} token vectors from the checkpoint, "
            f"{self.rows_new:,} new."
        )


def _some(names: Sequence[str], n: int = 3) -> str:
    heads = list(dict.fromkeys(name.split(".")[0] for name in names))
    return ", ".join(heads[:n]) + (", …" if len(heads) > n else "")


def canonical_name(name: str) -> str:
    """The native name of a tensor in any of upstream's three layouts. Values are the same in all of them."""
    name = name.removeprefix("module.").replace("self_attn._impl.", "self_attn.")
    for part in ("weight", "bias"):
        name = name.replace(f"self_attn.Wqkv.{part}", f"self_attn.in_proj_{part}")
    return name


def layout_name(name: str, layout: Layout) -> str:
    """The inverse of `canonical_name`."""
    if layout == "native":
        return name
    inner = "self_attn._impl." if layout == "flash-wrapped" else "self_attn."
    for part in ("weight", "bias"):
        name = name.replace(f"self_attn.in_proj_{part}", f"self_attn.Wqkv.{part}")
    return name.replace("self_attn.", inner)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a torch file: a bare one, or under `state_dict` or `model`; float32, names canonical.

    Only tensors and containers are unpickled; a file that asks for anything else is refused before it runs.

    Raises
    ------
    ModelError
        The file is missing, cut short, damaged, holds code or something other than tensors, or a tensor is not finite.
    """
    try:
        _check_content(path)
        found = _load(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: refused, it holds more than tensors and nothing of it was run ({_first_line(error)})."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not a readable file of tensors ({_first_line(error)}).") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise ModelError(f"{path}: holds no state dict.")
    state: dict[str, Tensor] = {}
    for key, value in found.items():
        name = canonical_name(str(key))
        if name in state:
            raise ModelError(f"{path}: holds {name} twice, in two layouts.")
        state[name] = value.float() if value.is_floating_point() else value
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"{path}: {len(broken)} tensors are not finite (first: {broken[0]}).")
    return state


def _check_content(path: Path) -> None:
    """Compare the content of each record with its checksum, which reading through a memory map does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"the content of {broken} does not match its checksum")


def _load(path: Path) -> Any:
    # Files from before torch 1.6 are no archives and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    told = next((line.strip() for line in lines if "GLOBAL" in line or "Unsupported" in line), "")
    return told or (lines[0] if lines else type(error).__name__)


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """A checkpoint folder, or its `best_model.pt`.

    Raises
    ------
    ModelError
        A file is missing or broken, the sizes of weights, vocabulary and arguments disagree, or `nheads` is not told.
    """
    given = Path(folder)
    weights = given if given.is_file() else given / WEIGHTS
    missing = [
        name for name in (WEIGHTS, VOCAB, ARGS) if not (weights.parent / name).is_file() and name != WEIGHTS
    ]
    if not weights.is_file():
        missing.insert(0, WEIGHTS)
    if missing:
        raise ModelError(f"{given}: no scGPT checkpoint; {', '.join(missing)} missing.")
    state = read_state(weights)
    vocabulary = _with_rows(read_vocabulary(weights.parent / VOCAB), state, given)
    sizes = _sizes(state, _read_args(weights.parent / ARGS), given)
    fine_tuned = "pert_encoder.weight" in state
    legacy = fine_tuned and "bn.weight" in state
    if fine_tuned and not legacy and not any(name.startswith("decoder.coeff_decoder.") for name in state):
        raise ModelError(f"{given}: a perturbation encoder, but neither of upstream's decoders.")
    variant = None if not fine_tuned else ("legacy_bn" if legacy else "affine")
    return Checkpoint(given, state, vocabulary, sizes, variant, file_sha256(weights))


def _with_rows(vocabulary: Vocabulary, state: Mapping[str, Tensor], where: Path) -> Vocabulary:
    table = state.get(EMBEDDING)
    if table is None or table.dim() != 2:
        raise ModelError(f"{where}: the weights have no {EMBEDDING} (first tensor: {next(iter(state))}).")
    if len(table) != len(vocabulary):
        raise ModelError(
            f"{where}: {len(table):,} token vectors for the {len(vocabulary):,} tokens of {VOCAB} "
            "(special tokens included); the files are of different models."
        )
    return vocabulary


def _read_args(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path}: not a JSON object ({error}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: not a JSON object.")
    return found


def _sizes(state: Mapping[str, Tensor], args: Mapping[str, Any], where: Path) -> dict[str, int]:
    """Sizes from the shapes; heads and the head's depth from the arguments, which must not contradict the shapes."""
    first = f"{LAYERS}0.linear1.weight"
    if first not in state:
        raise ModelError(f"{where}: the weights have no {first}.")
    layers = {name.removeprefix(LAYERS).split(".")[0] for name in state if name.startswith(LAYERS)}
    sizes = {"d_model": state[EMBEDDING].shape[1], "d_hid": len(state[first]), "nlayers": len(layers)}
    for ours, key in SIZES.items():
        told = args.get(key)
        if told is None and ours == "nhead":
            raise ModelError(
                f"{where}: {ARGS} has no {key!r}, and the weights do not tell the number of heads."
            )
        if told is not None and type(told) is not int:
            raise ModelError(f"{where}: {key} in {ARGS} is {told!r}, not a whole number.")
        if told is not None and sizes.setdefault(ours, told) != told:
            raise ModelError(f"{where}: {key} is {told} in {ARGS} and {sizes[ours]} in the weights.")
    if sizes["nhead"] < 1 or sizes["d_model"] % sizes["nhead"]:
        raise ModelError(f"{where}: {sizes['nhead']} heads do not divide the width {sizes['d_model']}.")
    depth = args.get("n_layers_cls", 3)
    own = [name for name in state if name.startswith("cls_decoder._decoder.") and state[name].dim() == 2]
    return {**sizes, "n_layers_cls": len(own) + 1 if own else int(depth)}


def load_pretrained(
    module: TransformerGenerator,
    checkpoint: Checkpoint,
    tokens: GeneTokens | Vocabulary | None = None,
    *,
    prefixes: Sequence[str] | None = None,
    strict: bool = True,
) -> LoadReport:
    """Put a checkpoint's tensors into a network.

    Parameters
    ----------
    tokens
        The network's vocabulary, for the gene table: rows are copied by token, rows of other tokens stay as they are.
        Default: the checkpoint's own.
    prefixes
        Names to load. Default: `checkpoint.prefixes`.
    strict
        Every tensor of the network below the prefixes must be in the checkpoint.

    Raises
    ------
    ModelError
        A chosen tensor is not in the network or has another shape, or one of the network's is missing.
    """
    chosen = tuple(checkpoint.prefixes if prefixes is None else prefixes)
    vocabulary = tokens.vocabulary if isinstance(tokens, GeneTokens) else tokens or checkpoint.vocabulary
    own = module.state_dict()
    take = {name: value for name, value in checkpoint.state.items() if name.startswith(chosen)}
    wrong = [name for name in take if name not in own]
    wrong += [
        f"{name} {tuple(value.shape)}, here {tuple(own[name].shape)}"
        for name, value in take.items()
        if name in own and name != EMBEDDING and value.shape != own[name].shape
    ]
    # A prior has no counterpart upstream.
    ours_alone = ("encoder.prior", "encoder.from_prior.weight")
    missing = [n for n in own if n.startswith(chosen) and n not in take and n not in ours_alone]
    if wrong or (missing and strict):
        told = [f"unexpected or of another shape: {', '.join(wrong[:3])}"] if wrong else []
        told += [f"missing: {', '.join(missing[:3])} ({len(missing)} in all)"] if missing and strict else []
        raise ModelError(f"{checkpoint.folder}: {'; '.join(told)}.")
    rows = 0
    with torch.no_grad():
        for name, value in take.items():
            if name == EMBEDDING:
                rows = _copy_rows(own[name], value, vocabulary, checkpoint.vocabulary)
            else:
                own[name].copy_(value)
    return LoadReport(
        loaded=tuple(take),
        ignored=tuple(name for name in checkpoint.state if name not in take),
        new=tuple(name for name in own if name not in take),
        rows_loaded=rows,
        rows_new=len(vocabulary) - rows,
    )


def _copy_rows(target: Tensor, source: Tensor, own: Vocabulary, theirs: Vocabulary) -> int:
    if target.shape[1] != source.shape[1] or len(target) != len(own):
        raise ModelError(f"{EMBEDDING}: {tuple(source.shape)} does not fit {tuple(target.shape)}.")
    at = np.array([theirs.ids.get(token, -1) for token in own.tokens])
    here = np.flatnonzero(at >= 0)
    target[torch.as_tensor(here, device=target.device)] = source[torch.as_tensor(at[here])].to(target)
    return len(here)


def checkpoint_embeddings(checkpoint: Checkpoint) -> FeatureTable:
    """Token vectors of a checkpoint after its layer norm, special tokens left out; float64, shape (n, D)."""
    state, tokens = checkpoint.state, checkpoint.vocabulary.tokens
    width = (checkpoint.sizes["d_model"],)
    norm = (state["encoder.enc_norm.weight"], state["encoder.enc_norm.bias"])
    genes = [i for i, token in enumerate(tokens) if not token.startswith("<")]
    found = torch.nn.functional.layer_norm(state[EMBEDDING][genes], width, *norm)
    return FeatureTable(np.array([tokens[i] for i in genes]), found.double().numpy())


def write_checkpoint(
    module: TransformerGenerator,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    layout: Layout = "native",
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder that upstream and `read_checkpoint` read; `extra` joins the state dict under its own names.

    Raises
    ------
    ModelError
        The network has a prior, which upstream's does not know.
    """
    if module.encoder.prior is not None:
        raise ModelError("a network with a prior of features has no form that upstream reads.")
    config = module.config
    folder.mkdir(parents=True, exist_ok=True)
    state = {layout_name(name, layout): v.detach().cpu().clone() for name, v in module.state_dict().items()}
    torch.save({**state, **(extra or {})}, folder / WEIGHTS)
    (folder / VOCAB).write_text(json.dumps(vocabulary.ids), encoding="utf-8")
    args = {key: getattr(config, ours) for ours, key in SIZES.items()} | {"n_layers_cls": config.n_layers_cls}
    (folder / ARGS).write_text(json.dumps({**args, "pad_token": "<pad>"}, indent=2), encoding="utf-8")
