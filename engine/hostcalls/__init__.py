"""The broker and its capabilities: what guests may ask of the engine, one file each."""
