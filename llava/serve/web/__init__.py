"""`llava-web`: one process on one port, a page at `/` and OpenAI's chat protocol under `/v1` (docs/serving.md).

`service` owns the model: one thread, a queue, batches. `app` is the port: `protocol` reads requests and writes
answers, `guard` refuses strangers, `limits` and `pictures` bound what a request may hold. `inspection`, `plans` and
`gallery` are what the page draws; `page/` holds its files.
"""
