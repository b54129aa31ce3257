"""What a compression did: the record, the text and figures made of it, the model card."""
