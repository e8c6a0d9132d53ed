"""Edition `core`: the field's standard metrics on held-out perturbations."""
