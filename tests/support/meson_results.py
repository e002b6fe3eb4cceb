#!/usr/bin/python3
"""Count the cases of gtest binaries that meson ran: meson_results.py NAME testlog.json. Prints what failed with the
end of its output, what was skipped with the reason, and 'N passed, N failed, N skipped'."""
import json
import re
import sys

CASE = re.compile(r"^\[ *(OK|FAILED|SKIPPED) *\] ([\w/]+\.[\w/]+)(?:, where .*)? \(\d+ ms\)$")


def cases(test):
    """(result, name, its output) for every gtest case; for another kind of test, the test itself."""
    lines, output, found = test.get("stdout", "").splitlines(), [], []
    for line in lines:
        if match := CASE.match(line):
            found.append((match[1], match[2], output))
            output = []
        elif line.startswith("[ RUN "):
            output = [line]
        else:
            output.append(line)
    good = test["result"] in ("OK", "SKIP")
    name = test["name"].split(" / ")[-1]
    if not found:
        return [("SKIPPED" if test["result"] == "SKIP" else "OK" if good else "FAILED", name, lines)]
    if not good and all(result != "FAILED" for result, _, _ in found):
        found.append(("FAILED", f"{name} ended with {test['result']}", output + test.get("stderr", "").splitlines()))
    return found


def main(suite, path):
    count = {"OK": 0, "FAILED": 0, "SKIPPED": 0}
    with open(path) as log:
        for line in log:
            for result, name, output in cases(json.loads(line)):
                count[result] += 1
                if result == "FAILED":
                    print(f"not ok {suite} {name}", *output[-25:], sep="\n  # ")
                elif result == "SKIPPED":
                    reason = next((text for text in reversed(output) if text.strip() and "Skipped" not in text), "")
                    print(f"skip {suite} {name} # {reason.strip()}")
    print(f"{count['OK']} passed, {count['FAILED']} failed, {count['SKIPPED']} skipped")
    return 1 if count["FAILED"] or not count["OK"] else 0


sys.exit(main(sys.argv[1], sys.argv[2]))
