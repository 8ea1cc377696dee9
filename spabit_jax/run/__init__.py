"""From inputs to a report, in stages and in several processes."""

STAGES = {  # in their order: what each does
    "features": "image features",
    "gat": "the reference's graph attention network",
    "train": "members are fitted",
    "predict": "the spots are predicted",
    "evaluate": "metrics, figures, report",
}
