"""What is measured of a checkpoint, one evaluation a file: model, lake and tokenizer in, plain numbers out."""
