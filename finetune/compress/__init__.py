"""A model in, a smaller one out: distilled, pruned, or trained on the grid of its quantisation."""
