"""Many plans → the best one, within the budget."""
