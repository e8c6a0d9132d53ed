"""Probes: documented exploits and negative controls applied to an entry, and what its cells and effects look like."""
