"""The machine-readable result of a bench."""
import json
import os
import pathlib
import platform


def publish(bench, result, path=None):
    """One JSON object with what the figures depend on: to the file, or as the last line of stdout."""
    text = json.dumps({"bench": bench, "kernel": platform.release(), "cpus": os.cpu_count(), **result})
    if path:
        pathlib.Path(path).write_text(text + "\n")
    else:
        print(text)
