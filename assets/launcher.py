"""Start a trainer as processes of its own through Dagster Pipes, follow it, and leave none behind."""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.processes import RUN_FILE_MARK, only_trainer, stop_marked
from assets.resources import REPOSITORY, TrainerResource

LOG_EVERY_SECONDS = 1.0
POLL_SECONDS = 0.1


def run_trainer(
    context: dg.AssetExecutionContext,
    trainer: TrainerResource,
    module: str,
    arguments: list[str],
    *,
    run_file: Mapping[str, Any],
    num_ranks: int = 1,
) -> Path:
    """Run a trainer to its end and return its work folder.

    Trainers left by a killed Dagster process are stopped first; this one is stopped whatever happens
    here. The run file says all that the trainer needs, so the same command works by hand.

    Args:
        context: of the asset that is made; the trainer's messages go to its log.
        trainer: interpreter, threads, folder.
        module: such as `trainers.pretrain`.
        arguments: words between the module and the run file.
        run_file: what the trainer reads; `run` names it.
        num_ranks: processes that share the work.

    Raises:
        dg.Failure: the trainer ended with an error; the last lines of its log are in the message.
        TrainerBusyError: another live process trains this run.
    """
    folder = Path(trainer.work).resolve() / run_file["run"]
    with only_trainer(folder):
        path = folder / f"{'_'.join([module.rpartition('.')[2], *arguments])}.json"
        if orphans := stop_marked(path, grace_seconds=0):
            context.log.warning(f"stopped the orphaned trainers {orphans} of {run_file['run']}")
        path.write_text(json.dumps({**run_file, "work": str(folder)}, indent=1, sort_keys=True))
        command = trainer.command(module, [*arguments, str(path)], num_ranks=num_ranks, logs=folder)
        _run_to_end(context, trainer, command, path)
    return folder


def _run_to_end(context: dg.AssetExecutionContext, trainer: TrainerResource, command: list[str], path: Path) -> None:
    log, messages = path.with_suffix(".log"), path.with_suffix(f".{context.run.run_id}.messages")
    messages.touch()
    with dg.open_pipes_session(
        context,
        context_injector=dg.PipesFileContextInjector(str(path.with_suffix(f".{context.run.run_id}.context"))),
        message_reader=dg.PipesFileMessageReader(str(messages)),
    ) as session:
        environment = _environment(session.get_bootstrap_env_vars(), trainer, path)
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            _follow(context, session, process)
        finally:
            stop_marked(path, grace_seconds=trainer.grace_seconds)
            process.wait()
    if process.returncode != 0:
        raise dg.Failure(
            f"{' '.join(command)} ended with code {process.returncode}; its last lines:\n{_tail(log)}",
            metadata={"log": dg.MetadataValue.path(str(log)), "exit_code": process.returncode},
        )


def _environment(pipes: Mapping[str, str], trainer: TrainerResource, path: Path) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(trainer.threads), "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **pipes, **threads, RUN_FILE_MARK: str(path), "K25_PARENT_PID": str(os.getpid())}


def _follow(context: dg.AssetExecutionContext, session: dg.PipesSession, process: subprocess.Popen) -> None:
    """Log what the trainer says of its progress, at most a line a second, until it ends."""
    num_logged, logged_at = 0, 0.0
    while (running := process.poll() is None) or len(session.get_custom_messages()) > num_logged:
        said = session.get_custom_messages()
        is_due = time.monotonic() - logged_at > LOG_EVERY_SECONDS or not running
        if len(said) > num_logged and is_due:
            context.log.debug(_line(said[-1]))  # the trainer itself logs every tenth of the run
            num_logged, logged_at = len(said), time.monotonic()
        time.sleep(POLL_SECONDS)


def _line(message: Any) -> str:
    """Return a trainer's message in words: a step's metrics as `step 12, loss 3.217`."""
    if isinstance(message, Mapping) and {"step", "loss"} <= message.keys():
        return f"step {message['step'] + 1}, loss {message['loss']:.3f}"
    return str(message)


def _tail(log: Path, num_lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])
