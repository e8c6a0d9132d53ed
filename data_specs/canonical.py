"""CSR rows in canonical form: no stored zeros, no duplicates, sorted columns."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp


def make_canonical(matrix: sp.csr_array) -> None:
    """Drop stored zeros, sum duplicates and sort indices, in place; arrays that need none of it stay as they are."""
    if _unsorted(matrix):
        matrix.sum_duplicates()
    if _has_zeros(matrix):
        matrix.eliminate_zeros()


def canonical(matrix: sp.csr_array) -> sp.csr_array:
    """The matrix itself where it is canonical, else a canonical copy."""
    if _unsorted(matrix) or _has_zeros(matrix):
        matrix = matrix.copy()
        make_canonical(matrix)
    return matrix


def _unsorted(matrix: sp.csr_array) -> bool:
    indices, indptr = matrix.indices, matrix.indptr
    rises = indices[1:] > indices[:-1]
    n_falls = len(rises) - int(np.count_nonzero(rises))
    if not n_falls:
        return False
    starts = np.unique(indptr[(indptr > 0) & (indptr < len(indices))])
    return n_falls != int(np.count_nonzero(~rises[starts - 1]))


def _has_zeros(matrix: sp.csr_array) -> bool:
    # A smallest value above zero proves that there are no zeros, several times faster than counting them.
    if matrix.data.min(initial=1) > 0:
        return False
    return int(np.count_nonzero(matrix.data)) < len(matrix.data)
