#!/usr/bin/env bash
# shellcheck disable=SC2329 # functions are given to `wait_for` by name, and to trap
# The main path under load: a real Kafka, two ingest peers, three edges, many clients; every sequence checked.
#
#   sim/scenarios/main_path.sh [EVENTS_PER_SECOND [CLIENTS [STREAMS [SECONDS]]]]      default: 5000 1000 8 20
#
# Needs the release binaries (cargo build --release --workspace), Java, and Kafka's jars in the folder that
# TICKMESH_KAFKA_LIBS names; ./test fetches them. Prints the report as JSON; exit code 0 only if nothing was lost,
# doubled or reordered.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
RATE=${1:-5000} CLIENTS=${2:-1000} STREAMS=${3:-8} SECONDS_LONG=${4:-20}
LIBS=${TICKMESH_KAFKA_LIBS:?the folder of the jars of Kafka; ./test fetches them into target/test-cache/kafka}
LIBS=$(cd "$LIBS" && pwd)
BIN=${CARGO_TARGET_DIR:-target}/release
BIN=$(cd "$BIN" && pwd)
DIR=$(mktemp -d)
PIDS=()
clean_up() {
    for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$DIR"
}
trap clean_up EXIT
cd "$DIR"

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 300; tries++)); do
        "$@" 2>/dev/null && return 0
        sleep 0.2
    done
    echo "waited in vain for $what" >&2
    tail -n 5 ./*.log >&2
    return 1
}
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }
is_ready() { python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "http://127.0.0.1:$1/readyz"; }

KAFKA=$(free_port) CONTROLLER=$(free_port)
cat >kafka.properties <<P
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$KAFKA,CONTROLLER://127.0.0.1:$CONTROLLER
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$DIR/kafka
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
num.partitions=4
P
JAVA=(java -Xms256m -Xmx256m -XX:+UseSerialGC -cp "$LIBS/*")
"${JAVA[@]}" kafka.tools.StorageTool format -t "$("${JAVA[@]}" kafka.tools.StorageTool random-uuid | tail -n 1)" -c kafka.properties >format.log 2>&1
"${JAVA[@]}" kafka.Kafka kafka.properties >kafka.log 2>&1 &
PIDS+=($!)
wait_for "Kafka" port_open "$KAFKA"

"$BIN/tickmesh" keys --network network.psk 2>/dev/null
PUBLISHERS=
for name in ingest-1 ingest-2; do
    PUBLISHERS+="\"$("$BIN/tickmesh" keys --node "$name.key" 2>/dev/null)\", "
done
BOOTSTRAP=$(free_port)

# peer NAME ROLE MESH_PORT OPS_PORT MORE
peer() {
    cat >"$1.toml" <<P
[node]
name = "$1"
region = "eu-west"
roles = ["$2"]
[ops]
listen = "127.0.0.1:$4"
[mesh]
listen = ["/ip4/127.0.0.1/tcp/$3"]
bootstrap = ["/ip4/127.0.0.1/tcp/$BOOTSTRAP"]
key_file = "$1.key"
publishers = [$PUBLISHERS]
$5
P
    "$BIN/tickmesh" run --config "$1.toml" 2>"$1.log" &
    PIDS+=($!)
}
SOURCE="[[source]]
name = \"engine\"
kind = \"kafka\"
brokers = \"127.0.0.1:$KAFKA\"
topics = [\"load\"]"
OPS=()
for name in ingest-1 ingest-2; do
    OPS+=("$(free_port)")
    port=$(free_port)
    [[ $name == ingest-1 ]] && port=$BOOTSTRAP
    peer "$name" ingest "$port" "${OPS[-1]}" "$SOURCE"
done
URLS=()
for name in edge-1 edge-2 edge-3; do
    OPS+=("$(free_port)")
    port=$(free_port)
    URLS+=(--url "ws://127.0.0.1:$port/ws")
    peer "$name" edge "$(free_port)" "${OPS[-1]}" "[edge]
listen = \"127.0.0.1:$port\"
shards = 1"
done
for port in "${OPS[@]:2}"; do wait_for "an edge that is ready" is_ready "$port"; done

# What each peer dropped, missed or received late, after the report.
drops() {
    local port
    for port in "${OPS[@]}"; do
        python3 -c 'import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=2).read().decode())' \
            "http://127.0.0.1:$port/metrics" | grep -E '^tickmesh_(source_latency_seconds_(sum|count)|delivery_latency_seconds_(sum|count)|events_published_total|batches_published_total|events_dropped_total|events_early_total|gaps_total|gossip_queue_drops_total|mesh_batches_(late|received)_total|duplicates_total)' | grep -v ' 0$' | sed "s/^/$port /" >&2 || true
    done
}
CODE=0
"$BIN/tickmesh-sim" load --kafka "127.0.0.1:$KAFKA" --topic load --rate "$RATE" --clients "$CLIENTS" \
    --streams "$STREAMS" --seconds "$SECONDS_LONG" "${URLS[@]}" || CODE=$?
drops
exit $CODE
