"""Run by the interpreter that has vcc-cli: `run_prep` on every job of a JSON file, dry; what each one refuses.

A job is `{"name", "options"}`; the answer maps names to the message of the refusal, or null when the file is accepted.
"""

import json
import sys

from vcc.prep import PrepError, run_prep

jobs = json.loads(open(sys.argv[1], encoding="utf-8").read())  # noqa: PTH123, SIM115
answers = {}
for job in jobs:
    options = {"dry_run": True, **job["options"]}
    if "required_contexts" in options:
        options["required_contexts"] = tuple(options["required_contexts"])
    try:
        run_prep(**options)
        answers[job["name"]] = None
    except PrepError as error:
        answers[job["name"]] = str(error)
with open(sys.argv[2], "w", encoding="utf-8") as handle:  # noqa: PTH123
    json.dump(answers, handle)
