"""Programs of others that this package runs in; each needs an environment of its own."""
