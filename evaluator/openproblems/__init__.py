"""Edition `openproblems`: predictions that are tables of differential expression, not cells."""
