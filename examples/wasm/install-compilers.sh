#!/usr/bin/env bash
# Installs what compiles these examples, where it is missing: clang and Rust from Debian or Ubuntu, as
# root, and AssemblyScript from npm into the environment that is named (.venv).
#
#   examples/wasm/install-compilers.sh .venv      # what `make wasm` and `make test` run
#
# It always ends well: what could not be installed is told, with the remedy, and the tests that need
# it are left out (in continuous integration they fail).
#
# Each compiler is tried on an empty program, because compiler, linker and library are packages of
# their own, with names and versions that differ between releases.
set -euo pipefail

environment=$1
here=$(dirname "$0")
rustc=/usr/bin/rustc # Debian's: one of rustup's may come first, without these targets
tried=$(mktemp -d)
trap 'rm -rf "$tried"' EXIT

main() {
  c_works || install_c || true
  c_works || note "C" "apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32 (14: clang's version)"
  rust_works || install_rust || true
  rust_works || note "Rust" "apt-get install rustc libstd-rust-dev-wasm32 lld"
  assemblyscript_works || install_assemblyscript || true
  assemblyscript_works || note "AssemblyScript" "apt-get install nodejs npm, and npm has to reach its registry"
}

note() {
  echo "note: WebAssembly cannot be built from $1 here, so tests that need it are left out; on Debian and Ubuntu: sudo $2" >&2
}

c_works() {
  echo 'int main(void) { return 0; }' >"$tried/empty.c"
  clang --target=wasm32-wasi "$tried/empty.c" -o "$tried/c.wasm" 2>/dev/null
}

install_c() {
  can_install "clang for WebAssembly" || return 1
  apt_install clang lld wasi-libc
  apt_install "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev-wasm32"
}

rust_works() {
  echo 'fn main() {}' >"$tried/empty.rs"
  for target in wasm32-wasip1 wasm32-wasi; do # one target: since Rust 1.78, and before
    "$rustc" --target "$target" -C linker=wasm-ld "$tried/empty.rs" -o "$tried/rust.wasm" 2>/dev/null && return
  done
  return 1
}

install_rust() {
  can_install "Rust for WebAssembly" || return 1
  apt_install rustc libstd-rust-dev-wasm32 lld
}

assemblyscript_works() {
  cmp -s "$here/assemblyscript/package.json" "$environment/assemblyscript/package.json" &&
    [ -e "$environment/assemblyscript/node_modules/assemblyscript/bin/asc.js" ] && node --version >/dev/null 2>&1
}

install_assemblyscript() {
  if ! command -v npm >/dev/null; then
    can_install "Node.js" || return 1
    apt_install nodejs npm
  fi
  echo "installing AssemblyScript into $environment ..." >&2
  rm -rf "$environment/assemblyscript"
  mkdir -p "$environment/assemblyscript"
  cp "$here/assemblyscript/package.json" "$environment/assemblyscript/"
  # Node trusts certificates of its own alone; every other tool here trusts the system's.
  if [ -r /etc/ssl/certs/ca-certificates.crt ]; then
    export NODE_EXTRA_CA_CERTS=${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}
  fi
  npm install --prefix "$environment/assemblyscript" --no-audit --no-fund --loglevel=error >/dev/null
}

can_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  echo "installing $1 ..." >&2
  [ -e "$tried/updated" ] || apt-get update -qq
  touch "$tried/updated"
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

main
