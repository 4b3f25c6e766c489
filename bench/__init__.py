"""What is measured: the kernels' resources without a GPU, and the ops' times."""
