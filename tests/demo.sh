# shellcheck shell=bash
# Starts `tickmesh demo` on free ports, for the tests from outside, and ends it. Sourced by ./test.
# shellcheck disable=SC2034 # variables are read in the other files

# The demo outlives the stage that looks at its start. Its process id and, in the end, exit code go to files.
start_demo() {
    {
        "$TARGET/debug/tickmesh" demo --port 0 >"$LOGS/demo" 2>&1 </dev/null &
        echo $! >"$LOGS/demo.pid"
        wait $!
        echo $? >"$LOGS/demo.code"
    } &
    DEMO_GROUP=$!
}

# The demo says where it serves: "page   http://127.0.0.1:PORT/".
demo_page_url() {
    sed -n 's|^ *page  *\(http://[^ ]*/\).*|\1|p' "$LOGS/demo" | head -n 1
}

# Waits until the page's address is said and /readyz answers 200.
check_demo_starts() {
    local deadline=$((SECONDS + DEMO_START_SECONDS)) url=
    while ((SECONDS < deadline)) && [[ ! -f $LOGS/demo.code ]]; do
        url=$(demo_page_url)
        if [[ -n $url ]] && answers "${url}readyz"; then
            cat "$LOGS/demo"
            return 0
        fi
        sleep 0.2
    done
    cat "$LOGS/demo"
    if [[ -f $LOGS/demo.code ]]; then
        echo "the demo ended with exit code $(<"$LOGS/demo.code")"
    else
        echo "not ready after $DEMO_START_SECONDS s; its page: ${url:-not said}"
    fi
    return 1
}

answers() {
    python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1" 2>/dev/null
}

# SIGTERM, and then the exit code 0 in time.
check_demo_ends() {
    local pid started now code
    pid=$(<"$LOGS/demo.pid")
    started=$(milliseconds)
    kill -TERM "$pid" || return 1
    while [[ ! -s $LOGS/demo.code ]]; do
        now=$(milliseconds)
        if ((now - started > DEMO_END_SECONDS * 1000)); then
            tail -n 40 "$LOGS/demo"
            echo "still running $((now - started)) ms after SIGTERM"
            return 1
        fi
        sleep 0.02
    done
    code=$(<"$LOGS/demo.code")
    echo "ended $(($(milliseconds) - started)) ms after SIGTERM with exit code $code"
    ((code == 0)) || { tail -n 40 "$LOGS/demo" && return 1; }
}

milliseconds() {
    date +%s%3N
}
