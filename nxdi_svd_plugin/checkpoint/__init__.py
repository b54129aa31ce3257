"""Model directories on disk: names, streaming reader, atomic writer, verification."""
