"""Settings of scGPT: one frozen dataclass; the defaults train from scratch, the TOML presets are the other ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...data_specs.errors import UsageError
from ..training.config import TrainingConfig

Variant = Literal["affine", "legacy_bn"]
ZeroGenes = Literal["all", "batch-wise", "cell-wise"]
# Parts of the network by the word that `freeze` takes, and the prefixes of their parameters.
PARTS = {
    "genes": "encoder.",
    "values": "value_encoder.",
    "perturbations": "pert_encoder.",
    "transformer": "transformer_encoder.",
    "decoder": "decoder.",
}
ACTIVATIONS = ("", "ReLU", "LeakyReLU", "GELU", "ELU", "SiLU", "Sigmoid", "Tanh", "Softplus")


@dataclass(frozen=True)
class ScGPTConfig(TrainingConfig):
    """Settings of `scgpt`; those of every training run stand in `TrainingConfig`.

    Attributes
    ----------
    checkpoint
        An official checkpoint folder (`best_model.pt`, `vocab.json`, `args.json`) to fine-tune; its sizes replace
        yours, and preset=finetune is the default then. Empty trains from scratch.
    d_model, nhead, nlayers, d_hid
        Width, attention heads, layers, and feed-forward width.
    n_layers_cls
        Depth of the classification head, which is kept for its weights and not used.
    variant
        `affine`: expression = a * control + b (upstream 0.2.2 on); `legacy_bn`: batch norm and one decoder (to 0.2.1).
    pert_pad_id
        Row of the perturbation embedding that is zero: 0 (nothing is added to unperturbed genes) or 2.
    dropout
        Rate in value encoder, attention and feed-forward layers.
    decoder_activation, decoder_adaptive_bias, explicit_zero_prob
        Upstream's options of the decoder: an activation of `torch.nn` (empty: none), the bias times the cell's mean
        non-zero value, and a probability of being non-zero, trained beside the values and multiplied into predictions.
    init
        Layers start `independent` of each other, or as copies of one (`upstream`).
    vocabulary
        Tokens of the checkpoint that stay: the `whole` table, or those of the `data`'s genes and targets, which trains
        the same weights with less memory and time.
    oov
        A gene outside the checkpoint's vocabulary gets a token of its own (`extend`), shares `<pad>` (`pad`), or stays
        at its control value (`drop`, never a perturbed gene).
    aliases
        A table file: previous symbol, current symbol; looked up where a symbol is not in the vocabulary.
    unmeasured_target
        A target that is not among the genes: an `error` (refused in prediction), or one more input `token`, which
        has no output.
    untrained_target
        A requested target whose token was never seen in training, nor in the checkpoint or features: the mean training
        effect as a fallback (`mean-shift`), a refusal, or what the network says (`predict`).
    include_zero_gene
        Genes of a step: `all`, those expressed in a control cell of the batch, or in the cell's own control cell
        (padded; batches of similar length). Perturbed genes always; skipped genes keep their control value.
    max_seq_len
        Most genes per step, 0 for all. Prediction uses all genes, see `inference`.
    gene_sampling
        Perturbed genes are always sampled (`random+perturbed`), or like any other gene (`random`, upstream).
    pairing
        The control cell of each perturbed training cell: drawn in every `epoch`, `fixed`, or the `mean` profile.
    include_control
        Control cells train as pairs of themselves.
    freeze
        Parts that do not train, separated by commas: genes, values, perturbations, transformer, decoder.
    freeze_layers
        First transformer layers that do not train.
    activation_checkpointing
        Recompute each layer in the backward pass: a third of the memory, a third more time.
    inference, partitions
        `full`: all genes in one sequence; `chunked`: random groups of at most `max_seq_len` genes, perturbed genes in
        each, averaged over so many partitions of the genes.
    pool_size
        Control cells of each context that predictions average over; 0 takes all.
    effect
        `paired`: mean of prediction minus input; `absolute`: mean prediction minus the control mean (upstream);
        `contrast`: minus the prediction without perturbation.
    validation_cells
        Control cells per context that validation predicts from.
    paired_validation
        Predict every validation cell from its own drawn control cell (upstream).
    validation_genes
        Genes of `cell_mse` in a paired validation: `all`, or a `sampled` set per batch (upstream to 0.2.1).
    """

    checkpoint: str = ""
    d_model: int = 64
    nhead: int = 4
    nlayers: int = 3
    d_hid: int = 64
    n_layers_cls: int = 3
    variant: Variant = "affine"
    pert_pad_id: int = 0
    dropout: float = 0.0
    decoder_activation: str = ""
    decoder_adaptive_bias: bool = False
    explicit_zero_prob: bool = False
    init: Literal["independent", "upstream"] = "independent"
    vocabulary: Literal["whole", "data"] = "whole"
    oov: Literal["extend", "pad", "drop"] = "extend"
    aliases: str = ""
    unmeasured_target: Literal["error", "token"] = "error"
    untrained_target: Literal["mean-shift", "refuse", "predict"] = "mean-shift"
    include_zero_gene: ZeroGenes = "all"
    max_seq_len: int = 1536
    gene_sampling: Literal["random+perturbed", "random"] = "random+perturbed"
    pairing: Literal["epoch", "fixed", "mean"] = "epoch"
    include_control: bool = True
    freeze: str = ""
    freeze_layers: int = 0
    activation_checkpointing: bool = False
    inference: Literal["full", "chunked"] = "full"
    partitions: int = 1
    pool_size: int = 100
    effect: Literal["paired", "absolute", "contrast"] = "paired"
    validation_cells: int = 32
    paired_validation: bool = False
    validation_genes: Literal["all", "sampled"] = "all"
    lr: float = 1e-3
    batch_size: int = 64
    epochs: int = 30
    warmup: int = 100
    clip: Literal["none", "norm", "value"] = "norm"
    fused: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (
                ("d_model", 1),
                ("nhead", 1),
                ("nlayers", 1),
                ("d_hid", 1),
                ("n_layers_cls", 1),
                ("max_seq_len", 0),
                ("freeze_layers", 0),
                ("partitions", 1),
                ("pool_size", 0),
                ("validation_cells", 1),
            )
            if getattr(self, name) < least
        ]
        if not problems and self.d_model % self.nhead:
            problems.append(f"d_model ({self.d_model}) must be a multiple of nhead ({self.nhead})")
        if self.pert_pad_id not in (0, 2):
            problems.append(f"pert_pad_id must be 0 or 2, not {self.pert_pad_id}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must be from 0 to below 1, not {self.dropout}")
        if self.decoder_activation not in ACTIVATIONS:
            named = ", ".join(repr(name) for name in ACTIVATIONS)
            problems.append(f"decoder_activation must be one of {named}, not {self.decoder_activation!r}")
        unknown = [part for part in self.frozen_parts if part not in PARTS]
        if unknown:
            problems.append(f"freeze knows {', '.join(PARTS)}, not {', '.join(unknown)}")
        if self.freeze_layers > self.nlayers and not self.checkpoint:
            problems.append(f"freeze_layers ({self.freeze_layers}) is more than nlayers ({self.nlayers})")
        if self.variant == "legacy_bn" and (self.decoder_activation or self.decoder_adaptive_bias):
            problems.append("decoder_activation and decoder_adaptive_bias belong to variant=affine")
        if self.gene_sampling == "random" and self.include_zero_gene != "all":
            problems.append("gene_sampling=random hides perturbed genes only with include_zero_gene=all")
        if self.pairing == "mean" and self.include_zero_gene != "all":
            problems.append("pairing=mean has no control cell to choose genes by; use include_zero_gene=all")
        if self.validation_genes == "sampled" and not self.paired_validation:
            problems.append("validation_genes=sampled needs paired_validation=true")
        if self.select == "cell_mse" and not self.paired_validation:
            problems.append("select=cell_mse needs paired_validation=true")
        if problems:
            raise UsageError("; ".join(problems) + ".")

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The words of `freeze`."""
        return tuple(part.strip() for part in self.freeze.split(",") if part.strip())
