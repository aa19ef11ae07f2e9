"""Ways from question and passages to an answer, a module per family; each is a function of a Run that yields events."""
