"""What a recipe's run would do and need, and where its time would go; nothing is trained to an end."""
