"""JavaScript and TypeScript on V8."""
