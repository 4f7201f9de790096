"""How `hello.gguf` is made: `python -m inference.hello.make` (needs the dependency group `hello`; not in the wheel).

`words` and `intents.txt` are all the text there is; `corpus` makes chats of them, `bpe` the tokenizer, `model` and
`train` the weights, `export` the file, `exam` the marks.
"""
