"""Generated cohorts whose identity, medical and residual factors are known exactly."""
