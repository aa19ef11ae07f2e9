"""Files, questions and an index in; examples out."""
