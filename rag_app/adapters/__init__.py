"""Adapters: folders of a few megabytes that change a model, kept, compared and put to use. Trains and exports nothing.

manifest.py     what a folder says of itself, and whether its files are what they were
registry.py     the adapters of a home: added, shown, put to use, taken back, removed
files.py        what they share: the lock, files that are replaced at once, results of the gate
state.py        which are in use, and which were before
sources.py      what of a run, folder, file or archive is an adapter's
archive.py      folders out of archives, and nothing outside of them
forms.py        whether weights are an adapter's, and their shapes the base model's
header.py       the header of a GGUF file, read without trust
choice.py       which of them a question is answered with, if they fit the model
gate.py         whether one answers better than what is in use
"""
