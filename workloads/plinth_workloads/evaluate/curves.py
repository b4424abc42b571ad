"""Pictures of a run: its loss over the steps."""

from collections.abc import Sequence
from pathlib import Path

Points = Sequence[tuple[int, float]]


def draw_loss_curve(path: Path, title: str, training: Points, validation: Points) -> None:
    """Draw training and validation loss as a PNG.

    Args:
        path: The PNG to write.
        title: Above the curve.
        training: (step, loss) of training steps.
        validation: (step, loss) of evaluations.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*training, strict=True), linewidth=0.8, alpha=0.45, color="tab:blue", label="training, each step")
    window = max(1, len(training) // 50)
    smooth = [
        (training[end][0], sum(loss for _, loss in training[max(0, end - window) : end + 1]) / min(end + 1, window + 1))
        for end in range(len(training))
    ]
    axes.plot(*zip(*smooth, strict=True), color="tab:blue", label=f"training, mean of {window + 1}")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="tab:orange", label="validation")
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
