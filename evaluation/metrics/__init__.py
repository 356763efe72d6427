"""One file per family of metrics; each metric is one function with its formula, unit, source and limits.

Frames are uint8 RGB [F, H, W, 3]; key points are float [F, K, 3]: x and y in pixels of the frame, confidence
(0 or NaN: absent). A metric of single frames returns float64 [F], one of neighbouring frames [F - 1]; NaN
where it has nothing to say. All can be given a long video in chunks, those of neighbouring frames with one
frame of overlap. The value of a clip is the mean over its frames without NaN.
"""
