"""A trained model or adapter in the form that it is served in, each proven before it counts. Trains nothing."""
