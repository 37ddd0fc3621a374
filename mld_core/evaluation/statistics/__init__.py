"""The field's tools the analysis is made of: bootstrap, folds, intervals, k-means, trees, tests.

Pure functions on arrays, the same to the last bit for any number of threads. Open `blocks` first.
"""
