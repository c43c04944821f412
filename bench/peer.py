"""llama.cpp as a peer: a program for another interpreter that answers the same orders as our own worker.

Knows llama-cpp-python's low-level API. The text below runs where that package is installed; layerlift need not be.
"""

# argv: model, threads, context. One JSON order a line on stdin, one JSON answer a line on stdout.
PROGRAM = """
import json, os, sys, time
import llama_cpp as L
path, threads, context = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the library prints is not an answer
quiet = L.llama_log_callback(lambda *a: None)
L.llama_log_set(quiet, None)
L.llama_backend_init()
mp = L.llama_model_default_params()
mp.n_gpu_layers = 0
start = time.perf_counter()
model = L.llama_model_load_from_file(path.encode(), mp)
assert model, "the model could not be loaded"
load = time.perf_counter() - start
vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
cp = L.llama_context_default_params()
cp.n_ctx, cp.n_batch, cp.n_ubatch = context, 512, 512
cp.n_threads = cp.n_threads_batch = threads
ctx = L.llama_init_from_model(model, cp)
assert ctx, "the context could not be made"

def decode(tokens):
    array = (L.llama_token * len(tokens))(*tokens)
    assert L.llama_decode(ctx, L.llama_batch_get_one(array, len(tokens))) == 0

def seconds(n_prompt, n_gen):
    L.llama_memory_clear(L.llama_get_memory(ctx), True)
    prompt = [(7 * i + 1) % vocab for i in range(n_prompt)]
    start = time.perf_counter()
    for first in range(0, n_prompt, 512):
        decode(prompt[first : first + 512])
    for i in range(n_gen):
        decode([(11 * i + 3) % vocab])
    L.llama_synchronize(ctx)
    return time.perf_counter() - start

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

print(json.dumps({"load": load}), file=answers, flush=True)
for line in sys.stdin:
    order = json.loads(line)
    answer = {"seconds": seconds(order["n_prompt"], order["n_gen"]), "resident": resident()}
    print(json.dumps(answer), file=answers, flush=True)
"""
