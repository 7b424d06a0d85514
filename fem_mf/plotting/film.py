"""Films and pictures of a series on disk, without a display: what ParaView would show, in one line.

    film("run/series.xdmf", "run/m.mp4", field="m", fps=20)
    picture("run/series.xdmf", "run/m.png", time=1.0)

``python -m fem_mf.plotting run`` makes both, and the curves of ``history.csv``. The run may go on
meanwhile, or have been killed. Needs ``pip install 'fem_mf[plot]'``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

from fem_mf.mpi import on_root
from fem_mf.output.history import progress
from fem_mf.plotting.framing import Look, Scene
from fem_mf.plotting.perspective import Image
from fem_mf.plotting.recorded import Recorded
from fem_mf.plotting.scenes import make_scene
from fem_mf.typing import PathLike

__all__ = [
    "FORMATS",
    "Look",
    "check_film",
    "chosen_steps",
    "film",
    "load_imageio",
    "make_film",
    "picture",
    "write_film",
    "write_picture",
]

FORMATS = (".mp4", ".gif")


@dataclass(frozen=True)
class _Frame:
    """What the progress bar says of one step."""

    t: float
    step: int


def film(
    path: PathLike,
    out: PathLike,
    field: str = "m",
    fps: float = 15.0,
    every: int = 1,
    look: Look | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Make a film of a field: one image for each step. Collective on ``comm``, whose rank 0 draws.

    d = 1 is a curve, d = 2 a surface, d = 3 isosurfaces and slices; the camera does not move, the
    scale of colours is the same all the time, the picture shows where there is mass (``Look``).

        film("run/series.xdmf", "run/m.mp4")
        film("run/series.xdmf", "run/u.gif", field="u", every=5, look=Look(size=(640, 360)))

    Args:
        path: the ``.xdmf`` of the series.
        out: the film, ``.mp4`` or ``.gif``; missing folders are created.
        field: the name of the field.
        fps: images per second.
        every: use the first step, each ``every``-th after it, and the last.
        look: size, colours, what is in the picture.
        comm: the communicator that calls.

    Raises:
        ValueError: no such field, no step written yet, or a mistake in the arguments.
        RuntimeError: a file cannot be read or written, or nothing here can draw in 3-d.
        ImportError: pyvista, matplotlib or imageio is missing.
    """

    def work() -> None:
        look_ = look or Look()
        check_film(Path(out), fps, every, look_)
        series = Recorded(path)
        steps = chosen_steps(series, every)
        with closing(make_scene(series, field, steps, look_)) as scene:
            make_film(Path(out), scene, steps, fps)

    on_root(comm, work)


def picture(
    path: PathLike,
    out: PathLike,
    field: str = "m",
    time: float | None = None,
    look: Look | None = None,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> None:
    """Draw one step of a series. Collective on ``comm``, whose rank 0 draws.

    Args:
        path: the ``.xdmf`` of the series.
        out: the picture (png, jpg, ...); missing folders are created.
        field: the name of the field.
        time: the nearest step is drawn; the last one if not given.
        look: size, colours, what is in the picture.
        comm: the communicator that calls.

    Raises:
        ValueError: no such field, no step written yet, or a mistake in the arguments.
        RuntimeError: a file cannot be read or written, or nothing here can draw in 3-d.
        ImportError: pyvista, matplotlib or imageio is missing.
    """

    def work() -> None:
        series = Recorded(path)
        step = len(series.times) - 1 if time is None else series.nearest(time)
        with closing(make_scene(series, field, [step], look)) as scene:
            write_picture(Path(out), scene.draw(step))

    on_root(comm, work)


def chosen_steps(series: Recorded, every: int) -> list[int]:
    """The first step, each ``every``-th after it, and the last."""
    last = len(series.times) - 1
    return sorted({*range(0, last + 1, every), last})


def check_film(out: Path, fps: float, every: int, look: Look) -> None:
    """Find mistakes before the first image is drawn.

    Raises:
        ValueError: what is wrong.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"'{out}' must end in .mp4 or .gif")
    if not fps > 0.0 or every < 1:
        raise ValueError(f"fps = {fps:g} and every = {every} must be positive")
    if out.suffix == ".mp4" and (look.size[0] % 2 or look.size[1] % 2):
        raise ValueError(f"an mp4 needs even numbers of pixels, not {look.size}")


def make_film(out: Path, scene: Scene, steps: Sequence[int], fps: float) -> None:
    """Draw steps and write the film, with a progress bar.

    Args:
        out: the film.
        scene: draws the steps.
        steps: their numbers, at least one.
        fps: images per second.
    """
    frames = [_Frame(scene.series.times[step], step) for step in steps]
    bar = progress(frames, frames[-1].t, MPI.COMM_SELF, out.name)
    write_film(out, (scene.draw(frame.step) for frame in bar), fps)


def write_film(out: Path, images: Iterable[Image], fps: float) -> None:
    """Write images as a film; missing folders are created, an older film is replaced at the end.

    Args:
        out: the film, ``.mp4`` or ``.gif``.
        images: of one size, for an mp4 with even numbers of pixels; drawn one after the other.
        fps: images per second.
    """
    imageio = load_imageio()
    settings: dict[str, Any] = {"duration": 1000.0 / fps, "loop": 0}
    if out.suffix == ".mp4":
        # Without the last, imageio would change the size of the images.
        settings = {"fps": fps, "codec": "libx264", "quality": 8, "macro_block_size": 2}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.stem}-new{out.suffix}")
    try:
        with imageio.get_writer(draft, **settings) as writer:
            for image in images:
                writer.append_data(image)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def write_picture(out: Path, image: Image) -> None:
    """Write one image; missing folders are created."""
    out.parent.mkdir(parents=True, exist_ok=True)
    load_imageio().imwrite(out, image)


def load_imageio() -> Any:
    """Import what writes images.

    Raises:
        ImportError: it is missing.
    """
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "films need imageio and imageio-ffmpeg: pip install 'fem_mf[plot]'"
        ) from error
    return imageio.v2
