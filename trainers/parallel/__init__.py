"""Work spread over ranks: the encoder (`dep`), experts (`expert`), layers (`pipeline`); `learn` is the door to all."""
