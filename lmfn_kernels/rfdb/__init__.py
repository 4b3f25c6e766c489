"""RFDB, the residual feature distillation block: the whole block and its parts."""
