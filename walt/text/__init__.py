"""Text: SentencePiece tokens and the encoder that turns them into embeddings."""
