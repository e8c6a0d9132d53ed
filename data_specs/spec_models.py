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


class LabelRules(Strict):
    """How the published labels read; see `labels.LabelRecipe`."""

    column: str
    control: tuple[str, ...]
    control_patterns: tuple[str, ...] = ()
    unassigned: tuple[str, ...] = ("*", "None", "nan", "NaN", "", "unassigned")
    separator: str | None = None
    fillers: tuple[str, ...] = ()
    strip_regex: str | None = None
    aliases: dict[str, str] = Field(default_factory=dict)


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
    location: str = "X"
    kind: Literal["counts", "log1p"]
    target_sum: float | None = None


class GeneRules(Strict):
    """Which var columns hold the symbols (None: the index) and the gene ids that make repeated symbols unique."""

    symbol_column: str | None = None
    gene_id_column: str | None = None


class Trap(Strict):
    """A known defect of a published file."""

    id: str
    severity: Literal["error", "warning", "info"] = "warning"
    text: str
    url: str | None = None


class DatasetSpec(Strict):
    """One published file layout of one dataset."""

    spec_version: Literal[1]
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    family: str
    title: str
    citation: Citation
    license: str
    organism: str
    modality: Literal["CRISPRi", "CRISPRa", "KO", "drug", "cytokine", "simulated"]
    accessions: tuple[str, ...] = ()
    derived_from: str | None = None
    files: tuple[SourceFile, ...] = ()
    matrix: MatrixSpec
    contexts: ContextRules
    labels: LabelRules
    genes: GeneRules = GeneRules()
    n_cells: Count | None = None
    n_genes: Count | None = None
    n_perturbations: Count | None = None
    n_control_cells: Count | None = None
    keep_obs: dict[str, str] = Field(default_factory=dict)
    depth_column: str | None = None
    leaks: tuple[str, ...] = ()
    traps: tuple[Trap, ...] = ()
    notes: str = ""
