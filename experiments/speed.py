"""The command of experiments/studies/speed.py."""

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.studies.speed", run_name="__main__", alter_sys=True)
