"""How well a method hides the person and keeps the finding, measured by networks that had no part in training it."""
