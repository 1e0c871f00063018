"""Measure what a model's texts are worth: ask it a data set's questions, score its answers, compare two runs."""
