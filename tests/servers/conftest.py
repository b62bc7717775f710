from small_servers import impatient, start_server, tokenizer  # noqa: F401  (fixtures)
