"""Wires what runs beside a training into the recorder, which knows none of it: the upload, the evaluation.

Imported by every wrapper.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mld_core.records.format.layout import RunKey
from mld_core.tracing.run.beside import provide_evaluation
from mld_core.tracing.run.beside.uploads import Uploader, UploadTarget, provide

if TYPE_CHECKING:
    from mld_core.tracing.run.beside.live import LiveEvaluation

__all__ = ["make_evaluation", "make_uploader"]


def make_uploader(target: UploadTarget) -> Uploader:
    """The upload helper of one rank; no process is started before something is to be uploaded."""
    from mld_core.service.client.helper import UploadHelper, UploadSettings

    return UploadHelper(
        UploadSettings(
            store=str(target.store),
            model_name=target.run.model_name,
            version_name=target.run.version_name,
            attempt=target.attempt,
            rank=target.rank,
            world_size=target.world_size,
            endpoint=target.endpoint,
            api_key=target.api_key,
        )
    )


def make_evaluation(store: Path, run: RunKey) -> LiveEvaluation:
    """The evaluation beside a run; no process is started before a pass is sealed."""
    from mld_core.evaluation.live.helper import LiveHelper, LiveSettings

    return LiveHelper(LiveSettings(str(store), run.model_name, run.version_name))


provide(make_uploader)
provide_evaluation(make_evaluation)
