"""What the scripts that prepare datasets share: reading tables, picking a subset of patients, writing the manifest."""
