"""Kernels that pay for their length, each beside its plain formula; measured by ``experiments.studies.ops``."""
