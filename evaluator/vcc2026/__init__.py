"""Edition vcc2026: the metric catalogue of cell-eval2, its anchors, baselines and scores."""
