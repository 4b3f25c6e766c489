"""What all ops share: choice of backend, checks, configs, launches, registration, deterministic reductions."""
