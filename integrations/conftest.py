"""Doctests of a wrapper are collected only where its framework is installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("keras") else ["ml_debugger/keras.py"]
