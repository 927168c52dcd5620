"""The app as a Ray Serve deployment: two replicas on CPU. Ray is large and no part of [dev]: pip install ray[serve]."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from scene_fixtures import PATH, QUESTION
from web_fixtures import question

from llava.cli import UserError
from llava.serve.web.deployment import scaling
from llava.tiny.accuracy import CHECKPOINT


def test_replicas_are_a_number_or_a_range():
    assert scaling("2") == {"num_replicas": 2}
    assert scaling("1-8")["autoscaling_config"]["max_replicas"] == 8
    for wrong in ("x", "0", "3-1", "-2", "1-"):
        with pytest.raises(UserError, match="replicas takes"):
            scaling(wrong)


def test_two_replicas_answer_alike():
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[serve]'")
    from ray import serve

    from llava.serve.web.deployment import build

    paths = {key: os.environ[key] for key in ("PYTHONPATH", "HF_HUB_OFFLINE") if key in os.environ}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": paths})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": 8756})
        serve.run(build({"model_path": CHECKPOINT, "replicas": "2", "cpus": "1", "device": "cpu"}), name="llava")
        running = serve.status().applications["llava"].deployments["llava"].replica_states
        client = openai.OpenAI(base_url="http://127.0.0.1:8756/v1", api_key="none", max_retries=0, timeout=120)

        def ask(number: int) -> str:
            asked = client.chat.completions.create(model="llava-tiny", messages=question(QUESTION, PATH), seed=number)
            return asked.choices[0].message.content

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(16))) == {"NUT"}
        pieces = client.chat.completions.create(model="llava-tiny", messages=question(QUESTION, PATH), stream=True)
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == "NUT"
        assert {str(getattr(state, "value", state)): count for state, count in running.items()} == {"RUNNING": 2}
    finally:
        serve.shutdown()
        ray.shutdown()
