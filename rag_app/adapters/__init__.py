"""Adapters: folders of a few megabytes that change a model, kept, compared and put to use. Trains and exports nothing.

manifest.py     what a folder says of itself, and whether its files are what they were
registry.py     the adapters of a home, which are in use, and which were before
archive.py      folders out of archives, and nothing outside of them
gate.py         whether one answers better than what is in use
"""
