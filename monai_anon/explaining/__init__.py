"""Similar cases and counterfactuals that can be handed over: `monai-anon explain` and `monai-anon counterfactual`."""
