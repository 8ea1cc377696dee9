"""From inputs to a report, in stages and in several processes."""

STAGES = ("features", "gat", "train", "predict", "evaluate")
