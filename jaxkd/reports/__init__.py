"""Reports of runs: tables for a terminal and for Markdown, figures, comparisons of students."""

from jaxkd.reports.compare import by_point, gain, last_and_best, without_lost
from jaxkd.reports.figures import plot_curves, plot_reliability
from jaxkd.reports.overlays import plot_boxes, plot_masks
from jaxkd.reports.plots import plot_confusion, plot_forecasts, plot_lines, plot_roc
from jaxkd.reports.tables import REGRESSION_RESULTS, RESULTS, markdown, mean_std, result, show, table

__all__ = [
    "REGRESSION_RESULTS",
    "RESULTS",
    "by_point",
    "gain",
    "last_and_best",
    "markdown",
    "mean_std",
    "plot_boxes",
    "plot_confusion",
    "plot_curves",
    "plot_forecasts",
    "plot_lines",
    "plot_masks",
    "plot_reliability",
    "plot_roc",
    "result",
    "show",
    "table",
    "without_lost",
]
