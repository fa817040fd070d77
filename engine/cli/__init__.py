"""The `cloudcode` command: a client of the HTTP API, so that it can do no more than its key may."""
