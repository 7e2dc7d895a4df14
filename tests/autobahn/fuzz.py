"""The Autobahn fuzzing client against node/examples/echo.rs, the edge with nothing but echoes.

fuzz.py ECHO WSTEST: the two programs. Says which cases did not pass and, in its last line, how many did and did not.
"""

import ast
import json
import pathlib
import re
import subprocess
import sys
import tempfile

# Frames, pings, reserved bits, opcodes, fragments, UTF-8, closing, and a large message in many fragments. Case 9 measures,
# 12 and 13 are compression.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]

# All of it takes ten seconds alone on two cores. What fails waits for seconds, each time.
DEADLINE_SECONDS = 180

# NON-STRICT: right, but later or with less than the suite would like. INFORMATIONAL: the standard leaves it open.
PASSING = {"OK", "NON-STRICT", "INFORMATIONAL"}
PASSING_CLOSE = {"OK", "INFORMATIONAL"}

AGENT = "tickmesh"


def run(echo, wstest, folder):
    """Runs the suite. The cases that it wanted to run, and its report."""
    # Its first line ends with the address.
    url = echo.stdout.readline().split()[-1]
    spec = folder / "spec.json"
    spec.write_text(
        json.dumps(
            {
                "outdir": str(folder),
                "servers": [{"agent": AGENT, "url": url}],
                "cases": CASES,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    said = subprocess.run(
        [wstest, "-m", "fuzzingclient", "-s", spec],
        cwd=folder,
        timeout=DEADLINE_SECONDS,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    wanted = ast.literal_eval(re.search(r"^Cases = (\[.*\])$", said, re.MULTILINE)[1])
    return wanted, json.loads((folder / "index.json").read_text())[AGENT]


def judge(wanted, report):
    """How many cases passed and failed."""
    passed = 0
    for case in wanted:
        result = report.get(case, {"behavior": "MISSING", "behaviorClose": "MISSING"})
        behavior, close = result["behavior"], result["behaviorClose"]
        passes = behavior in PASSING and close in PASSING_CLOSE
        passed += passes
        if (behavior, close) != ("OK", "OK"):
            print(f"case {case}: {behavior}, closing: {close}{'' if passes else ' -- failed'}")
    return passed, len(wanted) - passed


def main():
    program, wstest = sys.argv[1:]
    echo = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            passed, failed = judge(*run(echo, wstest, pathlib.Path(folder)))
    finally:
        echo.terminate()
        echo.wait()
    print(f"autobahn: {passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
