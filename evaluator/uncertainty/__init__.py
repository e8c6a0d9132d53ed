"""How far aggregated values can be trusted: intervals, paired tests, reliability."""
