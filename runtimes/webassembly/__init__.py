"""Guests in Wasmtime: WASI commands and core modules."""
