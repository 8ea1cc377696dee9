"""The command of experiments/studies/ablate.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.studies.ablate", run_name="__main__", alter_sys=True)
