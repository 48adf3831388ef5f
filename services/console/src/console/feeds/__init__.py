"""What the views show, read again and again while somebody looks."""
