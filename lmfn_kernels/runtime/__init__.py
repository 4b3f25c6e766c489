"""Shared by all ops: choice of backend, argument checks, configs, registration, memory layout, launches, reductions."""
