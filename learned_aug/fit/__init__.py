"""Fitting an augmenter to a classifier: the stages, their settings and their results."""
