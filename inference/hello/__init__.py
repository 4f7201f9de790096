"""The model that ships with the program: `hello.gguf` beside this file. Reading it is `inference.models.builtin`."""
