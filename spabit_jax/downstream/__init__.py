"""What follows on predictions: spatial domains, tumour regions, marker genes and enrichment, spatial genes.

Every analysis is made on the same kinds of expression (``expression.kinds``), all on the scale of the run.
"""
