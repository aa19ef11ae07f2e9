"""Examples in, adapter or exported model out."""
