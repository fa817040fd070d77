"""The HTTP edge: the control plane in FastAPI. Reading order: app, platform, access, problems."""
