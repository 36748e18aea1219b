"""What was found beside what should have been."""
