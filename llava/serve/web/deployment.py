"""`llava-web`'s app as a Ray Serve deployment: replicas on several GPUs or machines, as many as the load needs.

    serve run llava.serve.web.deployment:build model_path=playground/checkpoints/llava-tiny replicas=2

Arguments are the options of `llava-web` with underscores, and `replicas` (a number, or least-most as in 1-8), `gpus`
and `cpus` per replica. Ray Serve listens (`serve start --http-host`); `host` says whether others reach it, and then
`token` is needed, as for `llava-web`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llava.cli import UserError, parse

from .command import Options, access_token, make_app

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette

OWN = {"replicas": "1", "gpus": "0", "cpus": "1"}
"""Arguments of the deployment, and their defaults."""


def build(arguments: Mapping[str, str]) -> Application:
    """Return the application for `serve run` or `ray.serve.run`.

    Raises `UserError` for a number of replicas that is none, and for an address that others reach without a token.
    """
    from ray import serve

    own = OWN | {name: str(value) for name, value in arguments.items() if name in OWN}
    words = [f"--{name}={value}" for name, value in arguments.items() if name not in OWN]
    options = parse(Options, words, prog="llava.serve.web.deployment:build", description=__doc__)
    token = access_token(options)

    def app() -> Starlette:
        return make_app(options, token)

    settings: dict[str, Any] = scaling(own["replicas"])
    settings["ray_actor_options"] = {"num_gpus": float(own["gpus"]), "num_cpus": float(own["cpus"])}
    # beyond these the app itself answers that it is busy
    settings["max_ongoing_requests"] = options.max_queue + 2 * options.max_batch
    return serve.deployment(serve.ingress(app)(), name="llava", **settings).bind()


def scaling(replicas: str) -> dict[str, Any]:
    """`2` → two replicas; `1-8` → one to eight, by the number of requests under way."""
    least, dash, most = replicas.partition("-")
    if not least.isdecimal() or not (most if dash else "1").isdecimal() or int(most or least) < max(int(least), 1):
        raise UserError(f"replicas takes a number or a range such as 1-8, got {replicas!r}")
    if not dash:
        return {"num_replicas": int(least)}
    return {"autoscaling_config": {"min_replicas": int(least), "max_replicas": int(most), "target_ongoing_requests": 8}}
