"""RFDB, the residual feature distillation block, and the ops it is made of."""
