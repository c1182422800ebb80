"""What each op really does, on which memory."""
