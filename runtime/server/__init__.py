"""`layerlift --server`: one engine behind OpenAI's API, llama-server's own routes and a web page.

`generation.py` is the seam: it knows requests and answers without any protocol, and says how to add a dialect.
"""
