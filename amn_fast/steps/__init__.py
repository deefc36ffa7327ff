"""The arithmetic of each stage: functions from one image, batch or network to another; no files, no run folders."""
