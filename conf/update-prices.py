#!/usr/bin/env python3
"""Writes conf/prices.json from the price map inside the litellm package.

    conf/update-prices.py                 # the newest litellm, by `pip download`
    conf/update-prices.py --wheel FILE    # a wheel that is already here

Only that one JSON file of the wheel is read; nothing of the package is installed or run. The
numbers are copied as the text they are, never through a float. Afterwards look at the summary and
at the diff, then run the tests: some of them name prices on purpose.
"""

import argparse
import datetime
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
PRICES = os.path.join(HERE, "prices.json")
NOTICE = os.path.join(HERE, "PRICES.md")
SOURCE = "litellm/model_prices_and_context_window_backup.json"

PROVIDERS = {"openai", "anthropic", "gemini"}
MODES = {"chat", "responses", "image_generation", "embedding"}
FIELDS = {
    "input_cost_per_token",
    "input_cost_per_token_priority",
    "output_cost_per_token",
    "output_cost_per_token_priority",
    "cache_creation_input_token_cost",
    "cache_creation_input_token_cost_above_1hr",
    "cache_read_input_token_cost",
    "cache_read_input_token_cost_priority",
    "output_cost_per_image",
    "output_cost_per_image_token",
    "supports_service_tier",
    "supports_prompt_caching",
    "litellm_provider",
    "mode",
    "max_tokens",
    "max_input_tokens",
    "max_output_tokens",
}
LONG_CONTEXT = re.compile(r"(input|output)_cost_per_token_above_\d+k_tokens(_priority)?")


class Number(str):
    """A number as the text it has in the source."""


def read_json(text):
    return json.loads(text, parse_float=Number, parse_int=Number)


def select(source):
    chosen = {}
    for model, entry in source.items():
        if model == "sample_spec" or not isinstance(entry, dict):
            continue
        if entry.get("litellm_provider") not in PROVIDERS or entry.get("mode") not in MODES:
            continue
        if entry.get("input_cost_per_token") is None and entry.get("output_cost_per_token") is None:
            continue
        chosen[model] = {
            field: value
            for field, value in entry.items()
            if value is not None and (field in FIELDS or LONG_CONTEXT.fullmatch(field))
        }
    return chosen


def pretty(models):
    def scalar(value):
        return str(value) if isinstance(value, Number) else json.dumps(value)

    entries = []
    for model in sorted(models):
        fields = [f"    {json.dumps(f)}: {scalar(models[model][f])}" for f in sorted(models[model])]
        entries.append(f"  {json.dumps(model)}: {{\n" + ",\n".join(fields) + "\n  }")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def download(directory):
    # Wheels only: building an sdist would run the package's code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    subprocess.run(command + ["--quiet", "--dest", directory, "litellm"], check=True)
    (wheel,) = glob.glob(os.path.join(directory, "litellm-*.whl"))
    return wheel


def read_wheel(path):
    version = os.path.basename(path).split("-")[1]
    with zipfile.ZipFile(path) as wheel:
        return version, read_json(wheel.read(SOURCE).decode("utf-8"))


def summarise(old, new):
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    changed = sorted(m for m in new.keys() & old.keys() if new[m] != old[m])
    for title, models in (("added", added), ("removed", removed), ("changed", changed)):
        print(f"{title}: {len(models)}", *models[:20], "..." if len(models) > 20 else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", help="a litellm wheel; default: download the newest")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date for the notice")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        version, source = read_wheel(arguments.wheel or download(directory))
    models = select(source)
    missing = PROVIDERS - {entry["litellm_provider"] for entry in models.values()}
    if missing:
        sys.exit(f"no model left of {', '.join(sorted(missing))}: the format of the source has changed")

    old = {}
    if os.path.exists(PRICES):
        with open(PRICES, encoding="utf-8") as file:
            old = read_json(file.read())
    summarise(old, models)
    with open(PRICES, "w", encoding="utf-8") as file:
        file.write(pretty(models))
    with open(NOTICE, encoding="utf-8") as file:
        notice = file.read()
    notice = re.sub(r"(?m)^\* Version: .*$", f"* Version: {version}", notice)
    notice = re.sub(r"(?m)^\* Date: .*$", f"* Date: {arguments.date}", notice)
    with open(NOTICE, "w", encoding="utf-8") as file:
        file.write(notice)


if __name__ == "__main__":
    main()
