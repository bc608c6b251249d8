"""The page that `monai-anon report` writes of one or several runs."""
