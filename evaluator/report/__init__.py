"""One self-contained HTML page about any number of ScoreCards, and its figures as PNG and CSV."""
