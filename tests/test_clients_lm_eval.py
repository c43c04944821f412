"""lm-eval scores the default model through the server, by the likelihoods that `echo` with `logprobs` gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TASK = """task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: ["Paris", "Rome", "Madrid", "Berlin"]
doc_to_target: label
metric_list: [{metric: acc}]
"""
COUNTRIES = ["France", "Italy", "Spain", "Germany"]


# Both of its ways to ask: tokens it has from /tokenize, and characters that it finds by text_offset.
SCRIPT = """
import sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

url, folder = sys.argv[1:]
for model, where in (("local-completions", url + "/v1/completions"), ("gguf", url)):
    tasks = TaskManager(include_path=folder, include_defaults=False)
    options = {"model_args": {"model": "default", "base_url": where}, "tasks": ["capitals"], "task_manager": tasks}
    print(make_table(simple_evaluate(model, **options)))
"""


@pytest.mark.timeout(300)
def test_lm_eval_prints_a_score(default_server, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install '.[clients-test]')")
    data = tmp_path / "capitals.jsonl"
    data.write_text("".join(json.dumps({"country": name, "label": i}) + "\n" for i, name in enumerate(COUNTRIES)))
    (tmp_path / "capitals.yaml").write_text(TASK.replace("DATA", str(data)))
    cache = {"HF_HOME": str(tmp_path / "cache"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, default_server.url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **cache})
    assert done.returncode == 0, done.stderr[-3000:]
    scores = [float(score) for score in re.findall(r"\|acc *\|[^|]*\|([ 0-9.]+)\|", done.stdout)]
    assert scores == [1.0, 1.0], done.stdout
