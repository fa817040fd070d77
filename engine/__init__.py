"""The engine: rules, store, API and wiring. Reading order: README, wiring, events, dispatch, commit."""
