"""The command of experiments/studies/superresolution.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.studies.superresolution", run_name="__main__", alter_sys=True)
