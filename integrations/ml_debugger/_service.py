"""Wires the upload to a team's service into the recorder, which knows none: imported by every wrapper."""

from __future__ import annotations

from mld_core.service.client.helper import UploadHelper, UploadSettings
from mld_core.tracing.run.uploads import Uploader, UploadTarget, provide

__all__ = ["make_uploader"]


def make_uploader(target: UploadTarget) -> Uploader:
    """The upload helper of one rank; no process is started before something is to be uploaded."""
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


provide(make_uploader)
