# shellcheck shell=bash
# Runs the stages of ./test one after the other, counts what passed and failed, and leaves nothing running. Sourced by
# ./test.
# shellcheck disable=SC2034 # variables are read in the other files

PASSED=0
FAILED=0
# Whether the last stage failed: 0 or 1.
STAGE_FAILED=0
# One line for each stage, for the table at the end.
SUMMARY=()
# The process group of the stage that runs now; empty between stages.
STAGE_GROUP=
# The process group of the demo, once it was started.
DEMO_GROUP=

# Each background job gets a process group of its own, so that a stage can be ended with everything it started.
set -m

# stage [--count FUNCTION] TITLE COMMAND...: one stage. Without a function it counts as one check; the function is given
# the log and says "PASSED FAILED" in numbers.
stage() {
    local count=count_one title log started=$SECONDS code passed failed
    if [[ $1 == --count ]]; then
        count=$2
        shift 2
    fi
    title=$1
    shift
    log=$LOGS/stage
    printf '\n=== %s\n' "$title"
    # A subshell has no job control: all of it stays in one process group.
    {
        "$@" 2>&1 | tee "$log"
        exit "${PIPESTATUS[0]}"
    } </dev/null &
    STAGE_GROUP=$!
    wait "$STAGE_GROUP"
    code=$?
    end_group "$STAGE_GROUP"
    STAGE_GROUP=
    read -r passed failed < <("$count" "$log" "$code")
    [[ $passed =~ ^[0-9]+$ && $failed =~ ^[0-9]+$ ]] || { passed=0 && failed=0; }
    # A runner that failed without naming a test, that ran none, or whose counts cannot be read, is a failure of its own.
    if ((code != 0 && failed == 0)) || ((code == 0 && passed + failed == 0)); then
        failed=1
    fi
    STAGE_FAILED=$((failed > 0))
    record "$title" "$passed" "$failed" $((SECONDS - started))
}

# fail_stage TITLE REASON: a stage that cannot run.
fail_stage() {
    printf '\n=== %s\nnot run: %s\n' "$1" "$2"
    record "$1" 0 1 0
}

# note TEXT: something that the reader of the table must know.
note() {
    printf '\n=== %s\n' "$1"
    SUMMARY+=("        $1")
}

record() {
    local word=ok
    (($3)) && word=FAILED
    PASSED=$((PASSED + $2))
    FAILED=$((FAILED + $3))
    SUMMARY+=("$(printf '%-7s %5d s  %4d passed  %2d failed  %s' "$word" "$4" "$2" "$3" "$1")")
    printf -- '--- %s: %d passed and %d failed in %d s\n' "$@"
}

# Prints the table and the counts, and ends the script.
finish() {
    printf '\n=== summary, %d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60))
    printf '%s\n' "${SUMMARY[@]}" ""
    echo "$PASSED passed, $FAILED failed"
    exit $((FAILED > 0))
}

count_one() {
    (($2 == 0)) && echo 1 0 || echo 0 1
}

# The closing report of nextest.
count_junit() {
    local report=$TARGET/nextest/default/junit.xml
    [[ -f $report ]] || { echo 0 0 && return; }
    grep -o -m 1 '<testsuites .*' "$report" | awk '
        function attribute(name) { return match($0, " " name "=\"[0-9]+\"") ? substr($0, RSTART + length(name) + 3) + 0 : 0 }
        { bad = attribute("failures") + attribute("errors"); print attribute("tests") - attribute("skipped") - bad, bad }'
}

# cargo test: one "test result:" for each crate.
count_doctests() {
    awk '/^test result:/ { passed += $4; failed += $6 } END { print passed + 0, failed + 0 }' "$1"
}

# The test runner of Node, as TAP.
count_tap() {
    awk '/^# pass / { passed = $3 } /^# (fail|cancelled) / { failed += $3 } END { print passed + 0, failed + 0 }' "$1"
}

# Python's unittest: "Ran 8 tests in 3.2s", then "OK" or "FAILED (failures=1, errors=2)".
count_unittest() {
    awk '/^Ran [0-9]+ test/ { ran = $2 }
        /^FAILED \(/ { gsub(/[^0-9]+/, " "); for (i = 1; i <= NF; i++) failed += $i }
        END { print ran - failed, failed + 0 }' "$1"
}

# tests/autobahn/fuzz.py: "autobahn: 247 passed, 0 failed".
count_autobahn() {
    awk '/^autobahn: / { passed = $2; failed = $4 } END { print passed + 0, failed + 0 }' "$1"
}

# Ends a process group: SIGTERM, ten seconds, SIGKILL. Nothing happens if it has ended.
end_group() {
    local tries
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for ((tries = 0; tries < 100; tries++)); do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null
}

clean_up() {
    [[ -n $STAGE_GROUP ]] && end_group "$STAGE_GROUP"
    [[ -n $DEMO_GROUP ]] && end_group "$DEMO_GROUP"
    rm -rf "$LOGS"
}
trap clean_up EXIT
trap 'echo "interrupted"; exit 130' INT
trap 'echo "ended by SIGTERM"; exit 143' TERM HUP
