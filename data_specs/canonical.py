"""CSR rows in canonical form: no stored zeros, no duplicates, sorted columns."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def make_canonical(matrix: sp.csr_array) -> None:
    """Drop stored zeros, sum duplicates and sort indices, in place; arrays that need none of it stay as they are."""
    indices, indptr = matrix.indices, matrix.indptr
    rises = indices[1:] > indices[:-1]
    n_falls = len(rises) - int(np.count_nonzero(rises))
    if n_falls:
        starts = np.unique(indptr[(indptr > 0) & (indptr < len(indices))])
        if n_falls != int(np.count_nonzero(~rises[starts - 1])):
            matrix.sum_duplicates()
    # A smallest value above zero proves that there are no zeros, several times faster than counting them.
    if not matrix.data.min(initial=1) > 0 and np.count_nonzero(matrix.data) < len(matrix.data):
        matrix.eliminate_zeros()
