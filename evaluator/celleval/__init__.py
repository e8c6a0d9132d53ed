"""Scoring as cell-eval does it: editions `vcc2025` (0.6 with pdex 0.1) and `celleval-0.8` (0.8 with pdex 0.3)."""
