"""What an answer is worth: each metric on one row, as sums that add up over rows."""
