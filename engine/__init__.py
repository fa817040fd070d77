"""The engine: rules, store, API and wiring. Read README, wiring, events, dispatch, commit."""
