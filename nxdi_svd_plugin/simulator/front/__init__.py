"""What a kernel imports: the language, the instructions, the decorators."""
