"""Work spread over ranks: the encoder (`dep`), the experts (`expert`), the layers (`pipeline`)."""
