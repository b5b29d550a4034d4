#!/usr/bin/env bash
# Builds the shipped plugins and the test fixtures as WebAssembly components.
#
#   plugins/build.sh           builds them and writes NAME/NAME.wasm and NAME/NAME.wasm.sha256
#   plugins/build.sh --check   builds them elsewhere and compares with what is committed
#
# Exit code: 0 done, 1 a build failed or a component differs, 2 wrong usage,
# 3 this machine cannot build them (or, with --check, not in the way that gives the same bytes).
set -euo pipefail

plugins=(blocklist rate-limit web-of-trust topic-router rotate-by-age fixtures fixtures-store fixtures-topics)
target=wasm32-unknown-unknown
# The committed components come from this compiler, with the standard library built from source.
committed_by=1.95.0

check=
case "${1-}" in
  "") ;;
  --check) check=yes ;;
  *) echo "usage: plugins/build.sh [--check]" >&2; exit 2 ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$here")
cd "$here"
cannot() { echo "cannot build the plugins: $1" >&2; exit 3; }

command -v rustc >/dev/null && command -v cargo >/dev/null || cannot "there is no Rust toolchain"
sysroot=$(rustc --print sysroot)
version=$(rustc --version | cut -d' ' -f2)

build=(cargo build --release --locked --target "$target")
if [ -d "$sysroot/lib/rustlib/src/rust/library/std" ]; then
  # Unstable, and the only way to bytes that do not depend on how the toolchain was packaged.
  export RUSTC_BOOTSTRAP=1
  build+=(-Zbuild-std=std,panic_abort)
  reproducible=$([ "$version" = "$committed_by" ] && echo yes || true)
elif [ -d "$sysroot/lib/rustlib/$target/lib" ]; then
  reproducible=
else
  cannot "rustc $version has neither the target (rustup target add $target) nor its source (rustup component add rust-src)"
fi
if [ "$check" ] && [ ! "$reproducible" ]; then
  cannot "comparing needs rustc $committed_by (this is $version) and its source (rustup component add rust-src)"
fi

# Paths end up in panic messages; the bytes must not depend on where the checkout is.
build_dir=${CARGO_TARGET_DIR:-$here/target}
flags=(
  "--remap-path-prefix=$repository=/nostr-gateway"
  "--remap-path-prefix=$build_dir=/target"
  "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  "--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rust"
)

# The tool that makes components runs here, not in the guest: it gets no flags of ours.
cargo build --locked --package componentize
for plugin in "${plugins[@]}"; do build+=(--package "$plugin"); done
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${flags[*]}") "${build[@]}"

out=$here
if [ "$check" ]; then
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
fi
differs=0
for plugin in "${plugins[@]}"; do
  mkdir -p "$out/$plugin"
  "$build_dir/debug/componentize" "$build_dir/$target/release/${plugin//-/_}.wasm" "$out/$plugin/$plugin.wasm"
  (cd "$out/$plugin" && sha256sum "$plugin.wasm" > "$plugin.wasm.sha256")
  if [ ! "$check" ]; then
    echo "plugins/$plugin/$plugin.wasm: $(wc -c < "$plugin/$plugin.wasm") bytes"
    continue
  fi
  if cmp -s "$out/$plugin/$plugin.wasm.sha256" "$plugin/$plugin.wasm.sha256" \
    && cmp -s "$out/$plugin/$plugin.wasm" "$plugin/$plugin.wasm"; then
    echo "plugins/$plugin/$plugin.wasm is what its source builds"
  else
    echo "plugins/$plugin/$plugin.wasm differs from what its source builds: run plugins/build.sh and commit" >&2
    differs=1
  fi
done
if [ ! "$check" ] && [ ! "$reproducible" ]; then
  echo "note: not built like the committed ones (rustc $committed_by with its source); do not commit these" >&2
fi
exit "$differs"
