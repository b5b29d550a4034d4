# `just` lists the recipes. What CI checks, it checks with the same commands: .ci/run STEP.

# Artefacts in the clone, shared with plain cargo commands. CI keeps its own outside.
export CI_TARGET := env_var_or_default("CARGO_TARGET_DIR", justfile_directory() / "target")

_list:
    @just --list

# The gateway, with the flags of `nostr-gateway run`
run *FLAGS:
    cargo run --release -- run {{FLAGS}}

# Formats everything
fmt:
    cargo fmt --all
    cd plugins && cargo fmt --all

# Formatting and lints, as CI checks them
lint:
    .ci/run format lint

# Tests and scenarios; as root with those in network namespaces. `just test NAME` runs some
test *FILTER:
    cargo test --workspace {{FILTER}}

# The scenarios alone, with their figures: first neighbor, latency
scenarios *FILTER:
    cargo test --workspace --test scenarios -- --nocapture {{FILTER}}

# Client libraries against the gateway: nostr-tools, NDK, nostr-sdk; `just clients ndk` runs one
clients *LIBRARY:
    tests/clients/run {{LIBRARY}}

# Builds the shipped plugins as components
plugins:
    plugins/build.sh

# Two gateways, a private DHT and a pkarr relay in containers
compose:
    docker compose up --build

# Everything that CI runs
ci:
    .ci/run
