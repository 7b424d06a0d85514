"""What ParaView makes of series, as JSON; run by pvbatch, not by pytest.

    pvbatch paraview_read.py OUT.json READER=FILE ... [picture=FILE.png]

READER is the name of one of ParaView's readers, or "default". The picture, of the last step of the
last series, needs a display.
"""

import json
import sys

from paraview import simple

out, *words = sys.argv[1:]
files = dict(word.split("=", 1) for word in words)
picture = files.pop("picture", None)
seen = {}
for name, file in files.items():
    if name == "default":
        reader = simple.OpenDataFile(file)
    elif name == "XDMFReader":
        reader = simple.XDMFReader(FileNames=[file])
    else:
        reader = getattr(simple, name)(FileName=[file])
    reader.UpdatePipelineInformation()
    seen[name] = {"times": list(reader.TimestepValues), "steps": []}
    for time in reader.TimestepValues:
        reader.UpdatePipeline(time)
        arrays = [reader.PointData.GetArray(i) for i in range(reader.PointData.GetNumberOfArrays())]
        info = reader.GetDataInformation()
        step = {"ranges": {a.Name: a.GetRange() for a in arrays}, "bounds": info.GetBounds()}
        seen[name]["steps"].append(step)
with open(out, "w") as stream:
    json.dump(seen, stream)
if picture:
    view = simple.CreateView("RenderView")
    view.ViewSize = [320, 240]
    view.ViewTime = max(reader.TimestepValues)
    shown = simple.Show(reader, view)
    simple.ColorBy(shown, ("POINTS", "m"))
    shown.RescaleTransferFunctionToDataRange()
    simple.ResetCamera(view)
    simple.SaveScreenshot(picture, view)
