"""The wall between the engine and users' code: processes, frames, lockdown, watchdog."""
