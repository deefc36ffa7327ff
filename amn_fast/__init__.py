"""Image-level labels to segmentation masks: AMN's pipeline, with fast dense CRF, random walk and losses."""

__version__ = "0.1.0"
