"""A model and examples in; answers and their scores out."""
