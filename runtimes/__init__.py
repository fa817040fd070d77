"""The guest languages. `contract` holds the words shared with the sandbox and the engine."""
