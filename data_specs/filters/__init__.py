"""Published quality filters: rules that look at a standard file in passes, and recipes that name them in order."""
