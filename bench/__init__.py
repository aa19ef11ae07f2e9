"""Measurements behind the numbers in the documentation; never part of the tests."""
