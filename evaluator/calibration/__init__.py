"""What the metrics of an edition can tell apart on one dataset: references made of the truth's own cells."""
