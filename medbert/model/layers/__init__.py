"""What encoders are built of."""
