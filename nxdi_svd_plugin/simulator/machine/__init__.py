"""What is done with a program: executed, priced, its memory counted."""
