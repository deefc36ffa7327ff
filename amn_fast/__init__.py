"""Image-level labels to segmentation masks: AMN's pipeline, with fast dense CRF, random walk and losses."""

__version__ = "0.1.0"


def info() -> str:
    """Versions, devices and backends of this installation, one line each; a backend that cannot run says why."""
    from amn_fast._info import info

    return info()
