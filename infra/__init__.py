"""The edge, imported by nobody: the embedded S3 server, the demo corpus, the tokenizer's training."""
