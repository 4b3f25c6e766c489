"""3x3 convolutions with what follows them, and the pieces that every block's convolutions are made of."""
