"""What an operator does: each is planned, shown, and then done."""
