"""The forms that files of examples come in, a module per family: a row in, examples out."""
