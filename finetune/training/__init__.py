"""A configuration and examples in; an adapter out."""
