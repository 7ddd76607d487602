"""What a finished run or prediction is worth, shown to people."""
