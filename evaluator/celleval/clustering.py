"""Agreement between Leiden clusterings of true and predicted centroids; best effort, needs scanpy and igraph."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from .panel import Panel

PRED_RESOLUTIONS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
TRUTH_RESOLUTION = 1.0
NEIGHBORS = 15
MIN_TARGETS = 3


def missing_libraries() -> list[str]:
    """The libraries that this metric needs and that are not installed."""
    return [name for name in ("scanpy", "igraph") if find_spec(name) is None]


def clustering_agreement(panel: Panel) -> np.ma.MaskedArray:
    """Largest adjusted mutual information, over resolutions of the prediction, with the truth's clustering; at least 0.

    Raises
    ------
    ModuleNotFoundError
        scanpy or igraph is not installed; see `missing_libraries`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    truth = _clusters(panel.truth.measured.exact_bulk[:-1], (TRUTH_RESOLUTION,))[0]
    best = 0.0
    for labels in _clusters(panel.pred.measured.exact_bulk[:-1], PRED_RESOLUTIONS):
        best = max(best, float(adjusted_mutual_info_score(truth, labels)))
    return panel.everywhere(best)


def _clusters(centroids: np.ndarray, resolutions: tuple[float, ...]) -> list[np.ndarray]:
    """Cluster of each centroid at each resolution."""
    import anndata
    import scanpy

    graph = anndata.AnnData(X=centroids.copy())
    scanpy.pp.neighbors(graph, n_neighbors=min(NEIGHBORS, len(centroids) - 1), use_rep="X")
    found = []
    for resolution in resolutions:
        scanpy.tl.leiden(graph, resolution=resolution, flavor="igraph", n_iterations=2, directed=False)
        found.append(graph.obs["leiden"].to_numpy())
    return found
