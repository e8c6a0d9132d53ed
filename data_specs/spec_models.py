"""Schemas of edition and dataset TOML files. Unknown keys are refused; all problems are reported at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MatrixRule = Literal["declared", "counts", "log1p", "detect"]
ControlRule = Literal["required", "optional", "forbidden"]


class Strict(BaseModel):
    """Frozen model without extra keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRules(Strict):
    """What an entry of an edition looks like as a file.

    `matrix`: `declared` by the file or the caller; `counts` or `log1p` by rule; `detect` by the edition's own
    rule (`detection`). `rows`: what rows may be: cells, mean profiles, or (`de`) tables of differential expression.
    """

    containers: tuple[Literal["h5ad", "vcc2025", "vcc2026"], ...]
    rows: tuple[Literal["cell", "mean", "de"], ...]
    matrix: MatrixRule
    detection: Literal["celleval"] | None = None
    perturbation_column: str
    control_label: str
    context_column: str | None = None
    context_required: bool = False


class PanelRules(Strict):
    """What must be in an entry. None means no rule."""

    control: ControlRule
    gene_count: int | None = None
    gene_order: Literal["binding", "free"] = "free"
    perturbation_list: Literal["required", "optional", "unused"] = "optional"
    contexts: tuple[str, ...] | None = None
    cells_per_perturbation: int | None = None
    max_cells: int | None = None
    max_stored: int | None = None
    max_cell_total: float | None = None
    max_log1p: float | None = None


class Profile(Strict):
    """A named choice of metrics; `@NAME` stands for another profile, or for all metrics of a family.

    `family` is the metric family that the names belong to; None: the family of the edition's pipeline.
    """

    metrics: tuple[str, ...]
    family: str | None = None
    description: str = ""


class ScoreRule(Strict):
    """How metric values become one score. `kind` names the rule; parameters are spelled out."""

    kind: Literal["none", "celleval", "vcc2025", "vcc2026"] = "none"
    members: tuple[str, ...] = ()
    published_baseline: dict[str, float] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Scoring(Strict):
    """The pipeline that computes the metrics (a name of `evaluator.pipelines`) and its parameters."""

    pipeline: Literal["core", "celleval", "vcc2026", "openproblems"]
    default_profile: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class Edition(Strict):
    """One challenge or benchmark edition: file rules, panel, metrics, score."""

    spec_version: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    summary: str
    source: str
    released: str
    emission: str
    file: FileRules
    panel: PanelRules
    scoring: Scoring
    profiles: dict[str, Profile]
    score: ScoreRule = ScoreRule()

    @model_validator(mode="after")
    def _default_profile_exists(self) -> Edition:
        if self.scoring.default_profile not in self.profiles:
            raise ValueError(
                f"scoring.default_profile {self.scoring.default_profile!r} is not among the profiles"
            )
        return self

    def profile(self, name: str | None) -> Profile:
        """The named profile, or the default one. Raises `UnknownName`."""
        from .errors import UnknownName

        key = name or self.scoring.default_profile
        if key not in self.profiles:
            raise UnknownName("profile", key, sorted(self.profiles), f"vcbench explain {self.id}")
        return self.profiles[key]


Evidence = Literal["file", "code", "docs", "recall"]


class Citation(Strict):
    text: str
    doi: str | None = None
    year: int


class Count(Strict):
    """An expected number and how well it is known; `recall` never makes an error, only a warning."""

    value: int
    verified: Evidence
    rel_tolerance: float = 0.0


class SourceFile(Strict):
    """One downloadable file."""

    role: str
    name: str
    urls: tuple[str, ...] = ()
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    crc32c: str | None = None


class DoseRules(Strict):
    """Columns that complete a chemical label: dose, its unit (a column or one fixed value), hours of treatment."""

    column: str
    unit: str | None = None
    unit_column: str | None = None
    time_column: str | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> DoseRules:
        if (self.unit is None) == (self.unit_column is None):
            raise ValueError("labels.dose needs exactly one of `unit` and `unit_column`")
        return self


class LabelRules(Strict):
    """How the published labels read; see `labels.LabelRecipe`. `dose` completes labels of compounds."""

    column: str
    control: tuple[str, ...]
    control_patterns: tuple[str, ...] = ()
    unassigned: tuple[str, ...] = ("*", "None", "nan", "NaN", "", "unassigned")
    separator: str | None = None
    fillers: tuple[str, ...] = ()
    strip_regex: str | None = None
    aliases: dict[str, str] = Field(default_factory=dict)
    filler_patterns: tuple[str, ...] = ()
    target_regex: str | None = None
    form: Literal["plain", "tuples"] = "plain"
    dose: DoseRules | None = None


class ContextRules(Strict):
    """Where the context comes from: a column, or one fixed value that overrides the file."""

    column: str | None = None
    value: str | None = None
    rename: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> ContextRules:
        if (self.column is None) == (self.value is None):
            raise ValueError("contexts needs exactly one of `column` and `value`")
        return self


class MatrixSpec(Strict):
    """The matrix to read: `X` or a layer, and its scale."""

    location: str = Field("X", pattern=r"^(X|layers/[^/]+)$")
    kind: Literal["counts", "log1p"]
    target_sum: float | None = None


class GeneRules(Strict):
    """Which var columns hold the symbols (None: the index) and the gene ids that make repeated symbols unique.

    `index` says what the var index holds; with `ensembl` it gives the gene ids where no column does.
    """

    index: Literal["symbol", "ensembl"] = "symbol"
    symbol_column: str | None = None
    gene_id_column: str | None = None

    @model_validator(mode="after")
    def _symbols_somewhere(self) -> GeneRules:
        if self.index == "ensembl" and self.symbol_column is None:
            raise ValueError("genes.index is `ensembl`, so genes.symbol_column must name the symbols")
        return self


class TrapSign(Strict):
    """How a trap shows in a file: an obs column that holds one of these values, or a label of this form."""

    column: str | None = None
    values: tuple[str, ...] = ()
    label_regex: str | None = None

    @model_validator(mode="after")
    def _one_sign(self) -> TrapSign:
        if (self.column is None) == (self.label_regex is None) or bool(self.values) != bool(self.column):
            raise ValueError("a trap's sign is either `column` with `values`, or `label_regex`")
        return self


class Trap(Strict):
    """A known defect of a published file; `sign` lets the check find it."""

    id: str
    severity: Literal["error", "warning", "info"] = "warning"
    text: str
    url: str | None = None
    sign: TrapSign | None = None


class Fingerprint(Strict):
    """What tells this layout from others, beside its columns: forms of labels, values of columns, side entries.

    `label_regex` is what labels other than control look like; `targets` are some targets; `values` are the values
    that an obs column may hold; `groups` are entries such as `layers/counts` or `obsm/X_pca`.
    """

    label_regex: str | None = None
    targets: tuple[str, ...] = ()
    values: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    groups: tuple[str, ...] = ()


class Verified(Strict):
    """How well the facts of a spec are known where they do not say it themselves."""

    level: Evidence
    date: str | None = None
    note: str = ""


class DatasetCard(Strict):
    """What is known of a dataset, enough to find, cite and download it."""

    spec_version: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    family: str
    title: str
    citation: Citation
    license: str
    organism: str
    modality: Literal["CRISPRi", "CRISPRa", "KO", "drug", "cytokine", "simulated"]
    verified: Verified = Verified(level="docs")
    evidence: dict[str, Evidence] = Field(default_factory=dict)
    accessions: tuple[str, ...] = ()
    derived_from: str | None = None
    files: tuple[SourceFile, ...] = ()
    n_cells: Count | None = None
    n_genes: Count | None = None
    n_perturbations: Count | None = None
    n_control_cells: Count | None = None
    leaks: tuple[str, ...] = ()
    traps: tuple[Trap, ...] = ()
    notes: str = ""


class DatasetSpec(DatasetCard):
    """One published file layout of one dataset: its card, and how the file reads.

    `obs_columns` and `var_columns` are the published columns: they recognise the layout, and conversion keeps them
    (`keep_all`: all other obs columns of the file).
    """

    matrix: MatrixSpec
    contexts: ContextRules
    labels: LabelRules
    genes: GeneRules = GeneRules()
    obs_columns: tuple[str, ...] = ()
    var_columns: tuple[str, ...] = ()
    fingerprint: Fingerprint = Fingerprint()
    keep_obs: dict[str, str] = Field(default_factory=dict)
    keep_all: bool = False
    depth_column: str | None = None
