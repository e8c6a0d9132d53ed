"""Which factors make emitted cells reproduce a mean log profile: exact expectations and monotone root finding.

For cell i with total L_i let s_i = target_sum / L_i. An emitted count X gives ln(1 + X s_i), and every rule below
needs E[ln(1 + X s_i)] over its own draw of X, because the mean of a logarithm is not the logarithm of a mean.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

# Expectations over more than this many counts use four moments; the error there is below 1e-5.
_DIRECT_UP_TO = 40.0
N_NODES = 128
N_TABLED = 64
_LOG_SHARE = np.arange(math.log(1e-12), 0.0, 0.02)
MAX_STEPS = 40
# Of ln(factor): the group mean is then right to 0.05 %, far below the noise of any group size.
TOLERANCE = 5e-4


@njit(cache=True, nogil=True)
def _moment_log(mean: float, second: float, third: float, fourth: float, scale: float) -> float:
    t = scale / (1.0 + mean * scale)
    return math.log1p(mean * scale) - second * t**2 / 2 + third * t**3 / 3 - fourth * t**4 / 4


@njit(cache=True, nogil=True)
def poisson_log(base: float, rate: float, scale: float) -> tuple[float, float]:
    """E ln(1 + (base + Poisson(rate)) * scale) and its derivative in `rate`."""
    if rate > _DIRECT_UP_TO:
        mean = _moment_log(base + rate, rate, rate, 3 * rate * rate + rate, scale)
        return mean, scale / (1.0 + (base + rate) * scale)
    mass, done, total, slope, k = math.exp(-rate), 0.0, 0.0, 0.0, 0
    value = math.log1p(base * scale)
    while done < 1 - 1e-13 and k < 400:
        following = math.log1p((base + k + 1) * scale)
        total += mass * value
        slope += mass * (following - value)
        done += mass
        k += 1
        mass *= rate / k
        value = following
    return total, slope


@njit(cache=True, nogil=True)
def binomial_log(n: float, share: float, scale: float) -> tuple[float, float]:
    """E ln(1 + Binomial(n, share) * scale) and its derivative in `share`, for 0 < share < 1."""
    if n > _DIRECT_UP_TO and n * share > _DIRECT_UP_TO:
        second = n * share * (1 - share)
        fourth = 3 * second**2 + second * (1 - 6 * share * (1 - share))
        mean = _moment_log(n * share, second, second * (1 - 2 * share), fourth, scale)
        return mean, n * scale / (1.0 + n * share * scale)
    # Counting from the likelier end keeps the first probability away from underflow.
    flip = share > 0.5
    odds = (1 - share) / share if flip else share / (1 - share)
    mass = share**n if flip else (1 - share) ** n
    done, total, slope, i = 0.0, 0.0, 0.0, 0
    while done < 1 - 1e-13 and i <= n:
        k = n - i if flip else float(i)
        value = math.log1p(k * scale)
        total += mass * value
        slope += mass * value * (k - n * share)
        done += mass
        mass *= odds * (n - i) / (i + 1)
        i += 1
    return total, slope / (share * (1 - share))


@njit(cache=True, nogil=True)
def log_table(scale: np.ndarray) -> np.ndarray:
    """ln(1 + k * scale[i]) for small whole k, shape (n_cells, 64): most counts are small, and logarithms are slow."""
    out = np.empty((scale.shape[0], N_TABLED))
    for cell in range(scale.shape[0]):
        for k in range(N_TABLED):
            out[cell, k] = math.log1p(k * scale[cell])
    return out


@njit(cache=True, nogil=True)
def scale_means(
    data: np.ndarray,
    rows: np.ndarray,
    indptr: np.ndarray,
    factor: np.ndarray,
    fill: np.ndarray,
    scale: np.ndarray,
    table: np.ndarray,
    rounded: bool,
    means: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """E of the group's log mean per gene, and its slope in ln(factor), for counts times factor (column-major).

    `fill` (n_cells,) restores each cell's total, `table` is `log_table(scale)`. With `rounded`, X is v rounded down or
    up with mean v.
    """
    for gene in range(factor.shape[0]):
        mean, slope = 0.0, 0.0
        for k in range(indptr[gene], indptr[gene + 1]):
            cell = rows[k]
            value, s = factor[gene] * data[k] * fill[cell], scale[cell]
            if not rounded:
                mean += math.log1p(value * s)
                slope += value * s / (1.0 + value * s)
                continue
            whole = math.floor(value)
            if whole < N_TABLED - 1:
                low = table[cell, int(whole)]
                step = table[cell, int(whole) + 1] - low
            else:
                low = math.log1p(whole * s)
                step = math.log1p(s / (1.0 + whole * s))
            mean += low + (value - whole) * step
            slope += value * step
        means[gene] = mean / scale.shape[0]
        slopes[gene] = slope / scale.shape[0]


@njit(cache=True, nogil=True)
def thin_means(
    counts: np.ndarray,
    factor: np.ndarray,
    rates: np.ndarray,
    scale: np.ndarray,
    means: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """The group's log mean per gene under thinning, and its slope in ln(factor). `counts` (n_genes, n_cells) dense.

    A factor below 1 keeps each molecule with that chance; above 1 it adds Poisson((factor - 1) * rate * L_i / mean L),
    with `rates` the control mean of the gene and 1 / scale proportional to L_i.
    """
    n_cells = scale.shape[0]
    relative = (1.0 / scale) / np.mean(1.0 / scale)
    for gene in range(factor.shape[0]):
        total, slope, share = 0.0, 0.0, factor[gene]
        for cell in range(n_cells):
            x = counts[gene, cell]
            if share >= 1.0:
                rate = rates[gene] * relative[cell]
                mean, change = poisson_log(x, (share - 1.0) * rate, scale[cell])
                total += mean
                slope += change * rate
            elif x > 0 and share > 0:
                mean, change = binomial_log(x, share, scale[cell])
                total += mean
                slope += change
        means[gene] = total / n_cells
        slopes[gene] = slope * share / n_cells


@njit(cache=True, nogil=True)
def share_means(shares: np.ndarray, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """E ln(1 + Poisson(total * share) * target_sum / total), averaged over `totals`, for each share."""
    out = np.zeros(shares.shape[0])
    for k in range(shares.shape[0]):
        for j in range(totals.shape[0]):
            out[k] += poisson_log(0.0, totals[j] * shares[k], target_sum / totals[j])[0]
        out[k] /= totals.shape[0]
    return out


def total_nodes(totals: np.ndarray) -> np.ndarray:
    """At most 128 totals that stand for the distribution of `totals`: themselves, or mid-quantiles."""
    if len(totals) <= N_NODES:
        return np.sort(totals)
    return np.quantile(totals, (np.arange(N_NODES) + 0.5) / N_NODES)


def count_table(totals: np.ndarray, target_sum: float) -> tuple[np.ndarray, np.ndarray]:
    """(ln mean, ln share) of the counts rule on a fine grid, both rising: the inverse is an interpolation."""
    means = share_means(np.exp(_LOG_SHARE), total_nodes(totals), target_sum)
    return np.log(means), _LOG_SHARE


def counts_shares(profile: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Shares of the total whose Poisson counts have log mean `profile`; 0 where the profile is 0. Not normalised."""
    shares = np.zeros(len(profile))
    wanted = profile > 0
    shares[wanted] = np.exp(np.interp(np.log(profile[wanted]), *table))
    return shares


def log_step(profile: np.ndarray, means: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Newton's step in ln(factor) towards ln(means) = ln(profile), at most 3 either way.

    ln(mean) is increasing and concave in ln(factor), so the steps approach the root from the left without overshoot.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        step = (np.log(profile) - np.log(means)) * means / slopes
    return np.clip(step, -3.0, 3.0)


@njit(cache=True, nogil=True)
def add_cells(
    data: np.ndarray,
    genes: np.ndarray,
    indptr: np.ndarray,
    target_sum: float,
    log_sum: np.ndarray,
    sums: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Add cells of whole counts (CSR) to the sums per gene of ln(1 + scaled x), x and x squared; fill `totals`."""
    table = np.empty(N_TABLED)
    for cell in range(len(indptr) - 1):
        total = 0.0
        for k in range(indptr[cell], indptr[cell + 1]):
            total += data[k]
        totals[cell] = total
        scale = target_sum / total if total > 0 else 0.0
        for k in range(N_TABLED):
            table[k] = math.log1p(k * scale)
        for k in range(indptr[cell], indptr[cell + 1]):
            value, gene = float(data[k]), genes[k]
            log_sum[gene] += table[int(value)] if value < N_TABLED else math.log1p(value * scale)
            sums[0, gene] += value
            sums[1, gene] += value * value
