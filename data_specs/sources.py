"""What can be read as an annotated matrix: a file, an AnnData in memory, or several joined."""

from __future__ import annotations

from typing import Literal, TypeAlias

from .h5ad import H5ad
from .joined_source import JoinedSource
from .memory_source import MemorySource

Axis = Literal["obs", "var"]
# All three have the reading members of `H5ad`; closing is the business of whoever opened them.
Source: TypeAlias = H5ad | MemorySource | JoinedSource
